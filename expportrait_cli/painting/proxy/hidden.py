"""Parts of a turned head that the photo does not show: which of its pixels are used, and what replaces the others."""

from typing import Any

import cv2
import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Int64, UInt8
from scipy.sparse.linalg import splu
from scipy.spatial import KDTree

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import directed_edges
from expportrait_cli.head import HeadModel, dense

NO_MAP: Any = None
"""Second map of `cv2.remap` where the first contains x and y. Its type stubs require an array, but OpenCV 5 reads
garbage from an empty one."""
EAR_BOX_M = ((0.055, -0.045, -0.05), (0.2, 0.045, 0.03))
"""Low and high corner of the box around an ear in the template: distance from the middle, height, and depth, m."""
EAR_STANDS_M = 0.006
"""Least distance, m, of an ear's vertex from the smooth (harmonic) surface that is spanned over the ear's box from its
border."""
BESIDE_EARS_M = (0.05, 0.01)
"""Scalp below this height and behind this depth (template, m) counts as hair: the photo's pixels there show the ear in
front of it."""
NAPE_M = (-0.06, -0.015)
"""Height above which, and depth behind which, skin at the back of the neck belongs to the scalp (template, m)."""
FEW_HAIRS = 10
"""Fewest scalp vertices at which the photo shows hair for hidden scalp to take the hair's colour."""
NEIGHBOURS = 16
"""Number of the nearest visible scalp vertices whose mean share of hair a scalp vertex takes."""
RIM_PX = 2
"""Width of the person's rim in the photo, px, that is not used on a turned head: the background shines through it."""
IS_HAIR = (0.25, 0.6)
"""Share of hair in a pixel of the photo at which its weight as the colour of a scalp with hair is 0, and 1."""
SHADE = 0.12
"""Share by which hidden hair is painted darker than visible hair."""
PATCH = (0.6, 0.08)
"""Largest and smallest side of the square patch that strands are read from, in face heights."""
PURE = 0.97
"""Least mean share of hair in that patch."""


def scalp_of(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of the scalp without ears, down to the nape."""
    place, (lowest, front) = _template(head), NAPE_M
    nape = (head.part("skin") & (head.facial_mask < 0.1)).numpy() & (place[:, 1] > lowest) & (place[:, 2] < front)
    low, high = np.array(EAR_BOX_M)
    beside = np.c_[np.abs(place[:, 0]), place[:, 1:]]
    near = head.part("skin").numpy() & ((beside > low) & (beside < high)).all(1)
    free, fixed = np.flatnonzero(near), np.flatnonzero(~near)
    rows = _laplacian(directed_edges(head.dense_faces.numpy()), len(place))[free]
    film = splu(rows[:, free].tocsc()).solve(-(rows[:, fixed] @ place[fixed]).astype(np.float64))
    ears = near.copy()
    ears[free] = np.linalg.norm(place[free] - film, axis=1) > EAR_STANDS_M
    return (head.scalp | nape) & ~ears


def _laplacian(edges: Int64[np.ndarray, "E 2"], count: int) -> sp.csr_matrix:
    """Laplacian D - W of the graph of `count` vertices; an edge's weight is how often it occurs in `edges`.

    For a mesh that is the number of triangles at the edge. `geometry.mesh.laplacian` counts every edge once.
    """
    adjacency = sp.coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    return sp.csr_matrix(sp.diags(np.asarray(adjacency.sum(1))[:, 0]) - adjacency)


def _template(head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    return dense(head, head.template).numpy().astype(np.float32)


def hairiness(
    head: HeadModel, hair: Float32[np.ndarray, "H W"], xy: Float32[np.ndarray, "V 2"], shown: Bool[np.ndarray, " V"]
) -> Float32[np.ndarray, " V"]:
    """Share (0..1) of hair at each vertex: the mean of the `NEIGHBOURS` nearest scalp vertices that the photo shows.

    So the back of a head has hair if its front has. 0 off the scalp, and everywhere if hardly any hair is visible.
    """
    scalp, (x, y, z) = scalp_of(head), _template(head).T
    share = np.zeros(len(scalp), np.float32)
    behind = (y < BESIDE_EARS_M[0]) & (z < BESIDE_EARS_M[1])
    known = np.flatnonzero(scalp & shown & ~behind)
    height, width = hair.shape
    column, row = np.clip(np.floor(xy[known]).astype(int), 0, [width - 1, height - 1]).T
    own = hair[row, column]
    if (own > 0.5).sum() < FEW_HAIRS:
        return share
    points, rest = np.c_[x, y, z], np.flatnonzero(scalp)
    _, near = KDTree(points[known]).query(points[rest], min(NEIGHBOURS, len(known)))
    share[rest] = own[near.reshape(len(rest), -1)].mean(1)
    share[scalp & behind] = 1
    return share


def surface_colours(
    foreground: Float32[np.ndarray, "H W 3"],
    solid: Bool[np.ndarray, "H W"],
    xy: Float32[np.ndarray, "V 2"],
    shown: Bool[np.ndarray, " V"],
    faces: Int64[np.ndarray, "F 3"],
    scalp: Bool[np.ndarray, " V"],
    torso: Bool[np.ndarray, " V"],
    hair: Float32[np.ndarray, "H W"],
) -> Float32[np.ndarray, "V 3"]:
    """RGB of every vertex: read where the photo shows it, interpolated harmonically over the mesh elsewhere.

    Torso, scalp and the rest are interpolated separately, and the scalp from hair only (`hair`, share of each pixel):
    ears and neck do not bleed into it, nor clothes into the neck. Without visible hair, face and scalp are one region.
    """
    height, width = solid.shape
    pixel = np.floor(xy).astype(int)
    inside = (pixel >= 0).all(1) & (pixel < [width, height]).all(1)
    column, row = np.clip(pixel, 0, [width - 1, height - 1]).T
    known = shown & inside & solid[row, column]
    is_hair = known & scalp & (hair[row, column] > 0.5)
    has_hair = is_hair.sum() >= FEW_HAIRS
    if has_hair:
        known &= ~scalp | is_hair
    smooth = cv2.GaussianBlur(foreground, (0, 0), 2.0)
    colour = smooth[row, column]
    region = torso + 2 * (scalp & has_hair)
    edges = directed_edges(faces)
    edges = edges[region[edges[:, 0]] == region[edges[:, 1]]]
    count = len(xy)
    free, laplacian = np.flatnonzero(~known), _laplacian(edges, count)
    # The small diagonal lets pieces that nothing is known of (a hidden eyeball) take the mean.
    laplacian = (laplacian + 1e-4 * sp.identity(count, format="csr")).tocsr()
    mean = colour[known].mean(0) if known.any() else np.full(3, 128.0)
    right = -laplacian[free][:, known] @ colour[known] + 1e-4 * mean
    colour = colour.astype(np.float32)
    colour[free] = splu(laplacian[free][:, free].tocsc()).solve(right)
    return colour


class Hidden:
    """Data for painting the skin and hair that a turned head shows and the photo does not."""

    def __init__(
        self,
        head: HeadModel,
        camera: Camera,
        foreground: UInt8[np.ndarray, "H W 3"],
        alpha: Float32[np.ndarray, "H W"],
        hair: Float32[np.ndarray, "H W"],
        hairy: Float32[np.ndarray, " V"],
        *,
        depth_m: float,
        face_height_px: float,
    ):
        """`hairy` comes from `hairiness`; `depth_m` is the scalp's mean distance from the camera, m."""
        place, kernel = _template(head), np.ones((2 * RIM_PX + 1, 2 * RIM_PX + 1), np.uint8)
        # Coordinates around the head and down, mirrored left to right, so that there is no seam at the back.
        around = np.hypot(place[:, 0], place[:, 2]) * np.arctan2(np.abs(place[:, 0]), place[:, 2])
        px_per_m = camera.focal_px / depth_m
        self.attributes = np.c_[around * px_per_m, -place[:, 1] * px_per_m, hairy].astype(np.float32)
        """Of each vertex: coordinates around the head and down, px of the photo, and share of hair (`Attributes`)."""
        self.solid = cv2.blur(cv2.erode((alpha > 0.9).astype(np.float32), kernel), (3, 3))
        low, high = IS_HAIR
        self.hair = np.clip((hair - low) / (high - low), 0, 1).astype(np.float32)
        self.strands = strands(foreground, np.minimum(hair, self.solid), face_height_px)


def strands(
    foreground: UInt8[np.ndarray, "H W 3"], hair: Float32[np.ndarray, "H W"], face_height_px: float
) -> Float32[np.ndarray, "S S"] | None:
    """Relative brightness of strands in the largest square of the photo with hair only; None without such a square.

    It is transposed if needed so that strands run vertically, and can be tiled by mirroring.
    """
    largest, smallest = PATCH
    for side in np.geomspace(largest, smallest, 9) * face_height_px:
        size = round(float(side))
        if size < 12 or size >= min(hair.shape):
            continue
        filled = cv2.boxFilter(hair, -1, (size, size), borderType=cv2.BORDER_CONSTANT)
        row, column = np.unravel_index(int(filled.argmax()), filled.shape)
        if filled[row, column] < PURE:
            continue
        top, left = max(int(row) - size // 2, 0), max(int(column) - size // 2, 0)
        grey = foreground[top : top + size, left : left + size].mean(-1).astype(np.float32)
        base = cv2.GaussianBlur(grey, (0, 0), max(size / 8, 2.0))
        detail = np.clip((grey - base) / np.maximum(base, 12.0), -0.6, 0.6)
        across, down = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
        if float((down**2).sum()) > float((across**2).sum()):
            detail = np.ascontiguousarray(detail.T)
        return detail
    return None
