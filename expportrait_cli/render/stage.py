"""Meshes in, normal maps out, frame by frame."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import RenderConfig
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.encode import encode
from expportrait_cli.render.viewpoint import Viewpoint, turn


@dataclass(frozen=True)
class NormalFrame:
    """What the camera sees in one frame."""

    normals: UInt8[np.ndarray, "H W 3"]
    """RGB as `encode` says."""
    depth: Float32[np.ndarray, "H W"]
    """Distance along the optical axis, m; zero in the background."""
    mask: UInt8[np.ndarray, "H W"]
    """Covered share of the pixel, 0 to 255."""


def render_normals(
    meshes: Meshes,
    config: RenderConfig,
    *,
    viewpoint: Viewpoint | None = None,
    device: torch.device | None = None,
) -> Iterator[NormalFrame]:
    """Render each frame as it is asked for.

    The crop's camera moves around the head's centre by `viewpoint`; without one it stays where it is.
    """
    camera = Camera.of_crop(meshes.focal_px, CROP_SIZE, config.size)
    faces = torch.from_numpy(meshes.faces).to(device, torch.int32)
    edges = mesh.edges(faces) if config.antialias else None
    rotations = (viewpoint or Viewpoint()).rotations(meshes.frame_count).to(faces.device)
    centres_cam = torch.from_numpy(meshes.curves.translation).to(faces.device)
    for verts, R_view_cam, centre_cam in zip(meshes.frames(), rotations, centres_cam, strict=True):
        # Not around the `yield`: the mode would stay switched on in the caller's code.
        with torch.inference_mode():
            verts_cam = turn(torch.from_numpy(verts).to(faces.device), R_view_cam, centre_cam)
            buffers = render_buffers(verts_cam[None], faces, camera, antialias=config.antialias, edges=edges)
            mask = (buffers.mask[0] * 255).round().to(torch.uint8)
        yield NormalFrame(encode(buffers.normals[0].cpu().numpy()), buffers.depth[0].cpu().numpy(), mask.cpu().numpy())


def preview(frame: UInt8[np.ndarray, "H W 3"], normals: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H 2*W 3"]:
    """Put a frame of the driver and its normal map side by side."""
    return np.concatenate([frame, normals], axis=1)
