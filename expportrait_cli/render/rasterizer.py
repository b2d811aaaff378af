"""The rasteriser's contract, and choice of its backend.

`pos` is clip space with w > 0, image row 0 at y_ndc = -1 (`Camera.clip`). `rast` is (u, v, z/w, id + 1) at
pixel centres, background zero; u and v are the perspective-correct weights of a triangle's first and second
vertex. The nearest triangle wins, ties go to the lowest id, nothing is culled by its facing. Triangles with a
vertex at w <= 0 and fragments outside -1 <= z/w <= 1 are dropped.

Gradients pass through u and v only: z/w and the id are constants, depth is an interpolated attribute, and
`buffers.blend_silhouettes` provides the gradients of silhouettes.
"""

import logging
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float32, Int
from torch import Tensor

from expportrait_cli.errors import UsageError, one_line
from expportrait_cli.runtime import best_device

log = logging.getLogger(__name__)

Backend = Literal["warp", "nvdiffrast", "reference"]


def choose(device: torch.device) -> tuple[Backend, str]:
    """Name of the fastest backend that works on a device, and the reason, as text for the user."""
    if device.type != "cuda":
        return "warp", "Warp on the CPU"
    if find_spec("nvdiffrast") is None:
        return "warp", "Warp on CUDA; nvdiffrast is not installed"
    fault = _fault(str(device))
    if fault:
        return "warp", f"Warp on CUDA; nvdiffrast is installed and does not work: {fault}"
    return "nvdiffrast", "nvdiffrast is installed and draws"


@cache
def _fault(device: str) -> str:
    """Error of nvdiffrast when it draws a triangle, forward and backward, on a device; empty if it works.

    The package may be installed although its compiled part fits neither this torch nor this GPU.
    """
    try:
        from expportrait_cli.render import nvdiffrast_backend

        tried(nvdiffrast_backend, torch.device(device))
    except (ImportError, OSError, RuntimeError) as error:
        fault = one_line(error)
        log.warning("nvdiffrast is installed and does not work (%s): Warp draws instead.", fault)
        return fault
    return ""


def tried(backend: Any, device: torch.device) -> float:
    """Draw a triangle, and return the largest gradient at its corners; raises RuntimeError if it is 0 or infinite."""
    corners = [[-0.9, -0.9, 0.0, 1.0], [0.9, -0.9, 0.1, 1.0], [0.0, 0.9, 0.2, 1.0]]
    pos = torch.tensor([corners], device=device, requires_grad=True)
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32, device=device)
    image = backend.interpolate(pos[..., :3].detach().contiguous(), backend.rasterize(pos, faces, (16, 16)), faces)
    (gradient,) = torch.autograd.grad(image.square().sum(), pos)
    largest = float(gradient.abs().max())
    if not 0 < largest < float("inf"):
        raise RuntimeError(f"the gradient of a triangle is {largest}")
    return largest


def working_device(tensor: Tensor) -> torch.device:
    """Device that a tensor is drawn on: its own GPU, else the best device."""
    return tensor.device if tensor.device.type != "cpu" else best_device()


def rasterize(
    pos: Float32[Tensor, "n V 4"],
    tri: Int[Tensor, "F 3"],
    resolution: tuple[int, int],
    *,
    backend: Backend | None = None,
) -> Float32[Tensor, "n H W 4"]:
    """Find the nearest triangle at each pixel centre. `resolution` is (height, width).

    Without `backend`, `choose` picks it for the working device, to which tensors in main memory are copied; result and
    gradient are copied back.

    Raises:
        UsageError: the mesh has 2^24 triangles or more.
    """
    # The id is stored as float32, in which integers are exact only up to 2^24.
    if len(tri) >= 2**24:
        raise UsageError(f"The mesh has {len(tri)} triangles; at most {2**24 - 1} can be rasterised.")
    home, device = pos.device, pos.device if backend else working_device(pos)
    pos, tri = pos.to(device), tri.to(device)
    match backend or choose(device)[0]:
        case "warp":
            from expportrait_cli.render import warp_backend as chosen
        case "nvdiffrast":
            from expportrait_cli.render import nvdiffrast_backend as chosen
        case "reference":
            from expportrait_cli.render import reference as chosen
    return chosen.rasterize(pos.contiguous(), tri.int().contiguous(), resolution).to(home)


def interpolate(
    attr: Float32[Tensor, "n V C"],
    rast: Float32[Tensor, "n H W 4"],
    tri: Int[Tensor, "F 3"],
    *,
    backend: Backend | None = None,
) -> Float32[Tensor, "n H W C"]:
    """Interpolate vertex attributes at the pixels of `rast`; background is zero."""
    home, device = attr.device, attr.device if backend else working_device(attr)
    attr, rast, tri = attr.to(device), rast.to(device), tri.to(device)
    match backend or choose(device)[0]:
        case "warp":
            from expportrait_cli.render import warp_backend as chosen
        case "nvdiffrast":
            from expportrait_cli.render import nvdiffrast_backend as chosen
        case "reference":
            from expportrait_cli.render import reference as chosen
    return chosen.interpolate(attr.contiguous(), rast.contiguous(), tri.int().contiguous()).to(home)
