import math

import torch
from torch import Tensor


def sphere(rings: int, sectors: int) -> tuple[Tensor, Tensor]:
    """Unit sphere whose faces look outwards in right-handed axes."""
    polar, around = torch.meshgrid(
        torch.linspace(0, math.pi, rings + 1)[1:-1], torch.arange(sectors) * (2 * math.pi / sectors), indexing="ij"
    )
    ring = torch.stack([polar.sin() * around.cos(), -polar.cos(), polar.sin() * around.sin()], -1)
    verts = torch.cat([ring.reshape(-1, 3), torch.tensor([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0]])])
    near = torch.arange((rings - 2) * sectors).reshape(rings - 2, sectors)
    beside = near.roll(-1, 1)
    first = torch.arange(sectors)
    last = first + (rings - 2) * sectors
    parts = [
        torch.stack([near, near + sectors, beside], -1).reshape(-1, 3),
        torch.stack([beside, near + sectors, beside + sectors], -1).reshape(-1, 3),
        torch.stack([torch.full_like(first, len(verts) - 2), first, first.roll(-1)], -1),
        torch.stack([torch.full_like(first, len(verts) - 1), last.roll(-1), last], -1),
    ]
    return verts, torch.cat(parts).int()


def soup(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Overlapping triangles in clip space that reach over the border, each second one a copy of the one before."""
    centre = torch.rand(count, 1, 3, generator=generator) * 2 - 1
    ndc = centre + (torch.rand(count, 3, 3, generator=generator) - 0.5) * torch.tensor([0.8, 0.8, 0.2])
    ndc[1::2] = ndc[0::2]
    w = torch.rand(count, 3, 1, generator=generator) + 0.5
    w[1::2] = w[0::2]
    pos = torch.cat([ndc * w, w], -1).reshape(1, -1, 4)
    return pos, torch.arange(3 * count).reshape(-1, 3).int()
