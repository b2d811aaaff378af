"""Warp kernels, not differentiable, for vertex normals, surface gradients, normal maps and silhouettes of a mesh.

On the CPU sums are in the order of the triangles, and so are the same in every run.
"""

from typing import no_type_check

import torch
import warp as wp
from jaxtyping import Float32, Int, Int64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.mesh import Edges
from expportrait_cli.render.warp_backend import SPAN, launch

wp.set_module_options({"enable_backward": False, "max_unroll": 1})

GRAZING = (0.1, 0.45)
"""Cosine between normal and viewer at which the photo's detail has weight 0, and 1."""
_GRAZING, _STEEP = wp.constant(GRAZING[0]), wp.constant(1 / (GRAZING[1] - GRAZING[0]))
_SPAN = wp.constant(SPAN)


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
        # The gradient is the sum of the edges opposite to the corners, rotated by 90 degrees, times the values.
        step = values[i, n] * (c - b) + values[j, n] * (a - c) + values[k, n] * (b - a)
        slope = wp.cross(unit, step)
        wp.atomic_add(slopes, frame, i, n, slope)
        wp.atomic_add(slopes, frame, j, n, slope)
        wp.atomic_add(slopes, frame, k, n, slope)
    wp.atomic_add(weights, frame, i, area)
    wp.atomic_add(weights, frame, j, area)
    wp.atomic_add(weights, frame, k, area)


@no_type_check
@wp.func
def _unit(vector: wp.vec3):
    """Scale to unit length; what `mesh.normalize` keeps at zero stays zero."""
    square = wp.dot(vector, vector)
    if square < 1e-30:
        return wp.vec3(0.0, 0.0, 0.0)
    return vector / wp.sqrt(square)


@no_type_check
@wp.func
def _upright(vector: wp.vec3):
    """Convert a vector from OpenCV's camera axes (y down, z away) to y up, z to the viewer."""
    return wp.vec3(vector[0], -vector[1], -vector[2])


@no_type_check
@wp.func
def _texel(slopes: wp.array3d(dtype=wp.vec2), level: int, x: float, y: float):
    """Sample one level bilinearly; x and y must lie inside it."""
    last = slopes.shape[1] - 1
    left = int(x)
    top = int(y)
    right = wp.min(left + 1, last)
    bottom = wp.min(top + 1, last)
    s = x - float(left)
    t = y - float(top)
    above = (1.0 - s) * slopes[level, top, left] + s * slopes[level, top, right]
    below = (1.0 - s) * slopes[level, bottom, left] + s * slopes[level, bottom, right]
    return (1.0 - t) * above + t * below


@no_type_check
@wp.func
def _slope(slopes: wp.array3d(dtype=wp.vec2), place: wp.vec4, footprint: float, texels: float):
    """Sample the slopes at a position of the crop, at the blur level for a pixel that covers `footprint` pixels."""
    last = float(slopes.shape[1] - 1)
    x = wp.clamp(place[0] * texels - 0.5, 0.0, last)
    y = wp.clamp(place[1] * texels - 0.5, 0.0, last)
    highest = slopes.shape[0] - 1
    z = wp.clamp(wp.log2(wp.max(footprint, 1.0)), 0.0, float(highest))
    level = int(z)
    r = z - float(level)
    found = _texel(slopes, level, x, y)
    if r > 0.0:
        found = (1.0 - r) * found + r * _texel(slopes, wp.min(level + 1, highest), x, y)
    return found


@no_type_check
@wp.kernel
def _draw(
    rast: wp.array3d(dtype=wp.vec4),
    tri: wp.array2d(dtype=wp.int32),
    corners: wp.array2d(dtype=wp.vec4),
    places: wp.array(dtype=wp.vec4),
    along: wp.array3d(dtype=wp.vec3),
    slopes: wp.array3d(dtype=wp.vec2),
    texels: float,
    scale_per_focal: float,
    image: wp.array3d(dtype=wp.vec4),
    depth: wp.array3d(dtype=float),
):
    """Write normal and coverage of each pixel, and its depth; with `places`, bump mapping as in `buffers.Bump`.

    `texels`: texels to a crop pixel. `scale_per_focal`: drawn pixels to a crop pixel, over the focal length, px. Times
    the depth, m, times the gradient of `places` along the surface, crop px per m, it is the number of pixels of the
    photo, drawn at this scale, that a pixel covers. It selects the blur level of `slopes`.
    """
    frame, row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, rast.shape[2])):
        here = rast[frame, row, column]
        face = int(here[3]) - 1
        if face < 0:
            continue
        i = tri[face, 0]
        j = tri[face, 1]
        k = tri[face, 2]
        u = here[0]
        v = here[1]
        w = 1.0 - u - v
        mean = u * corners[frame, i] + v * corners[frame, j] + w * corners[frame, k]
        depth[frame, row, column] = mean[3]
        normal = _upright(_unit(wp.vec3(mean[0], mean[1], mean[2])))
        if places.shape[0] > 0:
            place = u * places[i] + v * places[j] + w * places[k]
            if place[2] > 0.0 and normal[2] > _GRAZING:
                x = _upright(u * along[frame, i, 0] + v * along[frame, j, 0] + w * along[frame, k, 0])
                y = _upright(u * along[frame, i, 1] + v * along[frame, j, 1] + w * along[frame, k, 1])
                # Change of z of the surface for one pixel to the right, or up, in units of a pixel's width.
                right = -normal[0] / normal[2]
                up = -normal[1] / normal[2]
                to_right = wp.vec2(x[0] + x[2] * right, y[0] + y[2] * right)
                to_up = wp.vec2(x[1] + x[2] * up, y[1] + y[2] * up)
                mean_square = 0.5 * (wp.dot(to_right, to_right) + wp.dot(to_up, to_up))
                slope = _slope(slopes, place, mean[3] * scale_per_focal * wp.sqrt(mean_square), texels)
                tangent = slope[0] * x + slope[1] * y
                tangent -= wp.dot(tangent, normal) * normal
                known = place[2] * wp.min((normal[2] - _GRAZING) * _STEEP, 1.0)
                normal = _unit(normal - known / wp.max(wp.length(tangent), 1.0) * tangent)
            if place[3] > 0.5:
                normal = wp.vec3(0.0, 0.0, 0.0)
        image[frame, row, column] = wp.vec4(normal[0], normal[1], normal[2], 1.0)


@no_type_check
@wp.func
def _side(a: wp.vec3, b: wp.vec3, point: wp.vec3):
    """Side of the line through a and b on which a point lies on the screen, as -1, 0 or 1."""
    x = wp.float64(b[0] - a[0]) * wp.float64(point[1] - a[1])
    y = wp.float64(b[1] - a[1]) * wp.float64(point[0] - a[0])
    return int(x > y) - int(x < y)


@no_type_check
@wp.kernel
def _find_silhouettes(
    screen: wp.array2d(dtype=wp.vec3),
    ends: wp.array2d(dtype=wp.int64),
    opposite: wp.array2d(dtype=wp.int64),
    found: wp.array2d(dtype=wp.uint8),
):
    frame, edge = wp.tid()
    a = screen[frame, int(ends[edge, 0])]
    b = screen[frame, int(ends[edge, 1])]
    side = _side(a, b, screen[frame, int(opposite[edge, 0])])
    if side == 0:
        return
    other = int(opposite[edge, 1])
    if other >= 0 and side * _side(a, b, screen[frame, other]) <= 0:
        return
    found[frame, edge] = wp.uint8(1)


def silhouettes(screen: Float32[Tensor, "n V 3"], edges: Edges) -> tuple[Int64[Tensor, " S"], Int64[Tensor, " S"]]:
    """Indices of frame and edge of each silhouette: an edge with one triangle, or with both on its same side."""
    found = torch.zeros(len(screen), len(edges.verts), dtype=torch.uint8, device=screen.device)
    arrays = [wp.from_torch(screen.detach().contiguous(), dtype=wp.vec3)]
    arrays += [wp.from_torch(each.contiguous()) for each in (edges.verts, edges.opposite, found)]
    launch(_find_silhouettes, tuple(found.shape), arrays, screen.device)
    frame, edge = found.nonzero(as_tuple=True)
    return frame, edge


def draw_normals(
    rast: Float32[Tensor, "n H W 4"],
    verts: Float32[Tensor, "n V 3"],
    faces: Int[Tensor, "F 3"],
    places: Float32[Tensor, "N 4"],
    slopes: Float32[Tensor, "M R R 2"],
    scale_per_focal: float,
) -> tuple[Float32[Tensor, "n H W 4"], Float32[Tensor, "n H W"]]:
    """Draw an image of normals (x right, y up, z to the viewer) with coverage as fourth channel, and depth, m.

    `places` and `slopes` are the bump map of `buffers.Bump`; without `places` (N = 0 instead of V) there is none.
    `scale_per_focal` is the width of a px of the photo's crop in drawn pixels, over the focal length.
    """
    sums, along, weights = _sums(verts, faces, places[:, :2] if len(places) else verts.new_zeros(verts.shape[1], 0))
    along = along / weights[..., None, None].clamp(min=1e-15)
    corners = torch.cat([mesh.normalize(sums), verts.detach()[..., 2:]], -1)
    image, depth = torch.zeros_like(rast), rast.new_zeros(rast.shape[:3])
    arrays = [wp.from_torch(rast.detach().contiguous(), dtype=wp.vec4), wp.from_torch(faces.int().contiguous())]
    arrays += [wp.from_torch(each, dtype=wp.vec4) for each in (corners, places)]
    arrays += [wp.from_torch(along, dtype=wp.vec3), wp.from_torch(slopes, dtype=wp.vec2)]
    arrays += [slopes.shape[1] / CROP_SIZE, scale_per_focal, wp.from_torch(image, dtype=wp.vec4), wp.from_torch(depth)]
    launch(_draw, (*rast.shape[:2], -(-rast.shape[2] // SPAN)), arrays, rast.device)
    return image, depth


def vertex_normals(verts: Float32[Tensor, "n V 3"], faces: Int[Tensor, "F 3"]) -> Float32[Tensor, "n V 3"]:
    """`mesh.vertex_normals` by a kernel; by that function itself if `verts` requires a gradient."""
    if verts.requires_grad:
        return mesh.vertex_normals(verts, faces)
    return mesh.normalize(_sums(verts, faces, verts.new_zeros(verts.shape[1], 0))[0])


def surface_gradients(
    verts: Float32[Tensor, "n V 3"], faces: Int[Tensor, "F 3"], values: Float32[Tensor, "V C"]
) -> Float32[Tensor, "n V C 3"]:
    """`mesh.surface_gradients` by a kernel; by that function itself if an input requires a gradient."""
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
