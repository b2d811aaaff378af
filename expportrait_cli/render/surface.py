"""Normals of a mesh, and gradients of values along it, as Warp kernels: what `geometry.mesh` sums, without gradients.

On the CPU the sums are in the order of the triangles, and so the same in every run.
"""

from typing import no_type_check

import torch
import warp as wp
from jaxtyping import Float32, Int
from torch import Tensor

from expportrait_cli.geometry import mesh
from expportrait_cli.render.warp_backend import launch

wp.set_module_options({"enable_backward": False})


@no_type_check
@wp.kernel
def _sum(
    verts: wp.array2d(dtype=wp.vec3),
    tri: wp.array2d(dtype=wp.int32),
    values: wp.array2d(dtype=float),
    normals: wp.array2d(dtype=wp.vec3),
    slopes: wp.array3d(dtype=wp.vec3),
    weights: wp.array2d(dtype=float),
):
    """Add each triangle's normal, gradients and area to its corners; normal and area are twice as large."""
    frame, face = wp.tid()
    i = tri[face, 0]
    j = tri[face, 1]
    k = tri[face, 2]
    a = verts[frame, i]
    b = verts[frame, j]
    c = verts[frame, k]
    normal = wp.cross(b - a, c - a)
    wp.atomic_add(normals, frame, i, normal)
    wp.atomic_add(normals, frame, j, normal)
    wp.atomic_add(normals, frame, k, normal)
    count = values.shape[1]
    if count == 0:
        return
    area = wp.length(normal)
    unit = normal / wp.max(area, 1e-15)
    for n in range(count):
        # The edges opposite to the corners, turned by a quarter.
        step = values[i, n] * (c - b) + values[j, n] * (a - c) + values[k, n] * (b - a)
        slope = wp.cross(unit, step)
        wp.atomic_add(slopes, frame, i, n, slope)
        wp.atomic_add(slopes, frame, j, n, slope)
        wp.atomic_add(slopes, frame, k, n, slope)
    wp.atomic_add(weights, frame, i, area)
    wp.atomic_add(weights, frame, j, area)
    wp.atomic_add(weights, frame, k, area)


def vertex_normals(verts: Float32[Tensor, "n V 3"], faces: Int[Tensor, "F 3"]) -> Float32[Tensor, "n V 3"]:
    """Compute what `mesh.vertex_normals` does, in a kernel; where a gradient is asked for, by that function."""
    if verts.requires_grad:
        return mesh.vertex_normals(verts, faces)
    return mesh.normalize(_sums(verts, faces, verts.new_zeros(verts.shape[1], 0))[0])


def surface_gradients(
    verts: Float32[Tensor, "n V 3"], faces: Int[Tensor, "F 3"], values: Float32[Tensor, "V C"]
) -> Float32[Tensor, "n V C 3"]:
    """Compute what `mesh.surface_gradients` does, in a kernel; where a gradient is asked for, by that function."""
    if verts.requires_grad or values.requires_grad:
        return mesh.surface_gradients(verts, faces, values)
    _, slopes, weights = _sums(verts, faces, values)
    return slopes / weights[..., None, None].clamp(min=1e-15)


def _sums(verts: Tensor, faces: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    frames, vertices, channels = len(verts), verts.shape[1], values.shape[1]
    normals, slopes = torch.zeros_like(verts), verts.new_zeros(frames, vertices, channels, 3)
    weights = verts.new_zeros(frames, vertices)
    points = [wp.from_torch(verts.detach().contiguous(), dtype=wp.vec3), wp.from_torch(faces.int().contiguous())]
    sums = [wp.from_torch(normals, dtype=wp.vec3), wp.from_torch(slopes, dtype=wp.vec3), wp.from_torch(weights)]
    launch(_sum, (frames, len(faces)), [*points, wp.from_torch(values.contiguous()), *sums], verts.device)
    return normals, slopes, weights
