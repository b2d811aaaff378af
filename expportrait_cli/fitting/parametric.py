"""The first phase of a fit: identity, expression, pose and camera of the head model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Tracking
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fitting.clip import Clip
from expportrait_cli.fitting.evidence import Evidence
from expportrait_cli.fitting.losses import LandmarkLoss
from expportrait_cli.fitting.patch import Patch, Surface
from expportrait_cli.geometry import rotations
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmark_model, pose
from expportrait_cli.head.facemesh import FACE_OVAL, IRIS
from expportrait_cli.head.fitted import pose_of
from expportrait_cli.head.model import HeadPose
from expportrait_cli.media.video import read_frame
from expportrait_cli.solve.solver import IDENTITY_PRIOR, ITERATIONS, ITERATIONS_FIRST, TEMPORAL, UNIT_IOD, Solver
from expportrait_cli.solve.state import State, columns_of, distinct_rows, interocular_px, nearest_frame

SAME_FRAME_IOD = 0.02
"""Largest mean distance of landmarks, in inter-ocular distances, at which a driver frame may be the photo."""
SAME_PIXELS, FACE_SIDE = 0.9, 32
"""SAME_PIXELS: least correlation of the brightness of both faces at which the frame is the photo. FACE_SIDE: side of
the compared faces, px. One picture coded twice has 0.99, with landmarks 2 px off 0.9; strangers stay below 0.75."""
KEY_FRAMES = 8
"""Number of frames of each clip from which a shared identity is estimated."""


def solver_of(tracking: Tracking, head: HeadModel) -> Solver:
    """Landmark solver with the focal length of a tracking."""
    return Solver(landmark_model(head), focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)


def neutral_frame(tracking: Tracking) -> int:
    """Index of the reliable frame of least expression, whose picture a head is made from."""
    if len(tracking.error) == 1:
        return 0
    effort = np.abs(tracking.expression).sum(-1) + np.abs(tracking.jaw).sum(-1)
    return int((effort + 100.0 * ~tracking.sure).argmin())


def shared_identity(trackings: Sequence[Tracking], head: HeadModel) -> Float32[np.ndarray, " K"]:
    """Identity fitted jointly to the key frames of several trackings of one person.

    Landmarks are scaled about the principal point to the first tracking's focal length.
    """
    first = trackings[0]
    points = []
    for tracking in trackings:
        keys = key_frames(tracking, head)
        centred = (tracking.landmarks[keys] - CROP_SIZE / 2) * (first.focal_px / tracking.focal_px)
        points.append(centred + CROP_SIZE / 2)
    identity, _ = solver_of(first, head).identity(np.concatenate(points).astype(np.float32), prior=IDENTITY_PRIOR)
    return identity.astype(np.float32)


def key_frames(tracking: Tracking, head: HeadModel) -> Int64[np.ndarray, " R"]:
    """Indices of the reliable frames that differ most in pose and expression."""
    rows = np.flatnonzero(tracking.sure)
    values = np.c_[2.0 * tracking.rotation, head.shares(tracking.expression), tracking.jaw][rows]
    return rows[distinct_rows(values, KEY_FRAMES)]


def shows_photo(driver: Tracking, photo: Tracking) -> bool:
    """Return True if a frame of the driver is the photo: landmarks and pixels of the face agree.

    The landmark error of a common identity is no usable criterion: it accepts 22 of 255 pairs of strangers.
    """
    frame = neutral_frame(photo)
    nearest, away_iod = nearest_frame(photo.landmarks[frame], driver)
    if away_iod > SAME_FRAME_IOD or not Path(driver.source).is_file():
        return False
    faces = np.stack([_face_pixels(photo, frame), _face_pixels(driver, nearest)])
    return float(np.corrcoef(faces)[0, 1]) > SAME_PIXELS


def _face_pixels(tracking: Tracking, frame: int) -> Float32[np.ndarray, " N"]:
    """Brightness of the square around the inner face of one frame, scaled to `FACE_SIDE` px, as a vector."""
    image = crop_image(
        read_frame(tracking.source, tracking.first_frame + frame), Crop(*map(float, tracking.crop)), CROP_SIZE
    )
    points = np.delete(tracking.landmarks[frame], FACE_OVAL + IRIS, axis=0)
    side = float(np.ptp(points, axis=0).max())
    left, top = points.mean(0) - side / 2
    face = crop_image(image, Crop(float(left), float(top), side), FACE_SIDE)
    return face.astype(np.float32).mean(-1).ravel()


def with_identity(tracking: Tracking, identity: Float32[np.ndarray, " K"], head: HeadModel) -> Tracking:
    """Fit expression, jaw, gaze and pose of every frame again, with this identity."""
    if np.array_equal(identity, tracking.identity):
        return tracking
    solver, shape = solver_of(tracking, head), identity.astype(np.float64)
    states: list[State] = []
    for t, points in enumerate(tracking.landmarks):
        if t == 0 or tracking.shot[t] != tracking.shot[t - 1]:
            states.append(solver.frame(shape, points, iterations=ITERATIONS_FIRST))
        else:
            states.append(solver.frame(shape, points, start=states[-1], temporal=TEMPORAL, iterations=ITERATIONS))
    errors = [solver.error_iod(shape, s, points) for s, points in zip(states, tracking.landmarks, strict=True)]
    return replace(tracking, identity=identity, **columns_of(states), error=np.asarray(errors, np.float32))


def as_frame_of(photo: Tracking, driver: Tracking, head: HeadModel) -> Tracking:
    """Give a photo, which is a frame of `driver`, that frame's rotation, expression, jaw and gaze.

    Two solutions of one picture differ by up to 2 degrees, because the driver's also follow its motion, and a film of
    the photo would begin with that difference. Only the translation is solved, because the crops differ: the projected
    landmarks of the driver's head, brought from its crop into the photo's, are its targets.
    """
    solver, landmarks = solver_of(photo, head), photo.landmarks[0].astype(np.float64)
    frame, _ = nearest_frame(photo.landmarks[0], driver)
    theirs = driver.landmarks[frame].astype(np.float64)
    state = State(
        expression=driver.expression[frame].astype(np.float64),
        jaw=driver.jaw[frame].astype(np.float64),
        gaze=driver.gaze[frame].astype(np.float64),
        rotation=rotations.from_turns(driver.rotation[frame]),
        translation=driver.translation[frame].astype(np.float64),
    )
    projected = solver_of(driver, head).predict(driver.identity, state)
    between = rotations.similarity(theirs, landmarks)
    targets = projected @ between[:, :2].T + between[:, 2]
    state = replace(state, translation=solver.translation(driver.identity, state, targets))
    error = solver.error_iod(driver.identity, state, landmarks)
    return replace(photo, identity=driver.identity, **columns_of([state]), error=np.array([error], np.float32))


WIDENING = ("mouthSmile", "mouthDimple", "mouthStretch", "mouthPress")
WIDENED = 1.8
"""Factor from the smile coefficients that the solver finds in a single photo to the true ones: identity and the
landmarks' residual absorb the rest. With this factor the neutral mouths of 36 photos are 51 to 62 % of the
inter-ocular distance wide, whether they smile or not; without it, 48 to 71 %."""


def with_whole_smile(tracking: Tracking, head: HeadModel) -> Tracking:
    """Scale up the smile in a photo's tracking: one picture does not distinguish it from a wide mouth (`WIDENED`)."""
    factor = np.array([WIDENED if name.startswith(WIDENING) else 1.0 for name in head.expression_names], np.float32)
    whole = np.clip(tracking.expression * factor, head.expression_low.numpy(), head.expression_high.numpy())
    return replace(tracking, expression=whole.astype(np.float32))


DESCENT_STEPS = 60
RATES = {"identity": 3e-2, "expression": 1e-2, "jaw": 3e-3, "turn": 1e-3, "translation": 5e-4}


@dataclass(frozen=True)
class _Frames:
    """Fixed inputs of the descent: the clip, and the tracked poses of its key frames."""

    clip: Clip
    tracked: HeadPose

    def surface(self, moved: dict[str, Tensor]) -> Surface:
        """Pose the whole head in every frame with the current parameters `moved`."""
        head, tracked = self.clip.head, self.tracked
        identity, jaw = moved["identity"], moved["jaw"]
        shape = coarse(head, identity.expand(len(jaw), -1), moved["expression"], jaw, tracked.gaze)
        canonical = dense(head, shape) + torch.from_numpy(self.clip.fit.static_offset)
        turn = rotations.axis_angle(rotations.matrix(moved["turn"]) @ rotations.matrix(tracked.rotation))
        at = replace(tracked, jaw=jaw, rotation=turn, translation=moved["translation"])
        verts = pose(head, canonical, joints(head, identity), at)
        return Surface.of(torch.zeros_like(verts), verts, head.dense_faces, focal_px=self.clip.focal_px)


def whole_patch(clip: Clip) -> Patch:
    """Patch of every vertex of the head."""
    faces = clip.head.dense_faces.numpy()
    return Patch.of(faces, np.ones(len(clip.head.parts), np.float32))


def refined_identity(clip: Clip, evidence: Evidence) -> Float32[np.ndarray, " K"]:
    """Refine the identity, together with expression and pose of the key frames, starting at the tracking's values.

    `evidence` must be made for `whole_patch`. Returns the identity of least loss; the caller must fit the frames again
    (`with_identity`).
    """
    rows = key_frames(clip.tracking, clip.head)
    curves = clip.rows(rows)
    crops = list(clip.crops(rows))
    verts, _ = clip.pose(rows, whole_patch(clip))
    terms = [*evidence.terms(crops, verts), landmark_term(clip, rows)]
    tracked = pose_of(curves, curves.torso_translation)
    frames = _Frames(clip, tracked)
    moved = {
        "identity": torch.from_numpy(clip.fit.identity.copy()),
        "expression": torch.from_numpy(curves.expression.copy()),
        "jaw": tracked.jaw.clone(),
        "turn": torch.zeros(len(rows), 3),
        "translation": tracked.translation.clone(),
    }
    return _descend(frames, moved, terms).numpy()


def _descend(frames: _Frames, moved: dict[str, Tensor], terms: Sequence) -> Float[Tensor, " K"]:
    head = frames.clip.head
    low, high = head.expression_low.float(), head.expression_high.float()
    optimiser = torch.optim.Adam([{"params": [moved[name].requires_grad_()], "lr": RATES[name]} for name in RATES])
    best, least = moved["identity"].detach().clone(), torch.inf
    for iteration in range(DESCENT_STEPS + 1):
        surface = frames.surface(moved)
        loss = torch.stack([term(surface).mean() for term in terms]).sum()
        loss = loss + frames.clip.config.weights.identity * moved["identity"].square().mean()
        loss = loss + frames.clip.config.weights.expression * moved["expression"].square().mean()
        if loss.item() < least:
            best, least = moved["identity"].detach().clone(), loss.item()
        if iteration < DESCENT_STEPS:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            moved["expression"].data.clamp_(low, high)
    return best


def landmark_term(clip: Clip, rows: np.ndarray) -> LandmarkLoss:
    """Make the landmark loss of some frames: Eq. 5, robust, in units of `UNIT_IOD`."""
    points = clip.tracking.landmarks[rows]
    weight = np.ones(points.shape[:2], np.float32)
    weight[:, FACE_OVAL + IRIS] = 0.0
    unit = np.array([UNIT_IOD * interocular_px(frame) for frame in points], np.float32)
    return LandmarkLoss(
        triangles=clip.head.landmark_triangles,
        barycentrics=clip.head.landmark_barycentrics,
        target=torch.from_numpy((points - CROP_SIZE / 2).astype(np.float32)),
        weight=torch.from_numpy(weight),
        unit_px=torch.from_numpy(unit),
        focal_px=clip.focal_px,
    )
