"""Binary glTF 2.0 through pygltflib: a mesh with morph targets, its animation, and the crop's camera.

Sections of the specification (Khronos, glTF 2.0.1) that it follows: 3.7.2.2 morph targets, 3.10 cameras, 3.11
animations, 3.9.2 vertex colours and textures, 3.9.3 normal maps.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pygltflib as gltf
from jaxtyping import Float, Float32, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.export.shape import Morphs, Motion, Shape, normals_of
from expportrait_cli.geometry.rotations import logarithm
from expportrait_cli.version import __version__

NEAR_M, FAR_M = 0.05, 10.0
CLAMP_TO_EDGE = 33071


@dataclass
class _Store:
    """The binary buffer of a glTF file, with its views and accessors."""

    blocks: list[bytes] = field(default_factory=list)
    views: list[gltf.BufferView] = field(default_factory=list)
    accessors: list[gltf.Accessor] = field(default_factory=list)
    size: int = 0

    def add(self, array: np.ndarray, *, target: int | None = None, bounds: bool = False) -> int:
        """Append rows of float32 or uint32, which are aligned to four bytes; returns the index of their accessor."""
        data = np.ascontiguousarray(array).tobytes()
        self.views.append(gltf.BufferView(buffer=0, byteOffset=self.size, byteLength=len(data), target=target))
        self.accessors.append(
            gltf.Accessor(
                bufferView=len(self.views) - 1,
                componentType={"f": gltf.FLOAT, "u": gltf.UNSIGNED_INT}[array.dtype.kind],
                count=len(array),
                type={1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}[array[0].size],
                min=np.atleast_1d(array.min(0)).tolist() if bounds else None,
                max=np.atleast_1d(array.max(0)).tolist() if bounds else None,
            )
        )
        self._append(data)
        return len(self.accessors) - 1

    def add_picture(self, png: bytes) -> int:
        """Append a PNG, padded to four bytes; returns the index of its view."""
        self.views.append(gltf.BufferView(buffer=0, byteOffset=self.size, byteLength=len(png)))
        self._append(png + b"\0" * (-len(png) % 4))
        return len(self.views) - 1

    def _append(self, data: bytes) -> None:
        self.blocks.append(data)
        self.size += len(data)


def write_glb(path: Path, shape: Shape, morphs: Morphs, motion: Motion, *, focal_px: float | None, name: str) -> None:
    """Write a scene of a node "head" with the mesh, and a node "camera" if `focal_px` (of the crop) is given.

    The head's motion is that of the node, so that normals rotate with it; other motion is in morph targets. Two or more
    frames make one animation, interpolated linearly; without playback, the first frame is shown.
    """
    store = _Store()
    model = gltf.GLTF2(
        asset=gltf.Asset(version="2.0", generator=f"expportrait {__version__}"),
        scene=0,
        scenes=[gltf.Scene(nodes=[0] if focal_px is None else [0, 1])],
        nodes=[
            gltf.Node(
                name="head",
                mesh=0,
                rotation=quaternions(motion.rotations)[0].tolist(),
                translation=motion.translations[0].tolist(),
            )
        ],
        meshes=[_mesh(store, shape, morphs)],
        materials=[_skin(shape)],
    )
    if shape.detail is not None:
        pictures = {"detail": shape.detail.image}
        if shape.detail.colours is not None:
            # The second texture, as `_skin` refers to it.
            pictures["colours"] = shape.detail.colours
        model.images = [
            gltf.Image(name=name, mimeType="image/png", bufferView=store.add_picture(_png(picture)))
            for name, picture in pictures.items()
        ]
        model.samplers = [
            gltf.Sampler(
                magFilter=gltf.LINEAR, minFilter=gltf.LINEAR_MIPMAP_LINEAR, wrapS=CLAMP_TO_EDGE, wrapT=CLAMP_TO_EDGE
            )
        ]
        model.textures = [gltf.Texture(source=source, sampler=0) for source in range(len(pictures))]
        model.materials.append(_skin(shape, gltf.NormalMaterialTexture(index=0)))
    if len(motion.times_s) > 1:
        model.animations = [_animation(store, motion, name)]
    if focal_px is not None:
        model.cameras = [_camera(focal_px)]
        model.nodes.append(gltf.Node(name="camera", camera=0))
    model.buffers = [gltf.Buffer(byteLength=store.size)]
    model.bufferViews, model.accessors = store.views, store.accessors
    model.set_binary_blob(b"".join(store.blocks))
    with path.open("wb") as file:
        file.writelines(model.save_to_bytes())


def _png(picture: UInt8[np.ndarray, "R R 3"]) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()


def _skin(shape: Shape, detail: gltf.NormalMaterialTexture | None = None) -> gltf.Material:
    return gltf.Material(
        name="skin" if detail is None else "skin with detail",
        pbrMetallicRoughness=gltf.PbrMetallicRoughness(
            # It is multiplied by vertex colours; without them, white would be too bright.
            baseColorFactor=[0.6, 0.6, 0.6, 1.0] if shape.colours is None else [1.0] * 4,
            metallicFactor=0.0,
            roughnessFactor=0.8,
            baseColorTexture=gltf.TextureInfo(index=1) if detail is not None and has_colours(shape) else None,
        ),
        normalTexture=detail,
        # The bust is open below, and so is the mouth.
        doubleSided=True,
        alphaCutoff=None,
    )


def has_colours(shape: Shape) -> bool:
    """True if the mesh has a texture of colours."""
    return shape.detail is not None and shape.detail.colours is not None


def quaternions(rotations: Float[np.ndarray, "T 3 3"]) -> Float32[np.ndarray, "T 4"]:
    """Unit quaternions (x, y, z, w), with the sign that is nearest to the one before.

    Otherwise players that interpolate components would rotate by the longer way.
    """
    turns = logarithm(rotations)
    angle = np.linalg.norm(turns, axis=-1, keepdims=True)
    q = np.concatenate([turns / 2 * np.sinc(angle / (2 * np.pi)), np.cos(angle / 2)], -1)
    flips = np.where((q[1:] * q[:-1]).sum(-1) < 0, -1.0, 1.0)
    q[1:] *= np.cumprod(flips)[:, None]
    return q.astype(np.float32)


def linear_colours(srgb: UInt8[np.ndarray, "V 3"]) -> Float32[np.ndarray, "V 3"]:
    """Convert sRGB to linear light, 0..1 (IEC 61966-2-1), as glTF requires at vertices."""
    x = srgb / 255.0
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _mesh(store: _Store, shape: Shape, morphs: Morphs) -> gltf.Mesh:
    def vertices(array: np.ndarray, *, bounds: bool = False) -> int:
        return store.add(array, target=gltf.ARRAY_BUFFER, bounds=bounds)

    normals = normals_of(shape.verts, shape.faces)
    shared = {"POSITION": vertices(shape.verts, bounds=True), "NORMAL": vertices(normals)}
    coloured = {} if shape.colours is None else {"COLOR_0": vertices(linear_colours(shape.colours))}
    targets: list[Any] = [
        {
            "POSITION": vertices(offset, bounds=True),
            "NORMAL": vertices(normals),
        }
        for offset, normals in zip(morphs.offsets, morphs.normals, strict=True)
    ]
    # Triangles that the photo does not show are not in the normal map: they get the plain material.
    parts = [(np.ones(len(shape.faces), bool), gltf.Attributes(**shared, **coloured))]
    if shape.detail is not None:
        shared |= {"TEXCOORD_0": vertices(shape.detail.places), "TANGENT": vertices(shape.detail.tangents)}
        # Vertex colours would be multiplied with the texture.
        mapped = gltf.Attributes(**shared, **({} if has_colours(shape) else coloured))
        parts = [(~shape.detail.shown, parts[0][1]), (shape.detail.shown, mapped)]
    primitives = [
        gltf.Primitive(
            attributes=own,
            indices=store.add(shape.faces[part].astype(np.uint32).reshape(-1), target=gltf.ELEMENT_ARRAY_BUFFER),
            material=material,
            targets=targets,
        )
        for material, (part, own) in enumerate(parts)
        if part.any()
    ]
    return gltf.Mesh(
        name="head",
        primitives=primitives,
        weights=morphs.rest.tolist(),
        extras={"targetNames": list(morphs.names)} if targets else {},
    )


def _animation(store: _Store, motion: Motion, name: str) -> gltf.Animation:
    tracks = {"rotation": quaternions(motion.rotations), "translation": motion.translations.astype(np.float32)}
    if motion.weights.size:
        tracks["weights"] = motion.weights.reshape(-1)
    times = store.add(motion.times_s, bounds=True)
    samplers, channels = [], []
    for index, (track, values) in enumerate(tracks.items()):
        samplers.append(gltf.AnimationSampler(input=times, output=store.add(values), interpolation="LINEAR"))
        target = gltf.AnimationChannelTarget(node=0, path=track)
        channels.append(gltf.AnimationChannel(sampler=index, target=target))
    return gltf.Animation(name=name, samplers=samplers, channels=channels)


def _camera(focal_px: float) -> gltf.Camera:
    perspective = gltf.Perspective(
        aspectRatio=1.0, yfov=2 * math.atan(CROP_SIZE / 2 / focal_px), znear=NEAR_M, zfar=FAR_M
    )
    return gltf.Camera(name="camera", type="perspective", perspective=perspective)
