"""A curved sheet whose vertices lie on rays through pixel centres, so that pictures are read at them exactly."""

import numpy as np
import torch

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.fitting.patch import Patch, PosedPatch, Surface
from expportrait_cli.geometry.mesh import vertex_normals

PICTURE_SIZE = 256
PITCH_PX = CROP_SIZE // PICTURE_SIZE
FOCAL_PX, DEPTH_M = 1200.0, 1.2
"""Vertices lie 2 mm apart, as on the default head."""


def sheet(side: int, rim: int = 2) -> Patch:
    """A square of side x side vertices; the outermost `rim` rings do not move."""
    near = np.arange(side * side).reshape(side, side)
    a, b, c, d = near[:-1, :-1], near[:-1, 1:], near[1:, 1:], near[1:, :-1]
    faces = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, c, b), (a, d, c))])
    mask = np.zeros((side, side), np.float32)
    mask[rim : side - rim, rim : side - rim] = 1
    return Patch(np.arange(side * side), torch.from_numpy(faces), torch.from_numpy(mask.ravel()))


def pixels(side: int) -> torch.Tensor:
    """Column and row of each vertex in a picture, [P,2]."""
    first = (PICTURE_SIZE - side) // 2
    row, column = torch.meshgrid(*[torch.arange(first, first + side)] * 2, indexing="ij")
    return torch.stack([column, row], -1).reshape(-1, 2)


def verts_of(side: int, frames: int, *, folds_m: float = 3e-4) -> torch.Tensor:
    """A dome with slanting folds that change from frame to frame, camera, float64 [T,P,3]."""
    ray = (pixels(side).double() + 0.5 - PICTURE_SIZE / 2) * PITCH_PX / FOCAL_PX
    x, y = (ray * DEPTH_M).unbind(-1)
    dome = 6.0 * (x * x + y * y)
    folds = [folds_m * torch.cos(2 * torch.pi * (x + 0.4 * y) / 0.009 + t) for t in range(frames)]
    z = DEPTH_M + dome + torch.stack(folds)
    return torch.cat([ray.expand(frames, -1, 2) * z[..., None], z[..., None]], -1)


def surface_of(patch: Patch, verts: torch.Tensor, offset: torch.Tensor) -> Surface:
    """The sheet as the losses see it; its place in the picture is each vertex's own pixel."""
    normals = vertex_normals(verts, patch.faces) * verts.new_tensor([1.0, -1.0, -1.0])
    px = (pixels(round(len(patch.vertices) ** 0.5)).to(verts) + 0.5) * PITCH_PX
    return Surface(offset, verts, lambda: normals, px.expand(len(verts), -1, 2))


def posed(patch: Patch, frames: int, *, folds_m: float = 3e-4) -> PosedPatch:
    """The sheet in float32, each frame turned in its plane against its canonical axes."""
    side = round(len(patch.vertices) ** 0.5)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.3, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    blend = torch.stack([torch.linalg.matrix_power(turn, t) for t in range(frames)])[:, None]
    verts = verts_of(side, frames, folds_m=folds_m).float()
    return PosedPatch(patch, verts, blend.expand(-1, side * side, 3, 3), FOCAL_PX)


def painted(values: torch.Tensor) -> torch.Tensor:
    """Pictures [T,C,H,W] that show [T,P,C] at the vertices, and nonsense elsewhere."""
    frames, points, channels = values.shape
    column, row = pixels(round(points**0.5)).unbind(-1)
    pictures = values.new_full((frames, channels, PICTURE_SIZE, PICTURE_SIZE), 9.0)
    pictures[:, :, row, column] = values.transpose(1, 2)
    return pictures
