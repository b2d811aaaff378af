"""Drawing of heads, and the smooth offset of hair, ears and clothes that fits their outline to a matte's."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from scipy.sparse.linalg import splu
from scipy.spatial import KDTree
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Relief
from expportrait_cli.fitting.clip import Clip, plain_skin
from expportrait_cli.fitting.parametric import whole_patch
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import directed_edges
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.fitted import fitted_mesh, relief_of
from expportrait_cli.render.buffers import Buffers, Bump, render_buffers
from expportrait_cli.render.rasterizer import interpolate, rasterize
from expportrait_cli.runtime import Progress

SMOOTH_FIRST, SMOOTH_LAST = 1.0, 0.05
"""Relative weight of the offset's smoothness in the first and in the last round."""
PIN = 30.0
"""Weight that keeps pinned vertices at offset 0."""
REACH_PX = 110.0
"""Largest distance between an outline point and its match, px of the drawing."""
FACING = 0.5
"""Least cosine between the normals of an outline point and its match: a cheek must not be pulled to the other side."""


def outline(mask: Float[np.ndarray, "H W"], *, step: int) -> tuple[Float[np.ndarray, "P 2"], Float[np.ndarray, "P 2"]]:
    """Every `step`th point (px, centres at +0.5) of a mask's outline off the image border, and outward unit normals."""
    height, width = mask.shape
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 2.0)
    contours, _ = cv2.findContours((smooth > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return np.zeros((0, 2)), np.zeros((0, 2))
    long = [np.asarray(c)[::step, 0].astype(np.int64) for c in contours if len(c) > 40]
    points = np.concatenate([np.zeros((0, 2), np.int64), *long])
    inside = (points > 3).all(1) & (points < np.array([width, height]) - 4).all(1)
    points = points[inside]
    gx, gy = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
    normals = -np.stack([gx, gy], -1)[points[:, 1], points[:, 0]].astype(np.float64)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return points + 0.5, normals


def graph_laplacian(faces: Int[np.ndarray, "F 3"], count: int) -> sp.csr_matrix:
    """Matrix [V, V] that gives the difference of every vertex from the mean of its neighbours; `count` is V."""
    edges = directed_edges(faces)
    adjacency = sp.coo_matrix((np.ones(len(edges)), edges.T), (count, count)).tocsr()
    adjacency.data[:] = 1.0
    degree = np.maximum(np.asarray(adjacency.sum(1))[:, 0], 1.0)
    return sp.csr_matrix(sp.eye(count) - sp.diags(1 / degree) @ adjacency)


def fit_silhouette(
    matte: Float[np.ndarray, "H W"],
    *,
    pose: Callable[[Float[np.ndarray, "N 3"]], Float[np.ndarray, "V 3"]],
    draw: Callable[[Float[np.ndarray, "V 3"]], Int[np.ndarray, "H W"]],
    to_canonical: Float[np.ndarray, "V 3 3"],
    operator: sp.csr_matrix,
    coarse_faces: Int[np.ndarray, "F 3"],
    pinned: Float[np.ndarray, " N"],
    ears: Bool[np.ndarray, " V"],
    focal_px: float,
    rounds: int,
    progress: Progress,
) -> Float[np.ndarray, "N 3"]:
    """Offset of the coarse canonical vertices, m, that fits the drawn outline to the matte's.

    `pose` poses a head with an offset (crop camera), `draw` gives the dense vertex of each pixel or -1, `to_canonical`
    rotates vectors of dense vertices from the camera to the canonical frame. `pinned`: 1 where a coarse vertex is kept.
    """
    count = int(coarse_faces.max()) + 1
    laplacian = graph_laplacian(coarse_faces, count)
    smooth_matrix = (laplacian.T @ laplacian).tocsc()
    base = sp.diags(PIN * pinned + 1e-4)
    offset = np.zeros((count, 3))
    target, target_normals = outline(matte, step=2)
    if len(target) < 20:
        return offset
    target_tree = KDTree(target)
    for round_index in range(rounds):
        progress(round_index, rounds)
        verts = pose(offset)
        drawn = draw(verts)
        points, normals = outline((drawn >= 0).astype(np.float32), step=2)
        if len(points) < 20:
            break
        vertex = _vertex_near(drawn, points)
        points, normals, vertex = points[vertex >= 0], normals[vertex >= 0], vertex[vertex >= 0]
        rows, shift = _matches(points, normals, target, target_normals, target_tree)
        vertex = vertex[rows]
        # Points on ears are left out: an ear pulled at its rim would fold.
        free = ~ears[vertex]
        rows, shift, vertex = rows[free], shift[free], vertex[free]
        # Only the component across the outline is used: along it a match is arbitrary.
        across = normals[rows] * (shift * normals[rows]).sum(1, keepdims=True)
        depth = verts[vertex, 2]
        step_cam = np.c_[across * (depth / focal_px)[:, None], np.zeros(len(across))]
        step = np.einsum("pij,pj->pi", to_canonical[vertex], step_cam)
        selected = operator[vertex]
        wanted = selected @ offset + step
        smooth = SMOOTH_FIRST * (SMOOTH_LAST / SMOOTH_FIRST) ** (round_index / max(rounds - 1, 1))
        weight = 1.0 / max(len(rows), 1) * 400
        matrix = (smooth * smooth_matrix * 20 + base + weight * (selected.T @ selected)).tocsc()
        # Symmetric: half the fill.
        factor = splu(matrix, "MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options={"SymmetricMode": True})
        offset = factor.solve(weight * (selected.T @ wanted))
    progress(rounds, rounds)
    return offset


def _vertex_near(drawn: Int[np.ndarray, "H W"], points: Float[np.ndarray, "P 2"]) -> Int[np.ndarray, " P"]:
    """Vertex drawn at each outline point, or at the nearest pixel within 2 px; -1 where there is none."""
    height, width = drawn.shape
    found = np.full(len(points), -1)
    for dy, dx in sorted(
        ((y, x) for y in (-2, -1, 0, 1, 2) for x in (-2, -1, 0, 1, 2)), key=lambda s: s[0] ** 2 + s[1] ** 2
    ):
        x = np.clip(points[:, 0].astype(int) + dx, 0, width - 1)
        y = np.clip(points[:, 1].astype(int) + dy, 0, height - 1)
        found = np.where(found < 0, drawn[y, x], found)
    return found


def _matches(points, normals, target, target_normals, target_tree):
    """Match outlines in both directions: indices into `points`, and vectors to the matte's outline, px."""
    distance, nearest = target_tree.query(points, k=12, distance_upper_bound=REACH_PX)
    rows, steps = [], []
    for k in range(12):
        ok = np.isfinite(distance[:, k])
        index = np.where(ok, nearest[:, k], 0)
        ok &= (normals * target_normals[index]).sum(1) > FACING
        taken = np.isin(np.arange(len(points)), np.concatenate(rows)) if rows else np.zeros(len(points), bool)
        ok &= ~taken
        rows.append(np.flatnonzero(ok))
        steps.append(target[index[ok]] - points[ok])
    # Also from the matte to the head, so that a lock of hair which is nearest to no point is matched too.
    tree = KDTree(points)
    distance, nearest = tree.query(target, distance_upper_bound=REACH_PX)
    ok = np.isfinite(distance)
    index = np.where(ok, nearest, 0)
    ok &= (normals[index] * target_normals).sum(1) > FACING
    rows.append(index[ok])
    steps.append(target[ok] - points[index[ok]])
    return np.concatenate(rows), np.concatenate(steps)


def draw_vertices(verts: Float32[np.ndarray, "V 3"], head: HeadModel, focal_px: float, *, size: int) -> np.ndarray:
    """Vertex that each pixel shows (the first of its triangle), -1 for background."""
    camera = Camera.of_crop(focal_px, CROP_SIZE, size)
    rast = rasterize(camera.clip(torch.from_numpy(verts))[None], head.dense_faces, (size, size))
    ids = rast[0, ..., 3].numpy().astype(np.int64) - 1
    return np.where(ids >= 0, head.dense_faces.numpy()[np.maximum(ids, 0), 0], -1)


SHOWN = 0.3
"""Least visibility (0..1) of a surface point in the photo at which its detail is compared."""


@dataclass(frozen=True)
class DrawnClip:
    """The head fitted to a clip's first frame, drawn with each frame's pose and expression."""

    clip: Clip
    relief: Relief
    bump: Bump | None
    offset: Float32[np.ndarray, "1 V 3"]
    """Dynamic offset of the first frame, canonical, m; used in every frame, as for a single photo."""

    @classmethod
    def of(cls, clip: Clip, fit: HeadFit) -> "DrawnClip":
        """Take the motion from the clip, and offsets and detail from the fit of its first frame."""
        relief = relief_of(fit, clip.head)
        return cls(clip, relief, Bump.of(relief, scale=1.0), fit.frame_offset[None])

    @property
    def camera(self) -> Camera:
        """Camera of the clip's crop."""
        return Camera.of_crop(self.clip.focal_px, CROP_SIZE, CROP_SIZE)

    def verts(self, row: int) -> Float32[Tensor, "1 V 3"]:
        """Vertices of a frame, camera, m."""
        return self.clip.pose(np.array([row]), whole_patch(self.clip), self.offset)[0]

    def vertices(self, verts: Float32[Tensor, "1 V 3"]) -> Int64[np.ndarray, "S S"]:
        """Vertex that each pixel shows, -1 for background."""
        return draw_vertices(verts[0].numpy(), self.clip.head, self.clip.focal_px, size=CROP_SIZE)

    def seen(self, verts: Float32[Tensor, "1 V 3"], bump: Bump | None) -> Buffers:
        """Render normals, depth and mask, with the detail of `bump`."""
        with torch.inference_mode():
            return render_buffers(verts, self.clip.head.dense_faces, self.camera, bump=bump)

    def heights_mm(self, verts: Float32[Tensor, "1 V 3"]) -> Float32[np.ndarray, "S S"]:
        """Height of the static detail in each pixel; NaN where the photo does not show the surface."""
        if not self.relief.heights.size:
            return np.full((CROP_SIZE, CROP_SIZE), np.nan, np.float32)
        faces = self.clip.head.dense_faces
        carried = torch.from_numpy(np.c_[self.relief.places, self.relief.seen].astype(np.float32))[None]
        with torch.inference_mode():
            rast = rasterize(self.camera.clip(verts), faces, (CROP_SIZE, CROP_SIZE))
            x, y, seen = interpolate(carried, rast, faces)[0].numpy().transpose(2, 0, 1)
        scale = len(self.relief.heights) / CROP_SIZE
        heights = cv2.remap(self.relief.heights.astype(np.float32), x * scale - 0.5, y * scale - 0.5, cv2.INTER_LINEAR)
        return np.where(seen > SHOWN, 1000 * heights, np.nan).astype(np.float32)


BRIGHT = 0.62
"""Lightness (L*) above which a pixel may be a tooth, as a share of the 95th percentile between the lips."""
LEAST_LIT = 0.8
"""Least lightness of teeth, as a share of the skin's; below it no teeth are read."""
LONGEST_M = 0.007
"""Largest distance, m, by which the upper teeth are moved down."""
FRONT_M = 0.010
"""Half the width, m, of the row of teeth whose edge is read."""
FEW_PX = 12


def longer_teeth(fit: HeadFit, head: HeadModel, image: UInt8[np.ndarray, "S S 3"]) -> HeadFit:
    """Move the upper teeth down to their edge in the photo, if it is visible.

    Landmarks do not distinguish a raised lip from an open jaw; behind a raised lip there are teeth.
    """
    verts, front = fitted_mesh(fit, head), head.part(*({"teeth_upper"} & set(head.part_names))).numpy()
    front &= np.abs(dense(head, head.template)[:, 0].numpy()) < FRONT_M
    drawn = draw_vertices(verts, head, fit.focal_px, size=CROP_SIZE)
    inner = head.part(*({"teeth_upper", "teeth_lower", "mouth_cavity"} & set(head.part_names))).numpy()
    inside = cv2.erode(((drawn >= 0) & inner[drawn]).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    if inside.sum() < FEW_PX or not front.any():
        return fit
    lab, skin = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32), (drawn >= 0) & plain_skin(head)[drawn]
    light, red = lab[..., 0], lab[..., 1]
    top = np.percentile(light[inside], 95)
    tooth = inside & (light > BRIGHT * top) & (red < np.median(red[skin])) if skin.any() else inside & False
    up = from_turns(fit.rotation)[:2, 1] / np.linalg.norm(from_turns(fit.rotation)[:2, 1])
    px = verts[front, :2] / verts[front, 2:] * fit.focal_px + CROP_SIZE / 2
    rows, columns = np.nonzero(tooth)
    places = np.stack([columns, rows], -1) + 0.5 - px.mean(0)
    m_per_px = float(verts[front, 2].mean()) / fit.focal_px
    heights = (places @ up)[np.abs(places @ [-up[1], up[0]]) * m_per_px < FRONT_M]
    if len(heights) < FEW_PX or top < LEAST_LIT * np.median(light[skin]):
        return fit
    edge = float(((px - px.mean(0)) @ up).min())
    step = np.clip((np.percentile(heights, 8) - edge) * m_per_px, -LONGEST_M, 0)
    static = fit.static_offset.copy()
    static[head.part("teeth_upper").numpy(), 1] += np.float32(step)
    return replace(fit, static_offset=static)
