"""The photo separated into layers (person, background), with smooth colours for surfaces that it does not show."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import grown, vertex_normals
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, lid_travel
from expportrait_cli.head.model import TORSO, dense
from expportrait_cli.painting.proxy.hidden import hairiness, scalp_of, surface_colours
from expportrait_cli.render.rasterizer import rasterize


def diffuse(values: Float32[np.ndarray, "H W C"], weight: Float32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W C"]:
    """Extend `values` smoothly to pixels of weight 0; at weight 1 they are kept.

    The weights go through the pyramid too: without them the zeros of unknown pixels would darken the result.
    """
    level: np.ndarray = np.dstack([values * weight[..., None], weight]).astype(np.float32)
    return _kept(level, spread(level))


def spread(level: Float32[np.ndarray, "H W D"]) -> Float32[np.ndarray, "h w C"]:
    """Fill unknown values by an image pyramid (push-pull); the result has half the size.

    `level`: the values times their weight, and the weight as last channel.
    """
    stack: list[np.ndarray] = []
    while max(level.shape[:2]) > 1:
        height, width = level.shape[:2]
        level = cv2.resize(level, ((width + 1) // 2, (height + 1) // 2), interpolation=cv2.INTER_AREA)
        stack.append(level)
    filled = stack[-1][..., :-1] / np.maximum(stack[-1][..., -1:], 1e-6)
    for level in reversed(stack[:-1]):
        filled = _kept(level, filled)
    return filled


def _kept(level: Float32[np.ndarray, "H W D"], coarse: Float32[np.ndarray, "h w C"]) -> Float32[np.ndarray, "H W C"]:
    """Combine known values with the upscaled `coarse` ones, by the weight in the last channel of `level`."""
    height, width = level.shape[:2]
    coarse = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(height, width, -1)
    return level[..., :-1] + coarse * (1 - np.minimum(level[..., -1:], 1.0))


TRACES = (0.12, 0.03)
"""Matte above which a pixel may contain some of the person, for the close and for the safe background plate."""
MARGINS = (0.005, 0.014)
"""Margin around such pixels that is filled in too, for the close and the safe plate, in picture sides: the matte ends
before the last hair."""
SUBPIXEL_BITS = 4
SOLID = 0.35
"""Matte from which the foreground colour of a pixel begins to be read from the photo."""
DEPTH_SLACK_M = 0.006
"""Depth, m, by which a surface point may lie behind the photo's depth map and still count as visible."""
STILL_PX = (0.3, 1.2)
"""Displacement, px, up to which a frame keeps the photo's pixel, and from which it has the warped layers'."""
LID_TRAVEL_M = 0.0008
"""Least distance, m, that a blink moves a vertex of the upper lid: from the crease downwards."""
LID_RIM = 3
"""Rings of triangles, on the default head, added around the upper lid because shadow falsifies the skin's colour."""
AROUND_LIDS = 16
"""Rings of triangles around a lid, on the default head, in which lit skin is searched for the lid's colour."""
EDGE_M = 0.0033
"""Median edge length of the default head, m: on a finer or coarser mesh the number of rings is scaled by it."""
IN_EYES_M = 0.006
"""Largest distance of a vertex of the eye region from the rims of the lids, m: about half the height of an open eye."""
LIT, AS_SKIN = 70, 0.82
"""A pixel near a lid counts as lit skin if it is at least AS_SKIN times as bright as the percentile LIT there."""
NONE, SKIN = 255, 0
"""Values of a part map: pixel without mesh, and pixel of skin."""


@dataclass(frozen=True)
class Layers:
    """A photo prepared for one canvas. Pictures are 8-bit RGB; `alpha` and `hair` are shares, 0..1."""

    camera: Camera
    photo: UInt8[np.ndarray, "H W 3"]
    foreground: UInt8[np.ndarray, "H W 3"]
    """Unmixed colour of the person: without the background's share at soft edges, extended beyond the outline."""
    alpha: Float32[np.ndarray, "H W"]
    """Matte of the person, 0..1."""
    plate: UInt8[np.ndarray, "H W 3"]
    """Safe background plate: the person is filled in with a wide margin, so that none of their hair is left in it."""
    close_plate: UInt8[np.ndarray, "H W 3"]
    """Close background plate: filled in with a narrow margin, for small motions that uncover little background."""
    verts: Float32[np.ndarray, "V 3"]
    """Vertices of the fitted head in the photo's pose, camera, m."""
    xy: Float32[np.ndarray, "V 2"]
    """Position of each vertex of the fitted head in the photo, canvas px."""
    depth: Float32[np.ndarray, " V"]
    """Distance of each vertex along the optical axis, m."""
    cosine: Float32[np.ndarray, " V"]
    """Cosine of the angle between each vertex normal and the direction to the camera."""
    colour: Float32[np.ndarray, "V 3"]
    """RGB of each vertex, 0..255: read where the photo shows the vertex, else interpolated over the mesh."""
    zbuffer: Float32[np.ndarray, "H W"]
    """Depth of the fitted head, m, dilated by one pixel; 1000 where there is none."""
    part: UInt8[np.ndarray, "H W"]
    """Part of the head at each pixel of the photo, 255 where there is none."""
    hair: Float32[np.ndarray, "H W"]
    """Share of hair in each pixel."""
    hairy: Float32[np.ndarray, " V"]
    """Share (0..1) of hair at each vertex (`hidden.hairiness`)."""


def mix(
    first: UInt8[np.ndarray, "H W 3"], second: UInt8[np.ndarray, "H W 3"], share: Float32[np.ndarray, "H W"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Blend two pictures; `share` (0..1) is the weight of the second."""
    return cv2.blendLinear(first, second, 1 - share, share)


def draw(verts_cam: Float32[np.ndarray, "V 3"], faces: torch.Tensor, camera: Camera) -> torch.Tensor:
    """Rasterise one mesh on the canvas: [1, H, W, 4], see `render.rasterizer`."""
    clip = camera.clip(torch.from_numpy(np.ascontiguousarray(verts_cam)))[None]
    return rasterize(clip, faces, (camera.height, camera.width))


def spots(
    head: HeadModel, verts_cam: Float32[np.ndarray, "V 3"], which: Int64[np.ndarray, "*N"]
) -> Float32[np.ndarray, "*N 3"]:
    """3D positions of the FaceMesh landmarks `which` on a posed head."""
    corners, weights = head.landmark_triangles.numpy()[which], head.landmark_barycentrics.numpy()[which]
    return (verts_cam[corners] * weights[..., None]).sum(-2)


def triangle_ids(rast: torch.Tensor) -> np.ndarray:
    """Triangle index of each pixel, -1 in the background."""
    return rast[0, ..., 3].numpy().astype(np.int32) - 1


def triangle_parts(head: HeadModel) -> UInt8[np.ndarray, " F"]:
    """Part of each triangle. Where corners differ, the part that is not skin wins: vertices on a border are skin."""
    return head.parts.numpy()[head.dense_faces.numpy()].max(1)


def parts_drawn(rast: torch.Tensor, triangle_part: UInt8[np.ndarray, " F"]) -> UInt8[np.ndarray, "H W"]:
    """Part at each pixel, NONE in the background."""
    ids = triangle_ids(rast)
    return np.where(ids >= 0, triangle_part[np.maximum(ids, 0)], NONE).astype(np.uint8)


def background(
    photo: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"], *, trace: float, margin: float
) -> Float32[np.ndarray, "H W 3"]:
    """Fill in the person from the background around them.

    `trace`: matte above which a pixel counts as the person; `margin`: width filled in around it, in picture sides.
    """
    reach = 2 * max(round(margin * max(alpha.shape)), 1) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    return membrane(photo, 1 - cv2.dilate((alpha > trace).astype(np.uint8), kernel).astype(np.float32))


def unmix(
    photo: Float32[np.ndarray, "H W 3"], alpha: Float32[np.ndarray, "H W"], plate: Float32[np.ndarray, "H W 3"]
) -> Float32[np.ndarray, "H W 3"]:
    """Colour of the person without the background's share at soft edges, extended beyond the outline."""
    extended = diffuse(photo, (alpha > 0.95).astype(np.float32))
    mostly = np.clip((alpha - SOLID) / 0.3, 0, 1)[..., None]
    soft = alpha[..., None]
    foreground = (photo - (1 - soft) * plate) / np.maximum(soft, SOLID)
    return np.clip(mostly * foreground + (1 - mostly) * extended, 0, 255)


def membrane(
    photo: Float32[np.ndarray, "H W 3"], known: Float32[np.ndarray, "H W"], *, sweeps: int = 60
) -> Float32[np.ndarray, "H W 3"]:
    """Fill unknown pixels (`known` 0) by harmonic interpolation between the known ones.

    Unlike `diffuse` it has no step at the border. Solved coarse to fine, with `sweeps` of relaxation a scale.
    """
    height, width = known.shape
    if min(height, width) <= 16:
        return diffuse(photo, known)
    half = ((width + 1) // 2, (height + 1) // 2)
    weight = cv2.resize(known, half, interpolation=cv2.INTER_AREA)
    small = cv2.resize(photo * known[..., None], half, interpolation=cv2.INTER_AREA)
    small = small / np.maximum(weight, 1e-4)[..., None]
    filled = membrane(small, (weight > 0.25).astype(np.float32), sweeps=sweeps)
    filled = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
    fixed = known[..., None] > 0
    filled = np.where(fixed, photo, filled)
    for _ in range(sweeps if max(height, width) <= 300 else sweeps // 4):
        filled = np.where(fixed, photo, cv2.blur(filled, (3, 3), borderType=cv2.BORDER_REPLICATE))
    return filled


def evened(
    picture: Float32[np.ndarray, "H W 3"],
    region: Bool[np.ndarray, "H W"],
    colour: Float32[np.ndarray, " 3"],
    *,
    reach: float,
    detail: float,
) -> Float32[np.ndarray, "H W 3"]:
    """Give a region one colour at large, and keep its fine detail; pixels outside of the region are undefined.

    `reach`: standard deviation of the Gaussian, px, that separates the two; `detail`: largest detail that is kept, as a
    share of the colour, so that highlights and shadows fade and creases stay.
    """
    inside = region.astype(np.float32)
    weight = np.maximum(cv2.GaussianBlur(inside, (0, 0), reach), 1e-3)[..., None]
    base = cv2.GaussianBlur(picture * inside[..., None], (0, 0), reach) / weight
    most = detail * colour
    return colour + np.clip(picture - base, -most, most)


def lids(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of the upper lids and a rim around them: with open eyes, a photo shows lashes and shadow there, not skin."""
    return _around(lid_travel(head).max(0), head, rings=LID_RIM)


def _around(travel_m: Float32[np.ndarray, " V"], head: HeadModel, *, rings: int) -> Bool[np.ndarray, " V"]:
    verts, faces = dense(head, head.template), head.dense_faces
    edge_m = float((verts[faces[:, 0]] - verts[faces[:, 1]]).norm(dim=-1).median())
    return grown(travel_m > LID_TRAVEL_M, faces.numpy(), rings=round(rings * EDGE_M / edge_m))


def in_eyes(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of vertices near the rims of the lids, seen from the front: there eyeballs move and hide what is behind."""
    at_rest = dense(head, head.template)
    rims = landmarks(head, at_rest)[[*EYE_RINGS]]
    return (torch.cdist(at_rest[:, :2], rims[:, :2]).min(1).values < IN_EYES_M).numpy()


def prepare(
    photo: UInt8[np.ndarray, "H W 3"],
    alpha: Float32[np.ndarray, "H W"],
    verts_cam: Float32[np.ndarray, "V 3"],
    head: HeadModel,
    camera: Camera,
    hair: Float32[np.ndarray, "H W"],
) -> Layers:
    """Separate the photo into layers by its matte and the fitted head; `hair` is the share of hair in each pixel."""
    image = photo.astype(np.float32)
    close, plate = (background(image, alpha, trace=t, margin=m) for t, m in zip(TRACES, MARGINS, strict=True))
    foreground = unmix(image, alpha, plate)
    verts = torch.from_numpy(verts_cam)
    faces = head.dense_faces.int()
    rast = draw(verts_cam, faces, camera)
    ids = triangle_ids(rast)
    first = faces.numpy()[np.maximum(ids, 0), 0]
    depth = np.where(ids >= 0, verts_cam[first, 2], 1e3).astype(np.float32)
    part = parts_drawn(rast, triangle_parts(head))
    view = torch.nn.functional.normalize(verts, dim=-1)
    cosine = -(vertex_normals(verts, faces) * view).sum(-1).numpy()
    xy = camera.project(verts).numpy()
    zbuffer = cv2.dilate(depth, np.ones((3, 3), np.uint8))
    height, width = depth.shape
    column, row = np.clip(np.floor(xy).astype(int), 0, [width - 1, height - 1]).T
    shown = (cosine > 0.3) & (verts_cam[:, 2] < zbuffer[row, column] + DEPTH_SLACK_M) & ~lids(head)
    grey = cv2.GaussianBlur(foreground, (0, 0), 2.0)[row, column].mean(-1)
    for travel in lid_travel(head):
        around = shown & _around(travel, head, rings=AROUND_LIDS)
        if around.any():
            # The lid's colour is interpolated from these vertices: brows, fringe and dark rings would make it grey.
            shown &= ~(around & (grey < AS_SKIN * np.percentile(grey[around], LIT)))
    return Layers(
        camera=camera,
        photo=photo,
        foreground=np.rint(foreground).astype(np.uint8),
        alpha=alpha,
        plate=np.rint(plate).clip(0, 255).astype(np.uint8),
        close_plate=np.rint(close).clip(0, 255).astype(np.uint8),
        verts=verts_cam,
        xy=xy,
        depth=verts_cam[:, 2].copy(),
        cosine=cosine,
        colour=surface_colours(
            foreground,
            alpha > 0.95,
            xy,
            shown,
            head.dense_faces.numpy(),
            scalp_of(head),
            (head.skinning[:, TORSO] > 0.5).numpy(),
            hair,
        ),
        zbuffer=zbuffer,
        part=part,
        hair=hair,
        hairy=hairiness(head, hair, xy, shown),
    )


def fixed(px) -> np.ndarray:
    """Convert px to OpenCV's fixed-point coordinates (`shift=SUBPIXEL_BITS`)."""
    return np.rint(np.asarray(px) * 2**SUBPIXEL_BITS).astype(np.int32)


def ramp(value, ends: tuple[float, float]):
    """Linear ramp: 0 below the first end, 1 above the second."""
    low, high = ends
    return np.clip((value - low) / (high - low), 0, 1)
