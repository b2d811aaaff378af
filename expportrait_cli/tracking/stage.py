"""Tracking of a photo or clip: observations, then identity, expression and pose; or parameters of other programs."""

import logging
import re
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.types import CROP_SIZE, Tracking, surest
from expportrait_cli.config import TrackConfig
from expportrait_cli.errors import InputError, one_line
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import rodrigues
from expportrait_cli.head import HeadModel, dense, landmark_model
from expportrait_cli.head.model import HEAD
from expportrait_cli.runtime import Progress
from expportrait_cli.solve.solver import IDENTITY_PRIOR, ITERATIONS, ITERATIONS_FIRST, TEMPORAL, Anchors, Solver
from expportrait_cli.solve.state import State, columns_of, distinct_rows, focal_for, initial_state, interocular_px
from expportrait_cli.tracking.observe import Observations, ShowFaces, observe

TURN_DEG = 20.0
"""Rotation out of the image plane, degrees, at which the weight of the optical flow is 1/e."""
SURE = 0.2
"""Confidence of the flow from which it has full weight."""
WEIGHT = 600.0
"""Full weight of all flow points together, in landmarks."""
DISAGREE_IOD = (0.01, 0.15)
"""Distance between the hair's position by flow and by landmarks alone, in inter-ocular distances, at which the weight
of the flow is 1/e: at confidence 0, and the increase at confidence 1. Hair need not move with the head."""
LOWEST_M = -0.01
"""Least height of the flow points in the template, m."""


def hair_points(head: HeadModel) -> np.ndarray:
    """Points of forehead, scalp and temples that are visible from the front, in the head frame, m."""
    verts = dense(head, head.template)
    ahead = vertex_normals(verts, head.dense_faces)[:, 2] > 0.1
    scalp = (head.skinning[:, HEAD] > 0.9) & (verts[:, 1] > LOWEST_M) & (head.facial_mask < 0.6)
    return verts[ahead & scalp & head.part("skin")][::16].numpy().astype(np.float64)


@dataclass(frozen=True)
class Start:
    """States of the first frame of a shot: solved (`state`), and the pose by landmarks alone (`rigid`)."""

    state: State
    rigid: State


def anchors(
    points: np.ndarray, t: int, start: Start, rigid: State, seen: Observations, solver: Solver
) -> Anchors | None:
    """Targets from the flow for the hair `points` in frame `t`; None if their weight is negligible.

    `rigid` is the pose from landmarks alone: weights from a pose that depends on the anchors would confirm themselves.
    """
    turn = rigid.rotation @ start.rigid.rotation.T
    angle = np.degrees(np.arccos(np.clip(turn[2, 2], -1, 1)))
    a, b, c, d = seen.flow[t, 0].astype(np.float64)
    moved, shift = np.array([[a, b], [-b, a]]), np.array([c, d])
    away = _project(points, rigid, solver) - (_project(points, start.rigid, solver) @ moved + shift)
    away_iod = np.linalg.norm(away, axis=1).mean() / interocular_px(seen.landmarks[t])
    trust = float(seen.flow_trust[t, 0])
    least, added = DISAGREE_IOD
    gate = min(1.0, trust / SURE) * np.exp(-((angle / TURN_DEG) ** 2) - (away_iod / (least + added * trust)) ** 2)
    if gate < 0.01:
        return None
    return Anchors(points, _project(points, start.state, solver) @ moved + shift, WEIGHT * gate)


def _project(points: np.ndarray, state: State, solver: Solver) -> np.ndarray:
    cam = points @ state.rotation.T + state.translation
    return cam[:, :2] / cam[:, 2:] * solver.focal_px + solver.centre_px


log = logging.getLogger(__name__)

KEY_FRAMES = 12
DIFFERENT = 1e-3
"""Least distance of normalised landmarks between key frames: more similar frames add nothing to the identity."""


def track(
    source: Path, head: HeadModel, config: TrackConfig, progress: Progress, show_faces: ShowFaces | None = None
) -> Tracking:
    """Track the chosen face: a row for every frame of the stretch; missing faces are filled by `on_missing`.

    Raises:
        InputError: as `observe`.
    """
    return solve(source, observe(source, landmark_model(head), config, progress, show_faces), head)


def solve(source: Path, seen: Observations, head: HeadModel) -> Tracking:
    """Solve the identity on key frames, then expression and pose of every frame."""
    model = landmark_model(head)
    keys = key_frames(seen)
    focal_px = float(np.median([focal_for(model, seen.landmarks[k], crop_size=CROP_SIZE) for k in keys]))
    solver = Solver(model, focal_px=focal_px, centre_px=CROP_SIZE / 2)
    identity, _ = solver.identity(seen.landmarks[keys], prior=IDENTITY_PRIOR)
    states = solve_frames(solver, identity, seen, head)
    errors = [solver.error_iod(identity, s, lm) for s, lm in zip(states, seen.landmarks, strict=True)]
    return Tracking(
        source=str(source.resolve()),
        source_hash=content_hash(source),
        head_model=head.name,
        size=np.array(seen.size),
        rate=np.array([seen.rate.numerator, seen.rate.denominator]),
        crop=np.asarray(seen.crop, np.float32),
        focal_px=focal_px,
        landmarks=seen.landmarks,
        identity=identity.astype(np.float32),
        **columns_of(states),
        shoulders=seen.shoulders,
        flow=seen.flow,
        shot=seen.shot,
        state=seen.state,
        error=np.asarray(errors, np.float32),
        doubt=seen.doubt,
        first_frame=seen.first_frame,
    )


def solve_frames(solver: Solver, identity: np.ndarray, seen: Observations, head: HeadModel) -> list[State]:
    """Solve frame by frame, each starting from the one before except after a cut."""
    points = hair_points(head)
    states: list[State] = []
    start = None
    for t, landmarks in enumerate(seen.landmarks):
        rigid = solver.rigid(identity, landmarks)
        if start is None or seen.shot[t] != seen.shot[t - 1]:
            states.append(solver.frame(identity, landmarks, rigid=rigid, iterations=ITERATIONS_FIRST))
            start = Start(states[-1], rigid)
            continue
        still = anchors(points, t, start, rigid, seen, solver)
        states.append(
            solver.frame(
                identity,
                landmarks,
                rigid=rigid,
                start=states[-1],
                temporal=TEMPORAL,
                iterations=ITERATIONS,
                anchors=still,
            )
        )
    return states


def key_frames(seen: Observations) -> np.ndarray:
    """Indices of the frames whose landmarks differ most, for the identity."""
    tracked = np.flatnonzero(surest(seen.state, seen.doubt))
    points = seen.landmarks[tracked].astype(np.float64)
    points = points - points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=(1, 2), keepdims=True)
    return tracked[distinct_rows(points.reshape(len(points), -1), KEY_FRAMES, least=DIFFERENT)]


SMPLX_KEYS = "betas, expression [T,E], jaw_pose [T,3], and if you like leye_pose and reye_pose [T,3]"
POSES = {"jaw_pose": 66, "leye_pose": 69, "reye_pose": 72}
"""First column of each joint in AMASS's `poses`, rows of SMPL-X's 55 axis-angles (165 columns)."""
MOTION_X = {"jaw_pose": slice(156, 159), "expression": slice(159, 209), "betas": slice(312, 322)}
"""Columns of each parameter in the rows of Motion-X (322 columns)."""


@dataclass(frozen=True)
class Pretracked:
    """SMPL-X parameters that another program tracked, in the order of the model's components."""

    betas: Float64[np.ndarray, " K"]
    expression: Float64[np.ndarray, "T E"]
    jaw: Float64[np.ndarray, "T 3"]
    gaze: Float64[np.ndarray, "T 4"]

    @classmethod
    def read(cls, path: Path) -> "Pretracked":
        """Read a file, or a folder of one file a frame.

        - .npz with `betas` ([K], or one row a frame), `expression` [T,E], `jaw_pose` [T,3], and optionally `leye_pose`
          and `reye_pose` [T,3], axis-angles in radians;
        - a folder of such files of one frame each, as SMPLest-X, SMPLer-X and OSX write them, in the order of the
          numbers in their names, the first of each number (of `000012_0.npz` and `000012_1.npz` the former);
        - .npz with `poses` [T,165] in place of the axis-angles, and `expression` or `expressions`, as AMASS has them;
        - .npy [T,322] of Motion-X.

        Raises:
            InputError: the file has none of these forms, or is damaged.
        """
        try:
            arrays = _folder(path) if path.is_dir() else _arrays(path)
            if "poses" in arrays:
                arrays |= {name: arrays["poses"][:, at : at + 3] for name, at in POSES.items()}
            rows = {name: _rows(arrays[name]) for name in ("expression", "jaw_pose")}
            count = len(rows["jaw_pose"])
            eyes = [_rows(arrays.get(name, np.zeros((count, 3)))) for name in ("leye_pose", "reye_pose")]
            found = cls(
                _rows(arrays["betas"]).mean(0),
                rows["expression"],
                rows["jaw_pose"],
                np.concatenate([_pitch_yaw(rodrigues(eye)) for eye in eyes], 1),
            )
        except (KeyError, ValueError, IndexError, OSError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} holds no SMPL-X parameters that can be read ({one_line(error)}). Expected an .npz with "
                f"{SMPLX_KEYS}; or a folder of them, one a frame."
            ) from error
        if not all(np.isfinite(value).all() for value in vars(found).values()) or len(found.expression) != count:
            raise InputError(f"{path} holds numbers that are not finite, or expressions of other frames than jaws.")
        return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npy":
        rows = np.load(path, allow_pickle=False)
        if rows.ndim != 2 or rows.shape[1] != 322:
            raise ValueError(f"it is {'x'.join(map(str, rows.shape))}, and Motion-X has 322 columns")
        return {name: rows[:, columns] for name, columns in MOTION_X.items()}
    with np.load(path, allow_pickle=False) as archive:
        found = {name: archive[name] for name in archive.files}
    if "expressions" in found:
        found.setdefault("expression", found["expressions"])
    return found


def _folder(path: Path) -> dict[str, np.ndarray]:
    """Concatenate files of one frame each, in the order of the numbers in their names."""
    first: dict[int, Path] = {}
    for file in sorted(path.glob("*.npz")):
        first.setdefault(int(re.findall(r"\d+", file.stem)[0]), file)
    if not first:
        raise ValueError("it is a folder without .npz files")
    frames = [_arrays(first[number]) for number in sorted(first)]
    names = set.intersection(*(set(frame) for frame in frames))
    return {name: np.concatenate([_rows(frame[name]) for frame in frames]) for name in names if name not in ("poses",)}


def _rows(values: np.ndarray) -> Float64[np.ndarray, "T C"]:
    values = np.asarray(values, np.float64)
    return values.reshape(1, -1) if values.ndim < 2 else values.reshape(len(values), -1)


def _pitch_yaw(turn: Float64[np.ndarray, "T 3 3"]) -> Float64[np.ndarray, "T 2"]:
    """Pitch and yaw of eyeball rotations, rad, as in `model.eye_rotation`; roll is ignored."""
    return np.stack([np.arcsin(np.clip(turn[:, 1, 2], -1, 1)), np.arctan2(turn[:, 0, 2], turn[:, 2, 2])], 1)


def with_parameters(tracking: Tracking, found: Pretracked, head: HeadModel, path: Path) -> Tracking:
    """Replace a clip's identity, expression, jaw and gaze by another program's (paper 3.1: "pre-tracked").

    Pose and camera still come from the landmarks, because other programs crop and project differently. `path` is for
    messages.

    Raises:
        InputError: the number of frames or parameters does not fit, or the head is not SMPL-X.
    """
    sizes = head.identity_basis.shape[-1], len(head.expression_names)
    if not head.name.startswith("smplx"):
        raise InputError(f"{path} holds parameters of SMPL-X, and the head is '{head.name}'. Give `head_model=smplx`.")
    if len(found.jaw) != len(tracking.error) or len(found.betas) > sizes[0] or found.expression.shape[1] > sizes[1]:
        raise InputError(
            f"{path} holds {len(found.jaw)} frames of {len(found.betas)} + {found.expression.shape[1]} parameters, "
            f"expected {len(tracking.error)} of at most {sizes[0]} + {sizes[1]}. Give those of this very clip."
        )
    identity = np.pad(found.betas, (0, sizes[0] - len(found.betas)))
    low, high = head.expression_low.numpy(), head.expression_high.numpy()
    psi = np.clip(np.pad(found.expression, ((0, 0), (0, sizes[1] - found.expression.shape[1]))), low, high)
    model = landmark_model(head)
    solver = Solver(model, focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
    states = []
    for t, landmarks in enumerate(tracking.landmarks):
        points = solver.points(identity) + model.expression @ psi[t]
        placed = initial_state(model, points, landmarks, focal_px=solver.focal_px, centre_px=solver.centre_px)
        states.append(replace(placed, expression=psi[t], jaw=found.jaw[t], gaze=found.gaze[t]))
    errors = [solver.error_iod(identity, s, points) for s, points in zip(states, tracking.landmarks, strict=True)]
    columns = columns_of(states)
    return replace(tracking, identity=identity.astype(np.float32), error=np.asarray(errors, np.float32), **columns)
