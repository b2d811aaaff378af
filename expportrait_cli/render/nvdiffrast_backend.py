"""nvdiffrast as a backend, for CUDA machines on which the user has built it.

Its `antialias` is not used: at 40k triangles it keeps only a tenth of the silhouette's gradient.
"""

from functools import cache

import nvdiffrast.torch as dr  # pyright: ignore[reportMissingImports]
import torch
from jaxtyping import Float32, Int32
from torch import Tensor


@cache
def _context(device: torch.device) -> "dr.RasterizeCudaContext":
    """Keep one context per device: its buffers are expensive to allocate."""
    return dr.RasterizeCudaContext(device=device)


def rasterize(
    pos: Float32[Tensor, "n V 4"], tri: Int32[Tensor, "F 3"], resolution: tuple[int, int]
) -> Float32[Tensor, "n H W 4"]:
    """See `rasterizer.rasterize`."""
    rast, _ = dr.rasterize(_context(pos.device), pos, tri, resolution=resolution, grad_db=False)
    return rast


def interpolate(
    attr: Float32[Tensor, "n V C"], rast: Float32[Tensor, "n H W 4"], tri: Int32[Tensor, "F 3"]
) -> Float32[Tensor, "n H W C"]:
    """See `rasterizer.interpolate`."""
    image, _ = dr.interpolate(attr, rast, tri)
    return image
