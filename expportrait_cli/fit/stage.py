"""Fit the static head of one person: identity, the photo's pose, and what the outline adds (paper 3.1)."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Float32

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.matte import Matte
from expportrait_cli.fit.silhouette import fit_silhouette, hair_volume
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import from_turns, to_turns
from expportrait_cli.head import HeadModel, dense, landmark_model, landmarks
from expportrait_cli.head.fitted import blend_matrices, canonical_mesh, fitted_mesh
from expportrait_cli.head.model import HEAD
from expportrait_cli.head.solve import Solver
from expportrait_cli.head.spread import LandmarkSpread
from expportrait_cli.head.state import State, nearest_frame
from expportrait_cli.media.source import read_frame
from expportrait_cli.render.rasterizer import rasterize

DRAW_SIZE = 256
SAME_PERSON = (1.12, 0.1)
"""The driver's identity is taken for the photo's own when it fits the photo's landmarks within this factor and these
percent of the inter-ocular distance,"""
SAME_FRAME_IOD = 0.02
"""or when a frame of the driver has the photo's landmarks up to this."""
SHOULDER_LIMIT_DEG = 35.0
EAR_M = 0.066

Progress = Callable[[int, int | None], None]


def fit(
    tracking: Tracking, head: HeadModel, config: FitConfig, progress: Progress, *, driver: Tracking | None = None
) -> HeadFit:
    """Fit the static head to one photo, or to the most neutral frame of a clip.

    With `driver`, its identity is shared if it explains the photo as well: a clip knows more of a face than a photo.
    """
    frame = 0 if len(tracking.error) == 1 else int((tracking.expression.sum(-1) + 100.0 * tracking.state).argmin())
    identity, state = _identity(tracking, frame, head, driver)
    image = crop_image(read_frame(tracking.source, frame), Crop(*tracking.crop), CROP_SIZE)
    matte = Matte().matte(image)
    vertices = head.operator.shape[0]
    zero = np.zeros((vertices, 3), np.float32)
    start = HeadFit(
        source=tracking.source,
        source_hash=tracking.source_hash,
        frame=frame,
        head_model=head.name,
        size=tracking.size,
        crop=tracking.crop,
        focal_px=tracking.focal_px,
        landmarks=tracking.landmarks[frame],
        identity=identity,
        expression=state.expression.astype(np.float32),
        jaw=state.jaw.astype(np.float32),
        gaze=state.gaze.astype(np.float32),
        rotation=to_turns(state.rotation).astype(np.float32),
        translation=state.translation.astype(np.float32),
        torso_rotation=torso_turn(tracking, frame, state),
        static_offset=zero,
        frame_offset=zero,
        silhouette_iou=0.0,
    )
    start = replace(start, frame_offset=_frame_offset(start, head))
    offset = _static_offset(start, head, matte, config, progress)
    done = replace(start, static_offset=offset)
    return replace(done, silhouette_iou=silhouette_iou(done, head, matte))


def _identity(tracking: Tracking, frame: int, head: HeadModel, driver: Tracking | None):
    """The photo's own identity and state, or the driver's when it is the same person."""
    solver = Solver(landmark_model(head), focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
    columns = (tracking.expression, tracking.jaw, tracking.gaze, tracking.translation)
    psi, jaw, gaze, shift = (c[frame].astype(np.float64) for c in columns)
    own = State(psi, jaw, gaze, from_turns(tracking.rotation[frame]), shift)
    if driver is None or driver.head_model != tracking.head_model:
        return tracking.identity, own
    shared = driver.identity.astype(np.float64)
    points = tracking.landmarks[frame]
    state = solver.frame(shared, points, iterations=10)
    factor, slack = SAME_PERSON
    limit = factor * solver.error_iod(tracking.identity.astype(np.float64), own, points) + slack
    if solver.error_iod(shared, state, points) <= limit or nearest_frame(points, driver)[1] < SAME_FRAME_IOD:
        return driver.identity, state
    return tracking.identity, own


def torso_turn(tracking: Tracking, frame: int, state: State) -> Float32[np.ndarray, " 3"]:
    """Turn of the torso from the shoulders' slope and, where none are seen, a third of the head's yaw."""
    yaw = float(to_turns(state.rotation)[1]) / 3
    left, right = tracking.shoulders[frame]
    roll = 0.0
    if np.isfinite([left, right]).all():
        line = left - right
        roll = float(np.arctan2(line[1], line[0]))
    limit = np.radians(SHOULDER_LIMIT_DEG)
    return np.array([0.0, np.clip(yaw, -limit, limit), np.clip(roll, -limit, limit)], np.float32)


def _canonical(fit: HeadFit, head: HeadModel, steps_cam: Float[np.ndarray, "V 3"]) -> Float32[np.ndarray, "V 3"]:
    """Steps in the camera as canonical offsets: the skinning undone."""
    return np.einsum("vji,vj->vi", blend_matrices(fit, head), steps_cam).astype(np.float32)


def _frame_offset(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """What the photo's landmarks say beyond identity and expression, spread over the face."""
    verts = fitted_mesh(fit, head)
    spread = LandmarkSpread(head, fit.identity)
    points = landmarks(head, torch.from_numpy(verts)).numpy()
    seen = points[:, :2] / points[:, 2:] * fit.focal_px + CROP_SIZE / 2
    steps = np.zeros_like(verts)
    depth = verts[spread.vertices, 2:]
    steps[spread.vertices, :2] = spread((fit.landmarks - seen)[None])[0] * depth / fit.focal_px
    return _canonical(fit, head, steps)


def draw_vertices(verts: Float32[np.ndarray, "V 3"], head: HeadModel, focal_px: float, *, size: int) -> np.ndarray:
    """Vertex that each pixel shows (the first of its triangle), -1 for background."""
    camera = Camera.of_crop(focal_px, CROP_SIZE, size)
    rast = rasterize(camera.clip(torch.from_numpy(verts))[None], head.dense_faces, (size, size))
    ids = rast[0, ..., 3].numpy().astype(np.int64) - 1
    return np.where(ids >= 0, head.dense_faces.numpy()[np.maximum(ids, 0), 0], -1)


def _static_offset(fit: HeadFit, head: HeadModel, matte, config: FitConfig, progress: Progress):
    matrices = blend_matrices(fit, head)
    parts = head.operator
    operator = sp.csr_matrix((parts.values(), parts.col_indices(), parts.crow_indices()), parts.shape)
    small = cv2.resize(matte, (DRAW_SIZE, DRAW_SIZE), interpolation=cv2.INTER_AREA)
    scale = DRAW_SIZE / CROP_SIZE

    def posed(offset):
        lifted = dense(head, torch.from_numpy(offset.astype(np.float32))).numpy()
        return fitted_mesh(replace(fit, static_offset=lifted), head)

    offset = fit_silhouette(
        small,
        pose=posed,
        draw=lambda verts: draw_vertices(verts, head, fit.focal_px, size=DRAW_SIZE),
        to_canonical=matrices.transpose(0, 2, 1),
        operator=operator,
        coarse_faces=head.faces.numpy(),
        pinned=_coarse_mask(head.facial_mask.numpy(), operator),
        ears=ear_vertices(head),
        focal_px=fit.focal_px * scale,
        rounds=config.rounds,
        progress=progress,
    )
    lifted = dense(head, torch.from_numpy(offset.astype(np.float32))).numpy()
    shape = canonical_mesh(fit, head, fit)
    scalp = (head.skinning[:, HEAD] > 0.9) & (head.facial_mask < 0.1) & head.part("skin")
    lifted = hair_volume(lifted, shape.numpy(), vertex_normals(shape, head.dense_faces).numpy(), scalp.numpy())
    # A hard multiplication, not a penalty: the static field of one photo is exactly zero on the face.
    return lifted.astype(np.float32) * (1 - head.facial_mask.numpy())[:, None].astype(np.float32)


def ear_vertices(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """What stands out beside the head at the height of its origin, which lies between the ears."""
    x, y, z = dense(head, head.template).numpy().T
    return (np.abs(x) > EAR_M) & (np.abs(y) < 0.045) & (z > -0.045) & (z < 0.03)


def _coarse_mask(mask: Float32[np.ndarray, " V"], operator: sp.csr_matrix) -> Float[np.ndarray, " N"]:
    """A mask of the dense vertices on the coarse ones: 1 where most of what a vertex moves is inside."""
    return np.asarray((operator.T @ mask) / np.maximum(operator.T @ np.ones_like(mask), 1e-9) > 0.5, float)


def silhouette_iou(fit: HeadFit, head: HeadModel, matte: Float32[np.ndarray, "S S"]) -> float:
    """Overlap of the posed head and the matte."""
    drawn = draw_vertices(fitted_mesh(fit, head), head, fit.focal_px, size=CROP_SIZE) >= 0
    person = matte > 0.5
    return float((drawn & person).sum() / max((drawn | person).sum(), 1))
