"""The rasteriser as Warp kernels, for the CPU and for CUDA.

On the CPU Warp runs a launch in one thread, in order: 40k triangles at 512 x 512 take a few milliseconds.
Weights and their gradients are computed in float64: it costs nothing here, and in float32 the gradient of
small triangles is wrong by some percent. The formulas are those of `reference`.

`no_type_check` keeps the type checker of the tests away from kernels, whose annotations belong to Warp.
"""

import logging
from typing import Any, no_type_check

import torch
import warp as wp
from jaxtyping import Float32, Int32
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from expportrait_cli.render.reference import DEPTH_STEPS, EDGE_SLACK
from expportrait_cli.runtime import silenced


def _start_warp() -> None:
    """Start Warp without output: it would print to stdout, which is for results.

    Its native library also prints a warning to stderr on every machine without a CUDA driver.
    """
    # Warp before 1.19 reads the first, later versions the second.
    wp.config.quiet = True  # pyright: ignore[reportAttributeAccessIssue]
    wp.config.log_level = logging.ERROR
    if torch.cuda.is_available():
        wp.init()
        return
    with silenced():
        wp.init()


_start_warp()
wp.set_module_options({"enable_backward": False})

SPAN = 32
"""Number of pixels of a row that one thread processes, to share the cost of loading the array descriptors."""
EMPTY = 2**63 - 1
_SPAN = wp.constant(SPAN)
_SLACK = wp.constant(wp.float64(EDGE_SLACK))
_STEPS = wp.constant(wp.float64(DEPTH_STEPS))
_ID_RANGE = wp.constant(wp.int64(2**31))
_EMPTY = wp.constant(wp.int64(EMPTY))
_ROUNDING = wp.constant(wp.float64(1e-6))


@no_type_check
@wp.func
def _corner(pos: wp.array3d(dtype=wp.float32), frame: int, vertex: int):
    return wp.vec3d(
        wp.float64(pos[frame, vertex, 0]), wp.float64(pos[frame, vertex, 1]), wp.float64(pos[frame, vertex, 3])
    )


@no_type_check
@wp.func
def _centre(index: int, count: int):
    """NDC coordinate of a pixel centre."""
    return (wp.float64(index) + wp.float64(0.5)) * wp.float64(2.0) / wp.float64(count) - wp.float64(1.0)


@no_type_check
@wp.kernel
def _project(pos: wp.array3d(dtype=wp.float32), height: int, width: int, screen: wp.array2d(dtype=wp.vec4d)):
    """Write each vertex as (column, row, z/w, 1/w) with pixel centres at whole numbers; 1/w is 0 behind the camera."""
    frame, vertex = wp.tid()
    h = _corner(pos, frame, vertex)
    inverse = wp.float64(0.0)
    if h[2] > wp.float64(0.0):
        inverse = wp.float64(1.0) / h[2]
    half = wp.float64(0.5)
    screen[frame, vertex] = wp.vec4d(
        (h[0] * inverse + wp.float64(1.0)) * half * wp.float64(width) - half,
        (h[1] * inverse + wp.float64(1.0)) * half * wp.float64(height) - half,
        wp.float64(pos[frame, vertex, 2]) * inverse,
        inverse,
    )


@no_type_check
@wp.func
def _within(place: wp.float64, count: int):
    """Clamp a coordinate to -1..count, so that it can be converted to an index."""
    return wp.clamp(place, wp.float64(-1.0), wp.float64(count))


@no_type_check
@wp.kernel
def _nearest(
    screen: wp.array2d(dtype=wp.vec4d),
    tri: wp.array2d(dtype=wp.int32),
    keys: wp.array3d(dtype=wp.int64),
):
    """Write to each pixel the smallest (depth, id) of the triangles that cover it."""
    frame, face = wp.tid()
    p0 = screen[frame, tri[face, 0]]
    p1 = screen[frame, tri[face, 1]]
    p2 = screen[frame, tri[face, 2]]
    zero, one = wp.float64(0.0), wp.float64(1.0)
    left = wp.max(int(wp.ceil(_within(wp.min(p0[0], wp.min(p1[0], p2[0])) - _ROUNDING, keys.shape[2]))), 0)
    right = int(wp.floor(_within(wp.max(p0[0], wp.max(p1[0], p2[0])) + _ROUNDING, keys.shape[2] - 1)))
    top = wp.max(int(wp.ceil(_within(wp.min(p0[1], wp.min(p1[1], p2[1])) - _ROUNDING, keys.shape[1]))), 0)
    bottom = int(wp.floor(_within(wp.max(p0[1], wp.max(p1[1], p2[1])) + _ROUNDING, keys.shape[1] - 1)))
    if left > right or top > bottom or not (p0[3] > zero and p1[3] > zero and p2[3] > zero):
        return
    a = p1 - p0
    b = p2 - p0
    area = a[0] * b[1] - a[1] * b[0]
    if not (wp.abs(area) > zero):
        return
    scale = one / area
    # The weights of the second and third corner are linear on the screen, and so is z/w.
    x1, y1 = b[1] * scale, -b[0] * scale
    x2, y2 = -a[1] * scale, a[0] * scale
    for row in range(top, bottom + 1):
        y = wp.float64(row) - p0[1]
        r1 = y1 * y
        r2 = y2 * y
        # A literal would be a constant for Warp.
        is_inside = int(0)  # noqa: RUF046, UP018
        for column in range(left, right + 1):
            x = wp.float64(column) - p0[0]
            w1 = x1 * x + r1
            w2 = x2 * x + r2
            if wp.min(wp.min(w1, w2), one - w1 - w2) >= -_SLACK:
                is_inside = 1
                z = p0[2] + w1 * a[2] + w2 * b[2]
                if wp.abs(z) <= one:
                    step = wp.int64((z + one) * _STEPS)
                    wp.atomic_min(keys, frame, row, column, step * _ID_RANGE + wp.int64(face))
            elif is_inside == 1:
                # The pixels of a triangle in a row are contiguous.
                break


@no_type_check
@wp.kernel
def _resolve(
    screen: wp.array2d(dtype=wp.vec4d),
    tri: wp.array2d(dtype=wp.int32),
    keys: wp.array3d(dtype=wp.int64),
    rast: wp.array3d(dtype=wp.vec4),
):
    """Write (u, v, z/w, id + 1) of each pixel's nearest triangle."""
    frame, row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, keys.shape[2])):
        key = keys[frame, row, column]
        if key == _EMPTY:
            rast[frame, row, column] = wp.vec4(0.0, 0.0, 0.0, 0.0)
            continue
        face = int(key % _ID_RANGE)
        p0 = screen[frame, tri[face, 0]]
        p1 = screen[frame, tri[face, 1]]
        p2 = screen[frame, tri[face, 2]]
        a = p1 - p0
        b = p2 - p0
        x = wp.float64(column) - p0[0]
        y = wp.float64(row) - p0[1]
        scale = wp.float64(1.0) / (a[0] * b[1] - a[1] * b[0])
        w1 = (b[1] * x - b[0] * y) * scale
        w2 = (a[0] * y - a[1] * x) * scale
        # Divided by w, and then by their sum, they are the perspective-correct weights.
        share0 = (wp.float64(1.0) - w1 - w2) * p0[3]
        share1 = w1 * p1[3]
        total = wp.float64(1.0) / (share0 + share1 + w2 * p2[3])
        z = p0[2] + w1 * a[2] + w2 * b[2]
        rast[frame, row, column] = wp.vec4(float(share0 * total), float(share1 * total), float(z), float(face + 1))


@no_type_check
@wp.func
def _add(grad: wp.array3d(dtype=wp.float32), frame: int, vertex: int, h: wp.vec3d):
    wp.atomic_add(grad, frame, vertex, 0, float(h[0]))
    wp.atomic_add(grad, frame, vertex, 1, float(h[1]))
    wp.atomic_add(grad, frame, vertex, 3, float(h[2]))


@no_type_check
@wp.kernel
def _rasterize_backward(
    pos: wp.array3d(dtype=wp.float32),
    tri: wp.array2d(dtype=wp.int32),
    rast: wp.array3d(dtype=wp.vec4),
    grad_rast: wp.array3d(dtype=wp.vec4),
    grad_pos: wp.array3d(dtype=wp.float32),
):
    frame, row, column = wp.tid()
    face = int(rast[frame, row, column][3]) - 1
    if face < 0:
        return
    grad_u = wp.float64(grad_rast[frame, row, column][0])
    grad_v = wp.float64(grad_rast[frame, row, column][1])
    if grad_u == wp.float64(0.0) and grad_v == wp.float64(0.0):
        return
    h0 = _corner(pos, frame, tri[face, 0])
    h1 = _corner(pos, frame, tri[face, 1])
    h2 = _corner(pos, frame, tri[face, 2])
    pixel = wp.vec3d(_centre(column, rast.shape[2]), _centre(row, rast.shape[1]), wp.float64(1.0))
    # u = a0 / (a0 + a1 + a2) with a0 = det(h1, h2, pixel), and so on around.
    a0 = wp.dot(wp.cross(h1, h2), pixel)
    a1 = wp.dot(wp.cross(h2, h0), pixel)
    total = a0 + a1 + wp.dot(wp.cross(h0, h1), pixel)
    both = (grad_u * a0 + grad_v * a1) / total
    g0 = (grad_u - both) / total
    g1 = (grad_v - both) / total
    g2 = -both / total
    p0 = wp.cross(h0, pixel)
    p1 = wp.cross(h1, pixel)
    p2 = wp.cross(h2, pixel)
    _add(grad_pos, frame, tri[face, 0], g2 * p1 - g1 * p2)
    _add(grad_pos, frame, tri[face, 1], g0 * p2 - g2 * p0)
    _add(grad_pos, frame, tri[face, 2], g1 * p0 - g0 * p1)


@no_type_check
@wp.kernel
def _interpolate(
    attr: wp.array3d(dtype=wp.float32),
    tri: wp.array2d(dtype=wp.int32),
    rast: wp.array3d(dtype=wp.vec4),
    image: wp.array4d(dtype=wp.float32),
):
    frame, row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, rast.shape[2])):
        here = rast[frame, row, column]
        face = int(here[3]) - 1
        if face < 0:
            continue
        for c in range(attr.shape[2]):
            image[frame, row, column, c] = (
                here[0] * attr[frame, tri[face, 0], c]
                + here[1] * attr[frame, tri[face, 1], c]
                + (1.0 - here[0] - here[1]) * attr[frame, tri[face, 2], c]
            )


@no_type_check
@wp.kernel
def _interpolate_backward(
    attr: wp.array3d(dtype=wp.float32),
    tri: wp.array2d(dtype=wp.int32),
    rast: wp.array3d(dtype=wp.vec4),
    grad_image: wp.array4d(dtype=wp.float32),
    grad_attr: wp.array3d(dtype=wp.float32),
    grad_rast: wp.array3d(dtype=wp.vec4),
):
    frame, row, column = wp.tid()
    here = rast[frame, row, column]
    face = int(here[3]) - 1
    if face < 0:
        return
    i = tri[face, 0]
    j = tri[face, 1]
    k = tri[face, 2]
    grad_u = wp.float64(0.0)
    grad_v = wp.float64(0.0)
    for c in range(attr.shape[2]):
        grad = grad_image[frame, row, column, c]
        wp.atomic_add(grad_attr, frame, i, c, here[0] * grad)
        wp.atomic_add(grad_attr, frame, j, c, here[1] * grad)
        wp.atomic_add(grad_attr, frame, k, c, (1.0 - here[0] - here[1]) * grad)
        last = wp.float64(attr[frame, k, c])
        grad_u += wp.float64(grad) * (wp.float64(attr[frame, i, c]) - last)
        grad_v += wp.float64(grad) * (wp.float64(attr[frame, j, c]) - last)
    grad_rast[frame, row, column] = wp.vec4(float(grad_u), float(grad_v), 0.0, 0.0)


def launch(kernel: Any, dim: tuple[int, ...], arrays: list[Any], device: torch.device) -> None:
    """Run a kernel on torch's device, and on CUDA on torch's current stream."""
    stream = wp.stream_from_torch(torch.cuda.current_stream(device)) if device.type == "cuda" else None
    wp.launch(kernel, dim=dim, inputs=arrays, device=wp.device_from_torch(device), stream=stream)


def _pixels(rast: Tensor) -> wp.array:
    return wp.from_torch(rast, dtype=wp.vec4)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, pos: Tensor, tri: Tensor, resolution: tuple[int, int]) -> Tensor:
        keys = torch.full((len(pos), *resolution), EMPTY, dtype=torch.int64, device=pos.device)
        rast = torch.empty((*keys.shape, 4), dtype=torch.float32, device=pos.device)
        screen = wp.from_torch(torch.empty((*pos.shape[:2], 4), dtype=torch.float64, device=pos.device), dtype=wp.vec4d)
        launch(_project, tuple(pos.shape[:2]), [wp.from_torch(pos.detach()), *resolution, screen], pos.device)
        arrays = [screen, wp.from_torch(tri), wp.from_torch(keys)]
        launch(_nearest, (len(pos), len(tri)), arrays, pos.device)
        launch(_resolve, (*keys.shape[:2], -(-keys.shape[2] // SPAN)), [*arrays, _pixels(rast)], pos.device)
        ctx.save_for_backward(pos, tri, rast)
        return rast

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, None, None]:
        pos, tri, rast = ctx.saved_tensors
        grad_pos = torch.zeros_like(pos)
        arrays = [wp.from_torch(pos.detach()), wp.from_torch(tri), _pixels(rast.detach())]
        arrays += [_pixels(grad_outputs[0].contiguous()), wp.from_torch(grad_pos)]
        launch(_rasterize_backward, tuple(rast.shape[:3]), arrays, pos.device)
        return grad_pos, None, None


class _Interpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, attr: Tensor, rast: Tensor, tri: Tensor) -> Tensor:
        image = torch.zeros((*rast.shape[:3], attr.shape[-1]), dtype=torch.float32, device=attr.device)
        arrays = [wp.from_torch(attr.detach()), wp.from_torch(tri), _pixels(rast.detach()), wp.from_torch(image)]
        launch(_interpolate, (*rast.shape[:2], -(-rast.shape[2] // SPAN)), arrays, attr.device)
        ctx.save_for_backward(attr, rast, tri)
        return image

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Any
    ) -> tuple[Tensor, Tensor, None]:
        attr, rast, tri = ctx.saved_tensors
        grad_attr, grad_rast = torch.zeros_like(attr), torch.zeros_like(rast)
        arrays = [wp.from_torch(attr.detach()), wp.from_torch(tri), _pixels(rast.detach())]
        arrays += [wp.from_torch(grad_outputs[0].contiguous()), wp.from_torch(grad_attr), _pixels(grad_rast)]
        launch(_interpolate_backward, tuple(rast.shape[:3]), arrays, attr.device)
        return grad_attr, grad_rast, None


def rasterize(
    pos: Float32[Tensor, "n V 4"], tri: Int32[Tensor, "F 3"], resolution: tuple[int, int]
) -> Float32[Tensor, "n H W 4"]:
    """See `rasterizer.rasterize`. On CUDA one thread processes one triangle, which suits small triangles."""
    return _Rasterize.apply(pos, tri, resolution)  # pyright: ignore[reportReturnType]


def interpolate(
    attr: Float32[Tensor, "n V C"], rast: Float32[Tensor, "n H W 4"], tri: Int32[Tensor, "F 3"]
) -> Float32[Tensor, "n H W C"]:
    """See `rasterizer.interpolate`."""
    return _Interpolate.apply(attr, rast, tri)  # pyright: ignore[reportReturnType]
