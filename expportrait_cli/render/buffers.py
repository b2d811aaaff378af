"""Normals, depth and mask with antialiased silhouettes from vertices in the camera, and normals as 8-bit RGB.

`encode` defines the convention of normal maps (`CONVENTION`). Every generator's manifest names it, because a model that
was trained with another convention fails silently.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Relief
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import Edges
from expportrait_cli.render.rasterizer import Backend, interpolate, rasterize, working_device


class _Crossings(NamedTuple):
    """`P` crossings of silhouette edges with rows (steep edges) or columns (flat edges) of pixel centres."""

    frame: Int64[Tensor, " P"]
    """Index of the frame."""
    ends: Int64[Tensor, "P 2"]
    """Vertices of the edge."""
    line: Int64[Tensor, " P"]
    """Index of the pixel row (steep edge) or column (flat edge) that is crossed."""
    is_steep: Bool[Tensor, " P"]
    """True if the edge's extent along y is at least that along x."""
    inner_is_low: Bool[Tensor, " P"]
    """True if the surface lies on the side of the smaller coordinate along `line`."""


def blend_silhouettes(
    image: Float32[Tensor, "n H W C"],
    rast: Float32[Tensor, "n H W 4"],
    pos: Float32[Tensor, "n V 4"],
    edges: Edges,
) -> Float32[Tensor, "n H W C"]:
    """Blend the two pixels on either side of each visible silhouette by its position between their centres.

    Gradients flow to `image`, and through the position of the silhouette to `pos`: the area of a mask changes as the
    surface moves. The choice of the blended pixels has no gradient. All w must be positive.
    """
    screen = _to_pixels(pos, image.shape[1], image.shape[2])
    with torch.no_grad():
        crossings = _cross(screen, edges, (image.shape[1], image.shape[2]))
    return _blend(image, rast, screen, crossings)


def _to_pixels(pos: Float32[Tensor, "n V 4"], height: int, width: int) -> Float32[Tensor, "n V 3"]:
    """Pixel coordinates, centres at +0.5, and z/w."""
    ndc = pos[..., :3] / pos[..., 3:]
    half = pos.new_tensor([width / 2, height / 2, 1.0])
    return (ndc + pos.new_tensor([1.0, 1.0, 0.0])) * half


def _cross(screen: Float32[Tensor, "n V 3"], edges: Edges, resolution: tuple[int, int]) -> _Crossings:
    """List the silhouette edges, once per pixel row or column that they cross."""
    # Imported where something is drawn: Warp takes a third of a second to start.
    from expportrait_cli.render.surface import silhouettes

    frame, edge = silhouettes(screen, edges)
    a, b = (screen[frame, edges.verts[edge, end], :2] for end in range(2))
    side = _side(a, b, screen[frame, edges.opposite[edge, 0], :2])

    step = (b - a).abs()
    is_steep = step[:, 1] >= step[:, 0]
    across = torch.where(is_steep[:, None], torch.stack([a[:, 1], b[:, 1]], -1), torch.stack([a[:, 0], b[:, 0]], -1))
    count = torch.where(is_steep, resolution[0], resolution[1])
    # A centre on the lower end counts and one on the upper end does not, so that a chain of edges crosses each
    # line once.
    first = (across.amin(-1) - 0.5).ceil().clamp(min=0).minimum(count).long()
    stop = (across.amax(-1) - 0.5).ceil().clamp(min=0).minimum(count).long()
    repeats = (stop - first).clamp(min=0)
    # Looking along the edge, positive is the right side: low x where the edge runs down, high y where it runs right.
    along = torch.where(is_steep, a[:, 1] - b[:, 1], b[:, 0] - a[:, 0])
    inner_is_low = side * along < 0

    item = torch.repeat_interleave(repeats)
    position = torch.arange(len(item), device=item.device) - (repeats.cumsum(0) - repeats)[item]
    return _Crossings(frame[item], edges.verts[edge[item]], first[item] + position, is_steep[item], inner_is_low[item])


def _side(a: Float[Tensor, "S 2"], b: Float[Tensor, "S 2"], point: Float[Tensor, "S 2"]) -> Float[Tensor, " S"]:
    """Signed side of the line through a and b on which a point lies: positive is +y for an edge along +x."""
    (edge_x, edge_y), (x, y) = (b - a).unbind(-1), (point - a).unbind(-1)
    return edge_x * y - edge_y * x


def _blend(
    image: Float32[Tensor, "n H W C"],
    rast: Float32[Tensor, "n H W 4"],
    screen: Float32[Tensor, "n V 3"],
    crossings: _Crossings,
) -> Float32[Tensor, "n H W C"]:
    """Blend the two pixels of each crossing if the silhouette is visible there; each pair of pixels once."""
    frame, ends, line, is_steep, inner_is_low = crossings
    height, width = image.shape[1:3]
    a, b = screen[frame, ends[:, 0]], screen[frame, ends[:, 1]]
    (across_a, along_a), (across_b, along_b) = (
        torch.where(is_steep[:, None], end[:, [1, 0]], end[:, :2]).unbind(-1) for end in (a, b)
    )
    share = (line + 0.5 - across_a) / (across_b - across_a)
    place = along_a + share * (along_b - along_a)
    with torch.no_grad():
        low = (place - 0.5).floor().long()
        is_inside = (low >= 0) & (low + 1 < torch.where(is_steep, width, height))
        low_pixel = (frame * height + torch.where(is_steep, line, low)) * width + torch.where(is_steep, low, line)
        low_pixel = low_pixel * is_inside
        high_pixel = low_pixel + torch.where(is_steep, 1, width) * is_inside
        at_low, at_high = (rast.reshape(-1, 4)[pixel] for pixel in (low_pixel, high_pixel))
        low_is_near = (at_low[:, 3] > 0) & ((at_high[:, 3] == 0) | (at_low[:, 2] < at_high[:, 2]))
        far = torch.where(low_is_near[:, None], at_high, at_low)
        # An edge that runs behind what its pixels show must not blend them.
        is_open = (far[:, 3] == 0) | (far[:, 2] > a[:, 2] + share * (b[:, 2] - a[:, 2]))
        keep = (is_inside & (at_low[:, 3] != at_high[:, 3]) & is_open).nonzero()[:, 0]
        pairs, pair = torch.unique(low_pixel[keep] * 2 + is_steep[keep], return_inverse=True)

    # A folded outline crosses the same pair more than once, back and forth. The surface's share of the pair is then
    # the signed sum, divided by the sum of signs, since hidden outlines close behind may be counted too. Blending each
    # crossing separately gave masks from -1 to 1.7 and, on a crumpled outline, four times the gradient.
    sign = torch.where(low_is_near == inner_is_low, 1.0, -1.0)[keep]
    outward = torch.where(low_is_near[keep], 1.0, -1.0)
    # -0.5 if the silhouette passes through the near pixel's centre, 0.5 at the far one's, 0 half-way: no blending.
    reach = (place[keep] - (low[keep] + 1)) * outward
    zero = torch.zeros(len(pairs), dtype=reach.dtype, device=reach.device)
    surplus = zero.index_add(0, pair, sign)
    reach = (zero.index_add(0, pair, sign * reach) / surplus.clamp(min=1)).clamp(-0.5, 0.5) * (surplus >= 1)

    low_pixel = pairs // 2
    high_pixel = low_pixel + torch.where(pairs % 2 == 1, 1, width)
    low_is_near = torch.zeros_like(pairs, dtype=torch.bool).index_put((pair,), low_is_near[keep])
    near = torch.where(low_is_near, low_pixel, high_pixel)
    far_pixel = torch.where(low_is_near, high_pixel, low_pixel)
    flat = image.reshape(-1, image.shape[-1])
    target = torch.where(reach > 0, far_pixel, near)
    # A pixel may be the target of up to four blends: their weights are scaled so that they sum to 1 at most.
    total = rast.new_zeros(len(flat)).index_add(0, target, reach.detach().abs())[target]
    blend = (reach / total.clamp(min=1))[:, None] * (flat[near] - flat[far_pixel])
    return flat.index_add(0, target, blend).reshape(image.shape)


CONVENTION = "camera space; x right, y up, z to the viewer; rgb = round(127.5 n + 127.5); background 128,128,128"
BACKGROUND = (128, 128, 128)


def encode(normals: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Turn unit normals, and zero for background, into RGB. A normal to the viewer is (128, 128, 255)."""
    return np.clip(np.rint(normals * 127.5 + 127.5), 0, 255).astype(np.uint8)


def decode(rgb: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """Turn RGB back into normals; each component is right to 1/255.

    Background is exactly zero; vectors are not scaled to unit length.
    """
    normals = (rgb.astype(np.float32) - 127.5) / 127.5
    return np.where((rgb == 128).all(-1, keepdims=True), np.float32(0), normals)


@dataclass(frozen=True)
class Buffers:
    """Rendered maps of `n` frames."""

    normals: Float32[Tensor, "n H W 3"]
    """x right, y up, z to the viewer; unit length, zero in the background, shorter at antialiased edges."""
    depth: Float32[Tensor, "n H W"]
    """Distance along the optical axis, m; zero in the background; not antialiased."""
    mask: Float32[Tensor, "n H W"]
    """Covered share of each pixel, 0..1."""


@dataclass(frozen=True)
class Bump:
    """Static detail finer than the mesh, as bump mapping (Blinn 1978): it changes normals only.

    Slopes are read from a texture of derivatives, blurred to the size of a pixel, so that detail does not shimmer while
    the head moves by fractions of a pixel.
    """

    slopes: Float32[Tensor, "M R R 2"]
    """Derivatives of the height over the mesh along x and y of the photo's crop, m per crop px; each of the `M` levels
    is blurred twice as wide as the one before."""
    places: Float32[Tensor, "V 4"]
    """Of each vertex: position in the photo's crop (2, px), confidence of its detail, 0..1, and 1 inside the mouth,
    else 0.

    Inside the mouth normals are zero, as in the background: a painter would take the cavity for a surface."""
    scale: float
    """Drawn pixels to a crop pixel."""

    @classmethod
    def of(cls, relief: Relief, *, scale: float, device: torch.device | str | None = None) -> "Bump | None":
        """Prepare a relief for a picture with `scale` drawn pixels to a crop pixel; None if it has no vertices."""
        if not len(relief.places):
            return None
        side = max(round(FINENESS * CROP_SIZE * scale), 1) if relief.heights.size else 1
        heights = relief.heights.astype(np.float32) if relief.heights.size else np.zeros((1, 1), np.float32)
        fine = cv2.resize(
            heights, (side, side), interpolation=cv2.INTER_CUBIC if side > len(heights) else cv2.INTER_AREA
        )
        levels = [cv2.GaussianBlur(fine, (0, 0), FINENESS * PIXEL_SIGMA * 2**level) for level in range(LEVELS)]
        px = side / CROP_SIZE
        slopes = [np.stack([cv2.Sobel(each, cv2.CV_32F, *way, ksize=1) * (px / 2) for way in WAYS]) for each in levels]
        places = np.column_stack([relief.places, relief.seen, relief.cavity]).astype(np.float32)
        texture = np.ascontiguousarray(np.stack(slopes).transpose(0, 2, 3, 1))
        return cls(torch.from_numpy(texture).to(device), torch.from_numpy(places).to(device), scale)

    def to(self, device: torch.device) -> "Bump":
        """Move to another device."""
        return Bump(self.slopes.to(device), self.places.to(device), self.scale)


LEVELS, FINENESS, PIXEL_SIGMA = 3, 2, 0.7
"""LEVELS: number of blurred textures. FINENESS: texels to a drawn pixel. PIXEL_SIGMA: standard deviation of the first
blur, in drawn pixels; with less, samples would depend on the pixel's position between texels."""
WAYS = ((1, 0), (0, 1))


def render_buffers(
    verts_cam: Float32[Tensor, "n V 3"],
    faces: Int[Tensor, "F 3"],
    camera: Camera,
    *,
    antialias: bool = True,
    edges: mesh.Edges | None = None,
    backend: Backend | None = None,
    bump: Bump | None = None,
) -> Buffers:
    """Render smooth normals, depth and mask; `bump` adds static detail to the normals unless a gradient is required.

    Differentiable in `verts_cam`: normals and depth everywhere, silhouettes only with `antialias`. `edges` of the mesh
    can be given to avoid computing them in every call.
    """
    home, device = verts_cam.device, verts_cam.device if backend else working_device(verts_cam)
    if device != home:
        # Everything is rendered there, so that only pictures and one gradient are copied back.
        there = edges and mesh.Edges(edges.verts.to(device), edges.opposite.to(device))
        there_bump = bump and bump.to(device)
        drawn = render_buffers(
            verts_cam.to(device), faces.to(device), camera, antialias=antialias, edges=there, bump=there_bump
        )
        return Buffers(drawn.normals.to(home), drawn.depth.to(home), drawn.mask.to(home))
    from expportrait_cli.render.surface import draw_normals

    pos = camera.clip(verts_cam)
    rast = rasterize(pos, faces, (camera.height, camera.width), backend=backend)
    if verts_cam.requires_grad:
        image, depth = _interpolated(verts_cam, faces, rast, backend)
    else:
        detail = bump or Bump(verts_cam.new_zeros(1, 1, 1, 2), verts_cam.new_zeros(0, 4), 1.0)
        image, depth = draw_normals(
            rast, verts_cam, faces, detail.places, detail.slopes, detail.scale / camera.focal_px
        )
    if antialias:
        image = blend_silhouettes(image, rast, pos, edges or mesh.edges(faces))
    return Buffers(image[..., :3], depth, image[..., 3])


def _interpolated(
    verts_cam: Float32[Tensor, "n V 3"],
    faces: Int[Tensor, "F 3"],
    rast: Float32[Tensor, "n H W 4"],
    backend: Backend | None,
) -> tuple[Float32[Tensor, "n H W 4"], Float32[Tensor, "n H W"]]:
    """Normals with mask, and depth, as from `draw_normals` without detail, but with gradients."""
    columns = torch.cat([mesh.vertex_normals(verts_cam, faces), verts_cam[..., 2:]], -1)
    drawn = interpolate(columns, rast, faces, backend=backend)
    # From OpenCV's camera axes (y down, z away) to y up, z to the viewer.
    normals = mesh.normalize(drawn[..., :3]) * drawn.new_tensor([1.0, -1.0, -1.0])
    return torch.cat([normals, (rast[..., 3:] > 0).to(drawn.dtype)], -1), drawn[..., 3]
