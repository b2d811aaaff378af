"""From vertices in the camera to normals, depth and mask, and normals as 8-bit RGB.

The one place that knows the convention of normal maps. Every generator's manifest names it, because a model that was
trained with another one fails without a word.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, UInt8
from torch import Tensor

from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.render.antialias import antialias as blend_silhouettes
from expportrait_cli.render.rasterizer import Backend, interpolate, rasterize

CONVENTION = "camera space; x right, y up, z to the viewer; rgb = round(127.5 n + 127.5); background 128,128,128"
BACKGROUND = (128, 128, 128)


def encode(normals: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Turn unit normals, and zero for background, into RGB. A normal to the viewer is (128, 128, 255)."""
    return np.clip(np.rint(normals * 127.5 + 127.5), 0, 255).astype(np.uint8)


def decode(rgb: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """Turn RGB back into normals, each component to 1/127. Background is exactly zero; nothing is normalised."""
    normals = (rgb.astype(np.float32) - 127.5) / 127.5
    return np.where((rgb == 128).all(-1, keepdims=True), np.float32(0), normals)


@dataclass(frozen=True)
class Buffers:
    """What a camera sees, `n` frames."""

    normals: Float32[Tensor, "n H W 3"]
    """x right, y up, z to the viewer; unit length, zero in the background, between the two at a blended edge."""
    depth: Float32[Tensor, "n H W"]
    """Distance along the optical axis, m; zero in the background; never blended."""
    mask: Float32[Tensor, "n H W"]
    """Covered share of the pixel."""


def render_buffers(
    verts_cam: Float32[Tensor, "n V 3"],
    faces: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    antialias: bool = True,
    edges: mesh.Edges | None = None,
    backend: Backend | None = None,
) -> Buffers:
    """Render smooth normals, depth and mask.

    Differentiable in `verts_cam`: normals and depth everywhere, silhouettes only with `antialias`. A caller who
    renders one topology often passes its `edges`, which are otherwise found anew in each call.
    """
    pos = camera.clip(verts_cam)
    rast = rasterize(pos, faces, (camera.height, camera.width), backend=backend)
    attr = torch.cat([mesh.vertex_normals(verts_cam, faces), verts_cam[..., 2:]], -1)
    normals_cam, depth = interpolate(attr, rast, faces, backend=backend).split([3, 1], -1)
    covered = (rast[..., 3:] > 0).to(attr.dtype)
    # Both axes that OpenCV points down and away turn round: y up, z to the viewer.
    normals = mesh.normalize(normals_cam) * normals_cam.new_tensor([1.0, -1.0, -1.0])
    image = torch.cat([normals, covered], -1)
    if antialias:
        image = blend_silhouettes(image, rast, pos, edges or mesh.edges(faces))
    return Buffers(image[..., :3], depth[..., 0], image[..., 3])
