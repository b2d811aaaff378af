"""The rasteriser's contract, and which backend serves it.

`pos` is clip space with w > 0, image row 0 at y_ndc = -1 (`Camera.clip`). `rast` is (u, v, z/w, id + 1) at
pixel centres, background zero; u and v are the perspective-correct weights of a triangle's first and second
vertex. The nearest triangle wins, ties go to the lowest id, nothing is culled by its facing. Triangles with a
vertex at w <= 0 and fragments outside -1 <= z/w <= 1 are dropped.

Gradients pass through u and v only: z/w and the id are constants, depth is an interpolated attribute, and
what happens at silhouettes is the business of `buffers.blend_silhouettes`.
"""

from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from expportrait_cli.errors import UsageError

Backend = Literal["warp", "nvdiffrast", "reference"]


def choose(device: torch.device) -> tuple[Backend, str]:
    """Name the fastest installed backend for a device, and say why in words for the user."""
    if device.type != "cuda":
        return "warp", "Warp on the CPU"
    if find_spec("nvdiffrast") is not None:
        return "nvdiffrast", "nvdiffrast is installed"
    return "warp", "Warp on CUDA; nvdiffrast is not installed"


@cache
def _nvdiffrast(device: torch.device) -> tuple[Any, Any]:
    """The library, which its users build themselves, and one context per device: its buffers are expensive to allocate.

    Its `antialias` is not used: at 40k triangles only a tenth of the silhouette's gradient survives its rule.
    """
    import nvdiffrast.torch as library  # pyright: ignore[reportMissingImports]

    return library, library.RasterizeCudaContext(device=device)


def rasterize(
    pos: Float32[Tensor, "n V 4"],
    tri: Int[Tensor, "F 3"],
    resolution: tuple[int, int],
    *,
    backend: Backend | None = None,
) -> Float32[Tensor, "n H W 4"]:
    """Find the nearest triangle at each pixel centre. `resolution` is (height, width).

    Without `backend` the device decides (`choose`).
    """
    # The id travels as float32, which counts exactly only that far.
    if len(tri) >= 2**24:
        raise UsageError(f"The mesh has {len(tri)} triangles; at most {2**24 - 1} can be rasterised.")
    pos, tri = pos.contiguous(), tri.int().contiguous()
    match backend or choose(pos.device)[0]:
        case "nvdiffrast":
            library, context = _nvdiffrast(pos.device)
            return library.rasterize(context, pos, tri, resolution=resolution, grad_db=False)[0]
        case "warp":
            from expportrait_cli.render import warp_backend as chosen
        case "reference":
            from expportrait_cli.render import reference as chosen
    return chosen.rasterize(pos, tri, resolution)


def interpolate(
    attr: Float32[Tensor, "n V C"],
    rast: Float32[Tensor, "n H W 4"],
    tri: Int[Tensor, "F 3"],
    *,
    backend: Backend | None = None,
) -> Float32[Tensor, "n H W C"]:
    """Spread vertex attributes over the pixels of `rast`; background is zero."""
    attr, rast, tri = attr.contiguous(), rast.contiguous(), tri.int().contiguous()
    match backend or choose(attr.device)[0]:
        case "nvdiffrast":
            return _nvdiffrast(attr.device)[0].interpolate(attr, rast, tri)[0]
        case "warp":
            from expportrait_cli.render import warp_backend as chosen
        case "reference":
            from expportrait_cli.render import reference as chosen
    return chosen.interpolate(attr, rast, tri)
