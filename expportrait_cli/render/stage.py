"""Normal maps of posed meshes (paper 3.3), from the photo's camera or from another viewpoint."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import RenderConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.rotations import matrix
from expportrait_cli.render.buffers import Bump, encode, render_buffers

_LIMITS_DEG = {"yaw": 180.0, "pitch": 90.0, "roll": 180.0}


@dataclass(frozen=True)
class Viewpoint:
    """Angles of the camera around the head, at the first and at the last frame, degrees."""

    yaw: tuple[float, float] = (0.0, 0.0)
    """Positive moves the camera to the right of the picture."""
    pitch: tuple[float, float] = (0.0, 0.0)
    """Positive moves the camera up."""
    roll: tuple[float, float] = (0.0, 0.0)
    """Positive turns the camera clockwise, and so the picture counter-clockwise."""

    def rotations(self, frame_count: int) -> Float32[Tensor, "T 3 3"]:
        """R_view_cam of each frame, evenly from the first to the last; one frame gets the first."""
        share = torch.linspace(0, 1, frame_count, dtype=torch.float64)[:, None]
        turns = []
        # The camera moves by yaw, then pitch, and then rolls: points are rotated by the inverses, in reverse order.
        for (start, end), axis in ((self.roll, (0, 0, -1)), (self.pitch, (1, 0, 0)), (self.yaw, (0, 1, 0))):
            angle_rad = (start + share * (end - start)) * (math.pi / 180)
            turns.append(matrix(angle_rad * torch.tensor(axis, dtype=torch.float64)))
        return (turns[0] @ turns[1] @ turns[2]).float()


def parse_view(text: str) -> Viewpoint:
    """Read a fixed viewpoint.

    Raises:
        UsageError: not of the form `yaw=20,pitch=5`, degrees.
    """
    angles = {name: _angle(name, value, text) for name, value in _settings(text).items()}
    return Viewpoint(**{name: (angle, angle) for name, angle in angles.items()})


def parse_orbit(text: str) -> Viewpoint:
    """Read a camera path from the first frame to the last; at least one angle is a range.

    Raises:
        UsageError: not of the form `yaw=-30..30,pitch=5`, degrees.
    """
    settings = _settings(text)
    if not any(".." in value for value in settings.values()):
        raise UsageError(f"{text!r} holds no range. Write an orbit as yaw=-30..30, or use `view` for a fixed angle.")
    ranges = {}
    for name, value in settings.items():
        start, _, end = value.partition("..") if ".." in value else (value, "", value)
        ranges[name] = (_angle(name, start, text), _angle(name, end, text))
    return Viewpoint(**ranges)


def turn(
    points_cam: Float[Tensor, "V 3"], R_view_cam: Float[Tensor, "3 3"], centre_cam: Float[Tensor, " 3"]
) -> Float[Tensor, "V 3"]:
    """Points in the frame of a camera that was rotated about `centre_cam`, which keeps its place in the picture."""
    return (points_cam - centre_cam) @ R_view_cam.T + centre_cam


def _settings(text: str) -> dict[str, str]:
    settings: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in _LIMITS_DEG or name in settings:
            raise UsageError(f"{text!r} is not a viewpoint. Write yaw, pitch and roll in degrees: yaw=20,pitch=5.")
        settings[name] = value
    return settings


def _angle(name: str, value: str, text: str) -> float:
    limit = _LIMITS_DEG[name]
    try:
        angle_deg = float(value)
    except ValueError:
        angle_deg = math.nan
    if not abs(angle_deg) <= limit:
        raise UsageError(f"{value!r} in {text!r} is not an angle: {name} takes -{limit:g} to {limit:g} degrees.")
    return angle_deg


@dataclass(frozen=True)
class NormalFrame:
    """Rendered maps of one frame."""

    normals: UInt8[np.ndarray, "H W 3"]
    """Normals as RGB, see `buffers.encode`."""
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
    """Render the frames one by one (lazily).

    `viewpoint` moves the crop's camera around the head's centre; without it the camera is the photo's.
    """
    camera = Camera.of_crop(meshes.focal_px, CROP_SIZE, config.size)
    faces = torch.from_numpy(meshes.faces).to(device, torch.int32)
    edges = mesh.edges(faces) if config.antialias else None
    scale = config.size / CROP_SIZE
    relief = meshes.relief if config.detail else meshes.relief.bare
    bump = Bump.of(relief, scale=scale, device=device)
    rotations = (viewpoint or Viewpoint()).rotations(meshes.frame_count).to(faces.device)
    centres_cam = torch.from_numpy(meshes.curves.translation).to(faces.device)
    for verts, R_view_cam, centre_cam in zip(meshes.frames(), rotations, centres_cam, strict=True):
        # Not around the `yield`: the mode would then be active in the caller's code.
        with torch.inference_mode():
            verts_cam = turn(torch.from_numpy(verts).to(faces.device), R_view_cam, centre_cam)
            buffers = render_buffers(verts_cam[None], faces, camera, antialias=config.antialias, edges=edges, bump=bump)
            mask = (buffers.mask[0] * 255).round().to(torch.uint8)
        yield NormalFrame(encode(buffers.normals[0].cpu().numpy()), buffers.depth[0].cpu().numpy(), mask.cpu().numpy())


def preview(frame: UInt8[np.ndarray, "H W 3"], normals: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H 2*W 3"]:
    """Put a frame of the driver and its normal map side by side."""
    return np.concatenate([frame, normals], axis=1)
