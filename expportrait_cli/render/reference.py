"""The rasteriser in plain torch: every triangle against every pixel. Slow; the reference of the tests.

Homogeneous edge functions after Olano and Greer, "Triangle scan conversion using 2D homogeneous
coordinates" (1997): with vertices h = (x, y, w) and the pixel P = (x_ndc, y_ndc, 1), the weight of vertex 0
is det(h1, h2, P) / det(h0, h1, h2), already divided by the w of the pixel.
"""

import torch
from jaxtyping import Float32, Float64, Int32
from torch import Tensor

# Both backends count a pixel centre this far outside an edge as inside, so that rounding leaves no holes.
EDGE_SLACK = 1e-9
# Depths that agree to this many steps per unit of z/w are a tie.
DEPTH_STEPS = 2**30


def rasterize(
    pos: Float32[Tensor, "n V 4"], tri: Int32[Tensor, "F 3"], resolution: tuple[int, int]
) -> Float32[Tensor, "n H W 4"]:
    """See `rasterizer.rasterize`. Memory grows with triangles times pixels."""
    return torch.stack([_rasterize_one(frame.double(), tri.long(), resolution) for frame in pos])


def interpolate(
    attr: Float32[Tensor, "n V C"], rast: Float32[Tensor, "n H W 4"], tri: Int32[Tensor, "F 3"]
) -> Float32[Tensor, "n H W C"]:
    """See `rasterizer.interpolate`."""
    face = (rast[..., 3].long() - 1).clamp(min=0)
    u, v = rast[..., 0:1], rast[..., 1:2]
    images = []
    for frame in range(len(attr)):
        a, b, c = attr[frame][tri.long()[face[frame]]].unbind(-2)
        images.append(u[frame] * a + v[frame] * b + (1 - u[frame] - v[frame]) * c)
    return torch.where(rast[..., 3:] > 0, torch.stack(images), 0.0)


def _rasterize_one(pos: Float64[Tensor, "V 4"], tri: Tensor, resolution: tuple[int, int]) -> Float32[Tensor, "H W 4"]:
    height, width = resolution
    y, x = torch.meshgrid(
        (torch.arange(height, dtype=pos.dtype, device=pos.device) + 0.5) * 2 / height - 1,
        (torch.arange(width, dtype=pos.dtype, device=pos.device) + 0.5) * 2 / width - 1,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)
    with torch.no_grad():
        corners = pos[tri]
        weights = torch.einsum("fka,pa->fpk", _edge_planes(corners[..., [0, 1, 3]]), pixels)
        depth = (weights * corners[:, None, :, 2]).sum(-1)
        inside = (weights >= -EDGE_SLACK * weights.sum(-1, keepdim=True)).all(-1) & (depth.abs() <= 1)
        inside &= (corners[..., 3] > 0).all(-1)[:, None]
        step = torch.where(inside, ((depth + 1) * DEPTH_STEPS).nan_to_num().long(), 2**62)
        # argmin does not guarantee the first of equal values, so the id is compared too.
        nearest = step.min(0).values
        ids = torch.arange(len(tri), device=pos.device)[:, None]
        face = torch.where(step == nearest, ids, len(tri)).min(0).values
        covered = nearest < 2**62
        face = torch.where(covered, face, 0)
    weights = (_edge_planes(pos[tri[face]][..., [0, 1, 3]]) * pixels[:, None]).sum(-1)
    share = weights / weights.sum(-1, keepdim=True)
    z = depth.gather(0, face[None])[0]
    rast = torch.stack([share[:, 0], share[:, 1], z, face + 1.0], -1)
    return torch.where(covered[:, None], rast, 0.0).float().reshape(height, width, 4)


def _edge_planes(h: Float64[Tensor, "m 3 3"]) -> Float64[Tensor, "m 3 3"]:
    """Rows whose dot product with a pixel gives each vertex's weight over w; infinite for a triangle seen edge-on."""
    a, b, c = h.unbind(-2)
    planes = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -2)
    return planes / (a * planes[:, 0]).sum(-1)[:, None, None]
