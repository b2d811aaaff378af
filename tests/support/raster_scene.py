"""A small scene for every rasteriser, and what it draws of it."""

import torch
from torch import Tensor

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.render.rasterizer import interpolate, rasterize
from support.render_shapes import sphere

SIZE = (48, 64)


def scene() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clip positions, triangles, attributes, and the weights of a loss on the picture."""
    verts, faces = sphere(24, 36)
    # Off the pixel centres: rules at shared edges differ between rasterisers.
    spheres = [verts * 0.11 + torch.tensor([x, y, z]) for x, y, z in ((0.0137, 0.0071, 0.8), (0.0921, -0.0443, 0.7))]
    pos = Camera(300.0, 32.0, 24.0, 64, 48).clip(torch.cat(spheres)[None])
    generator = torch.Generator().manual_seed(0)
    attr = torch.rand(1, pos.shape[1], 3, generator=generator)
    weights = torch.rand(1, *SIZE, 3, generator=generator)
    return pos, torch.cat([faces, faces + len(verts)]), attr, weights


def gradients(
    backend, pos: Tensor, tri: Tensor, attr: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Raster, picture, and the loss's gradients by positions and attributes; on the CPU."""
    pos, attr = pos.clone().requires_grad_(), attr.clone().requires_grad_()
    rast = rasterize(pos, tri, SIZE, backend=backend)
    image = interpolate(attr, rast, tri, backend=backend)
    (image * weights).sum().backward()
    assert pos.grad is not None and attr.grad is not None
    return rast.detach().cpu(), image.detach().cpu(), pos.grad.cpu(), attr.grad.cpu()
