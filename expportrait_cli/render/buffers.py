"""Normals, depth and mask with antialiased silhouettes from vertices in the camera, and normals as 8-bit RGB.

`encode` is the one place that knows the convention of normal maps. Every generator's manifest names it, because a model
that was trained with another one fails without a word.
"""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Relief
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import Edges
from expportrait_cli.render.rasterizer import Backend, interpolate, rasterize, working_device


class _Crossings(NamedTuple):
    """`P` places where silhouette edges pass between two neighbouring pixel centres."""

    frame: Int64[Tensor, " P"]
    ends: Int64[Tensor, "P 2"]
    line: Int64[Tensor, " P"]
    """The pixel row that a steep edge crosses, the column that a flat one crosses."""
    is_steep: Bool[Tensor, " P"]
    inner_is_low: Bool[Tensor, " P"]
    """The surface lies on the side of the smaller coordinate along the line."""


def blend_silhouettes(
    image: Float32[Tensor, "n H W C"],
    rast: Float32[Tensor, "n H W 4"],
    pos: Float32[Tensor, "n V 4"],
    edges: Edges,
) -> Float32[Tensor, "n H W C"]:
    """Blend the two pixels on either side of each visible silhouette by where it passes between their centres.

    Gradients reach `image`, and `pos` through the place of the silhouette: the area of a mask changes as the
    surface moves. Which pixels are blended carries none. All w must be positive.
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
    a, b = (screen[:, edges.verts[:, end], :2] for end in range(2))
    sides = [_side(a, b, screen[:, edges.opposite[:, face], :2]) for face in range(2)]
    is_boundary = edges.opposite[:, 1] < 0
    is_silhouette = (sides[0] != 0) & (is_boundary | (sides[0] * sides[1] > 0))
    frame, edge = is_silhouette.nonzero(as_tuple=True)
    a, b, side = a[frame, edge], b[frame, edge], sides[0][frame, edge]

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


def _side(a: Float[Tensor, "n E 2"], b: Float[Tensor, "n E 2"], point: Float[Tensor, "n E 2"]) -> Float[Tensor, "n E"]:
    """On which side of the line through a and b a point lies: positive is +y for an edge along +x."""
    (edge_x, edge_y), (x, y) = (b - a).unbind(-1), (point - a).unbind(-1)
    return edge_x * y - edge_y * x


def _blend(
    image: Float32[Tensor, "n H W C"],
    rast: Float32[Tensor, "n H W 4"],
    screen: Float32[Tensor, "n V 3"],
    crossings: _Crossings,
) -> Float32[Tensor, "n H W C"]:
    """Mix the two pixels of each crossing, if they show the silhouette; each pair of pixels once."""
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

    # A folded outline crosses the same pair more than once, there and back. The surface's share of the pair is then
    # the signed sum; hidden outlines close behind may be counted too, so that it is divided by what remains. Blending
    # each crossing for itself gave masks from -1 to 1.7 and, on a crumpled outline, four times the gradient.
    sign = torch.where(low_is_near == inner_is_low, 1.0, -1.0)[keep]
    outward = torch.where(low_is_near[keep], 1.0, -1.0)
    # -0.5 when the silhouette passes through the near pixel's centre, 0.5 at the other: in the middle both stay.
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
    # A pixel that neighbours on three or four sides blend into takes no more than all of their colour.
    total = rast.new_zeros(len(flat)).index_add(0, target, reach.detach().abs())[target]
    blend = (reach / total.clamp(min=1))[:, None] * (flat[near] - flat[far_pixel])
    return flat.index_add(0, target, blend).reshape(image.shape)


CONVENTION = "camera space; x right, y up, z to the viewer; rgb = round(127.5 n + 127.5); background 128,128,128"
BACKGROUND = (128, 128, 128)


def encode(normals: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Turn unit normals, and zero for background, into RGB. A normal to the viewer is (128, 128, 255)."""
    return np.clip(np.rint(normals * 127.5 + 127.5), 0, 255).astype(np.uint8)


def decode(rgb: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """Turn RGB back into normals, each component to 1/127. Background is exactly zero; nothing is normalised."""
    normals = (rgb.astype(np.float32) - 127.5) / 127.5
    return np.where((rgb == 128).all(-1, keepdims=True), np.float32(0), normals)


@dataclass(frozen=True)
class Buffers:
    """Maps of what a camera sees, `n` frames."""

    normals: Float32[Tensor, "n H W 3"]
    """x right, y up, z to the viewer; unit length, zero in the background, between the two at a blended edge."""
    depth: Float32[Tensor, "n H W"]
    """Distance along the optical axis, m; zero in the background; never blended."""
    mask: Float32[Tensor, "n H W"]
    """Covered share of the pixel."""


@dataclass(frozen=True)
class Bump:
    """Static detail finer than the mesh, as it bends normals: bump mapping on the surface (Blinn 1978).

    Slopes are read from a texture of derivatives, blurred to what a pixel holds, so that detail does not shimmer while
    the head moves by parts of a pixel.
    """

    slopes: Float32[Tensor, "1 2 M R R"]
    """Change of the height over the mesh, m, along x and y of the photo's crop, m per crop px; each of the `M` levels
    is blurred twice as wide as the one before."""
    places: Float32[Tensor, "V 2"]
    """Where each vertex lies in the photo's crop, px."""
    known: Float32[Tensor, "V 2"]
    """Of each vertex: how far its detail is known, 0..1, and 1 inside the mouth."""
    scale: float
    """Width of a px of the crop in the drawn picture, px."""

    @classmethod
    def of(cls, relief: Relief, *, scale: float, device: torch.device | str | None = None) -> "Bump | None":
        """Prepare a relief for a picture in which a px of the crop is `scale` px wide; None where there is none."""
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
        known = np.stack([relief.seen, relief.cavity], -1).astype(np.float32)
        texture = torch.from_numpy(np.stack(slopes, 1)[None])
        return cls(
            texture.to(device), torch.from_numpy(relief.places).to(device), torch.from_numpy(known).to(device), scale
        )

    def to(self, device: torch.device) -> "Bump":
        """Move to another device."""
        return Bump(self.slopes.to(device), self.places.to(device), self.known.to(device), self.scale)

    def carried(self, verts_cam: Float32[Tensor, "n V 3"], faces: Int[Tensor, "F 3"]) -> Float32[Tensor, "n V 10"]:
        """Values of vertices that are drawn for `bent`: places, `known`, and the places' change along the surface."""
        # Imported where something is drawn: Warp takes a third of a second to start.
        from expportrait_cli.render.surface import surface_gradients

        along = surface_gradients(verts_cam, faces, self.places)
        fixed = torch.cat([self.places, self.known], -1).expand(len(verts_cam), -1, -1)
        return torch.cat([fixed, along.flatten(-2)], -1)

    def bent(
        self,
        normals: Float32[Tensor, "n H W 3"],
        carried: Float32[Tensor, "n H W 10"],
        pixel_m: Float32[Tensor, "n H W 1"],
    ) -> Float32[Tensor, "n H W 3"]:
        """Bend normals of normal maps; `carried` is drawn in the same pixels, which are `pixel_m` wide on the surface.

        At grazing angles the mesh's stay. Inside the mouth they are zero, as in the background: a painter would take a
        bright cavity for a surface.
        """
        shown = (carried[..., 2] > 0) & (normals[..., 2] > GRAZING[0])
        normal, here = normals[shown], carried[shown]
        along = here[:, 4:].unflatten(-1, (2, 3)) * normals.new_tensor([1.0, -1.0, -1.0])
        slopes = self._slopes(here[:, :2], _footprint(along, normal, pixel_m[shown]) * self.scale)
        tangent = (slopes[..., None] * along).sum(-2)
        tangent = tangent - normal * (tangent * normal).sum(-1, keepdim=True)
        known = here[:, 2:3] * ((normal[:, 2:] - GRAZING[0]) / (GRAZING[1] - GRAZING[0])).clamp(max=1)
        bent = mesh.normalize(normal - known * tangent / tangent.norm(dim=-1, keepdim=True).clamp(min=1.0))
        return normals.masked_scatter(shown[..., None], bent) * (carried[..., 3:4] <= 0.5)

    def _slopes(self, places: Float32[Tensor, "P 2"], footprint: Float32[Tensor, "P 1"]) -> Float32[Tensor, "P 2"]:
        """Slopes at places of the crop, as blurred as a pixel that covers `footprint` drawn pixels needs."""
        level = footprint.clamp(1, 2 ** (LEVELS - 1)).log2()
        where = torch.cat([places * (2 / CROP_SIZE) - 1, (2 * level + 1) / LEVELS - 1], -1)
        found = F.grid_sample(self.slopes, where[None, None, None], align_corners=False, padding_mode="border")
        return found[0, :, 0, 0].T


LEVELS, FINENESS, PIXEL_SIGMA = 3, 2, 0.7
"""Levels of blur, texels to a drawn pixel, and the standard deviation of the first blur in drawn pixels: less would
change with the place of the pixel's centre between the texels."""
WAYS = ((1, 0), (0, 1))
GRAZING = (0.1, 0.45)
"""Cosines to the viewer between which the detail of a photo fades in."""


def _footprint(
    along: Float32[Tensor, "P 2 3"], normals: Float32[Tensor, "P 3"], pixel_m: Float32[Tensor, "P 1"]
) -> Float32[Tensor, "P 1"]:
    """Width of a pixel on the surface in crop px of the photo: the root of the mean square of both directions."""
    # One pixel to the right or up leads this far towards the viewer, in its own width.
    depth = -normals[:, :2] / normals[:, 2:]
    steps = along[..., :2] + along[..., 2:] * depth[:, None]
    return pixel_m * (steps.square().sum((-2, -1))[:, None] / 2).sqrt()


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
    """Render smooth normals, depth and mask; `bump` adds static detail to the normals.

    Differentiable in `verts_cam`: normals and depth everywhere, silhouettes only with `antialias`. A caller who
    renders one topology often passes its `edges`, which are otherwise found anew in each call.
    """
    home, device = verts_cam.device, verts_cam.device if backend else working_device(verts_cam)
    if device != home:
        # All of it there: the picture comes back once, and one gradient.
        there = edges and mesh.Edges(edges.verts.to(device), edges.opposite.to(device))
        there_bump = bump and bump.to(device)
        drawn = render_buffers(
            verts_cam.to(device), faces.to(device), camera, antialias=antialias, edges=there, bump=there_bump
        )
        return Buffers(drawn.normals.to(home), drawn.depth.to(home), drawn.mask.to(home))
    from expportrait_cli.render.surface import vertex_normals

    pos = camera.clip(verts_cam)
    rast = rasterize(pos, faces, (camera.height, camera.width), backend=backend)
    columns = [vertex_normals(verts_cam, faces), verts_cam[..., 2:]]
    if bump is not None:
        columns.append(bump.carried(verts_cam, faces))
    drawn = interpolate(torch.cat(columns, -1), rast, faces, backend=backend)
    normals_cam, depth, carried = drawn[..., :3], drawn[..., 3:4], drawn[..., 4:]
    covered = (rast[..., 3:] > 0).to(drawn.dtype)
    # Both axes that OpenCV points down and away turn round: y up, z to the viewer.
    normals = mesh.normalize(normals_cam) * normals_cam.new_tensor([1.0, -1.0, -1.0])
    if bump is not None:
        normals = bump.bent(normals, carried, depth / camera.focal_px)
    image = torch.cat([normals, covered], -1)
    if antialias:
        image = blend_silhouettes(image, rast, pos, edges or mesh.edges(faces))
    return Buffers(image[..., :3], depth[..., 0], image[..., 3])
