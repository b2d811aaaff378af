"""The photo taken apart: foreground without background, background without foreground, and the mesh that carries it."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float32, UInt8

from expportrait_cli.generate.diffuse import diffuse
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel
from expportrait_cli.render.rasterizer import rasterize

PLATE_MARGIN = 0.03
"""Matte above which a pixel may hold some of the person, so that it never shows in the background plate."""
DEPTH_SLACK_M = 0.006
NONE = 255
"""Part of a pixel that shows no mesh."""


@dataclass(frozen=True)
class Layers:
    """A photo prepared for one canvas; images are float32, 0..255."""

    camera: Camera
    photo: UInt8[np.ndarray, "H W 3"]
    foreground: UInt8[np.ndarray, "H W 3"]
    """The person without the background's share at soft edges, extended beyond the outline."""
    alpha: Float32[np.ndarray, "H W"]
    plate: UInt8[np.ndarray, "H W 3"]
    """The background where nobody stands, filled in."""
    xy: Float32[np.ndarray, "V 2"]
    """Where each vertex of the fitted head lies in the photo, canvas px."""
    depth: Float32[np.ndarray, " V"]
    cosine: Float32[np.ndarray, " V"]
    """Of the angle between each vertex normal and the view."""
    zbuffer: Float32[np.ndarray, "H W"]
    """Depth of the fitted head, far where there is none; dilated by one pixel."""
    part: UInt8[np.ndarray, "H W"]
    """Part of the head at each pixel of the photo, 255 where there is none."""


def draw(verts_cam: Float32[np.ndarray, "V 3"], faces: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Rasterise one mesh on the canvas: [1, H, W, 4]."""
    clip = camera.clip(torch.from_numpy(np.ascontiguousarray(verts_cam)))[None]
    return rasterize(clip, faces, (camera.height, camera.width))


def triangle_ids(rast: torch.Tensor) -> np.ndarray:
    """Triangle of each pixel, -1 where there is none."""
    return rast[0, ..., 3].numpy().astype(np.int32) - 1


def triangle_parts(head: HeadModel) -> UInt8[np.ndarray, " F"]:
    """Part of each triangle: skin wins where parts meet, as it does for vertices."""
    return head.parts.numpy()[head.dense_faces.numpy()].max(1)


def parts_drawn(rast: torch.Tensor, triangle_part: UInt8[np.ndarray, " F"]) -> UInt8[np.ndarray, "H W"]:
    """Part at each pixel, NONE in the background."""
    ids = triangle_ids(rast)
    return np.where(ids >= 0, triangle_part[np.maximum(ids, 0)], NONE).astype(np.uint8)


def unmix(
    photo: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"], plate: Float32[np.ndarray, "H W 3"]
) -> Float32[np.ndarray, "H W 3"]:
    """Colour of the person alone: the background's share is taken out of soft pixels, thin ones are extended."""
    solid = np.clip((alpha - 0.5) / 0.4, 0, 1)
    clean = (photo - (1 - alpha[..., None]) * plate) / np.maximum(alpha[..., None], 0.5)
    extended = diffuse(photo, (alpha > 0.95).astype(np.float32))
    return np.clip(solid[..., None] * clean + (1 - solid[..., None]) * extended, 0, 255)


def background_plate(
    photo: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"]
) -> Float32[np.ndarray, "H W 3"]:
    """The photo with the person filled from around them; nothing of the person may seed the fill."""
    person = cv2.dilate((alpha > PLATE_MARGIN).astype(np.uint8), np.ones((7, 7), np.uint8))
    filled = diffuse(photo, 1.0 - person.astype(np.float32))
    smooth = cv2.GaussianBlur(filled, (0, 0), 4.0)
    blend = cv2.GaussianBlur(person.astype(np.float32), (0, 0), 1.5)[..., None] * person[..., None]
    return photo * (1 - blend) + smooth * blend


def prepare(
    photo: UInt8[np.ndarray, "H W 3"],
    alpha: Float32[np.ndarray, "H W"],
    verts_cam: Float32[np.ndarray, "V 3"],
    head: HeadModel,
    camera: Camera,
) -> Layers:
    """Take the photo on its canvas apart along its matte and the fitted head."""
    image = photo.astype(np.float32)
    plate = background_plate(image, alpha)
    foreground = unmix(image, alpha, plate)
    verts = torch.from_numpy(verts_cam)
    faces = head.dense_faces.int()
    rast = draw(verts_cam, faces, camera)
    ids = triangle_ids(rast)
    first = faces.numpy()[np.maximum(ids, 0), 0]
    depth = np.where(ids >= 0, verts_cam[first, 2], 1e3).astype(np.float32)
    part = parts_drawn(rast, triangle_parts(head))
    view = torch.nn.functional.normalize(verts, dim=-1)
    cosine = -(vertex_normals(verts, faces) * view).sum(-1)
    return Layers(
        camera=camera,
        photo=photo,
        foreground=np.rint(foreground).astype(np.uint8),
        alpha=alpha,
        plate=np.rint(plate).clip(0, 255).astype(np.uint8),
        xy=camera.project(verts).numpy(),
        depth=verts_cam[:, 2].copy(),
        cosine=cosine.numpy(),
        zbuffer=cv2.dilate(depth, np.ones((3, 3), np.uint8)),
        part=part,
    )
