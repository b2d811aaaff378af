"""Read an SMPL-X file, and build head and shoulders from its body (Pavlakos et al., CVPR 2019).

Canonical coarse vertices are SMPL-X's own with lowered arms, in the head frame, whose origin follows the eyes. If the
torso is at rest and the head rotates with it, posed vertices are SMPL-X's to rounding, except for these differences:
- pivots depend on identity only; in SMPL-X expressions move joints too, where the regressor reaches the face;
- the neck bone has half the rotation between torso and head (`model.bones`); in SMPL-X it has its own rotation;
- of the pose correctives, the shoulders' are applied as they are, the jaw's linearly in its rotation about x
  (`jaw_corrective`), and no others.
"""

import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.head.embed import with_landmarks
from expportrait_cli.head.finer import Cut, cut_above, subdivide_triangles
from expportrait_cli.head.model import EYE_LEFT, EYE_RIGHT, FindLandmarks, HeadModel
from expportrait_cli.head.smplx import regions as regions
from expportrait_cli.weights.catalogue import folders

ENVIRONMENT = "EXPPORTRAIT_SMPLX"
FILE = "SMPLX_NEUTRAL.npz"
HOW = (
    f"Register at https://smpl-x.is.tue.mpg.de, download SMPL-X v1.1 (NPZ+PKL), and name its {FILE} in {ENVIRONMENT} "
    "or put it into a folder of weights."
)
SHAPES, EXPRESSIONS, JOINTS, LANDMARKS = 300, 100, 55, 51
SHOULDERS, JAW = (16, 17), 22
PARENTS = {12: 9, 15: 12, 16: 13, 17: 14, 22: 15, 23: 15, 24: 15}
"""Joints that the head is made from, with their parents: neck to spine, head to neck, shoulders to collars, jaw and
eyes to head. Left is before right."""


@dataclass(frozen=True)
class SmplxBody:
    """Arrays of an SMPL-X file: `S` vertices, metres, y up, looking along z, arms out to the sides."""

    template: Float[np.ndarray, "S 3"]
    shape_basis: Float[np.ndarray, "S 3 300"]
    expression_basis: Float[np.ndarray, "S 3 100"]
    regressor: Float[np.ndarray, "55 S"]
    """Weights of the vertices for each joint; rows sum to one."""
    skinning: Float[np.ndarray, "S 55"]
    parents: Int[np.ndarray, " 55"]
    """Parent of each joint; the root's entry is meaningless."""
    faces: Int[np.ndarray, "F 3"]
    """Triangles, counter-clockwise from outside."""
    jaw_correctives: Float[np.ndarray, "S 3 9"]
    """Pose correctives of the jaw: displacement of each vertex, m, per unit of each entry of R_jaw - I (row by row)."""
    shoulder_correctives: Float[np.ndarray, "S 3 18"]
    """Displacement by the entries of the rotation of the left, then of the right shoulder, as `jaw_correctives`, m."""
    landmark_faces: Int[np.ndarray, " 51"]
    """Triangle of each iBUG landmark without the outline: brows 0 to 9, nose, eyes, outer lips 31 to 42, inner lips 43
    to 50; the person's right before left."""
    landmark_barycentrics: Float[np.ndarray, "51 3"]


def find_file() -> Path:
    """Path of the user's file: the value of EXPPORTRAIT_SMPLX, else in the folders of weights.

    Raises:
        WeightsError: there is no such file, or only a pickle.
    """
    chosen = os.environ.get(ENVIRONMENT)
    places = [Path(chosen)] if chosen else [folder / FILE for folder in folders()]
    for path in places:
        if path.suffix != ".pkl" and path.is_file():
            return path
    pickles = [path.with_suffix(".pkl") for path in places if path.with_suffix(".pkl").is_file()]
    if pickles:
        raise _pickle_refused(pickles[0])
    if chosen:
        raise WeightsError(f"{ENVIRONMENT} names {chosen}, which is no file. {HOW}")
    raise WeightsError(f"The SMPL-X model is not there: looked in {', '.join(map(str, folders()))}. {HOW}")


def read(path: Path) -> SmplxBody:
    """Read the needed arrays of a file of version 1.1. About two seconds for the published one.

    Raises:
        WeightsError: the file is a pickle, damaged, of an older version with fewer components, or another model's.
    """
    if path.suffix == ".pkl":
        raise _pickle_refused(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _body(path, lambda key: _member(path, key, archive.__getitem__))
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path} is no .npz file that can be read ({error}). {HOW}") from error


def _body(path: Path, member: Callable[[str], np.ndarray]) -> SmplxBody:
    template = _shaped(path, "v_template", member("v_template"), (None, 3))
    count = len(template)
    basis = _shaped(path, "shapedirs", member("shapedirs"), (count, 3, None))
    if basis.shape[2] < SHAPES + EXPRESSIONS:
        raise WeightsError(
            f"{path} has {basis.shape[2]} components in shapedirs, expected {SHAPES + EXPRESSIONS} "
            f"({SHAPES} of shape, {EXPRESSIONS} of expression): it is of an older version. {HOW}"
        )
    tree = _shaped(path, "kintree_table", member("kintree_table"), (2, JOINTS)).astype(np.int64)
    if any(tree[0, joint] != parent for joint, parent in PARENTS.items()):
        raise WeightsError(f"{path} has another skeleton than SMPL-X (kintree_table). {HOW}")
    correctives = _shaped(path, "posedirs", member("posedirs"), (count, 3, (JOINTS - 1) * 9))
    faces = _shaped(path, "f", member("f"), (None, 3)).astype(np.int64)
    landmark_faces = _shaped(path, "lmk_faces_idx", member("lmk_faces_idx"), (LANDMARKS,)).astype(np.int64)
    if faces.min() < 0 or faces.max() >= count or landmark_faces.min() < 0 or landmark_faces.max() >= len(faces):
        raise WeightsError(f"{path} names vertices or triangles that it does not have (f, lmk_faces_idx). {HOW}")
    # The root has no correctives: the first nine columns belong to joint 1.
    jaw, left, right = (np.s_[9 * (joint - 1) : 9 * joint] for joint in (JAW, *SHOULDERS))
    return SmplxBody(
        template=template,
        shape_basis=basis[:, :, :SHAPES],
        expression_basis=basis[:, :, SHAPES : SHAPES + EXPRESSIONS],
        regressor=_shaped(path, "J_regressor", member("J_regressor"), (JOINTS, count)),
        skinning=_shaped(path, "weights", member("weights"), (count, JOINTS)),
        parents=tree[0],
        faces=faces,
        jaw_correctives=correctives[:, :, jaw],
        shoulder_correctives=np.concatenate([correctives[:, :, left], correctives[:, :, right]], -1),
        landmark_faces=landmark_faces,
        landmark_barycentrics=_shaped(path, "lmk_bary_coords", member("lmk_bary_coords"), (LANDMARKS, 3)),
    )


def _member(path: Path, key: str, member: Callable[[str], object]) -> np.ndarray:
    try:
        array = member(key)
    except KeyError:
        raise WeightsError(f"{path} lacks '{key}', which SMPL-X v1.1 has. {HOW}") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise WeightsError(
            f"{path} holds '{key}' as pickled objects: they could run code, and are not read. {HOW}"
        ) from None
    # numpy returns bytes for a member that is no array.
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{path} holds something else than an array as '{key}': it is damaged. {HOW}")
    return array


def _shaped(path: Path, key: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """Check that an array has the shape (None: any length) and finite numbers, and return it; else WeightsError."""
    expected = "x".join("?" if length is None else str(length) for length in shape)
    fits = array.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu" or array.size == 0:
        found = f"{array.dtype} {'x'.join(map(str, array.shape))}"
        raise WeightsError(f"{path} holds '{key}' as {found}, expected numbers {expected}. {HOW}")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise WeightsError(f"{path} holds numbers in '{key}' that are not finite: it is damaged. {HOW}")
    return array.astype(np.float64, copy=False)


def _pickle_refused(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is a pickle, which could run code, and is not read. The same download has an .npz. {HOW}"
    )


BONE_JOINTS = (12, 12, 15, 22, 23, 24)
"""SMPL-X's joint of each bone; the torso rotates about the neck joint."""
EYES_M = np.array([0.0, 0.0222, 0.0791])
"""The middle of the eye joints in the head frame, m, as in the default head: the origin lies between the ears."""
ARM_LOWERING_RAD = np.deg2rad(70.0)
"""Rotation that lowers the arms: SMPL-X's template has them out to the sides, people in portraits do not."""
CUT_M = 0.30
"""Depth of the cut below the neck joint, m."""
JAW_FULL_RAD = 0.4
GAZE_FULL_RAD = 0.45
"""`HeadModel.gaze_full_rad`; its value is arbitrary, because the gaze moves no lids in this model."""
EXPRESSION_MAX = 3.0
"""Largest absolute weight of a component, in standard deviations."""
EXPRESSION_PRIOR = 10.0
"""Stiffness of the expressions (`HeadModel.expression_prior`), as for the identity: both are standard normal."""
EXPRESSION_NEUTRAL = 0.15
"""Largest absolute weight, in standard deviations, that the tracker finds in a neutral face: as in the default head, a
twentieth of the range. With more, a photo's smile would count as the shape of its face."""


def build(body: SmplxBody) -> tuple[HeadModel, Float[np.ndarray, "51 3"]]:
    """Build the head without landmarks and facial mask; also the file's 51 landmarks in the head frame, m."""
    shoulder_turns = _shoulder_turns()
    # Row 0 is the average person, the others are shape components: the following steps are linear in them.
    people = np.concatenate([body.template[None], body.shape_basis.transpose(2, 0, 1)])
    joints = np.einsum("js,psc->pjc", body.regressor, people, optimize=True)
    pivots = joints[:, list(SHOULDERS)]
    shift = -joints[:, 23:25].mean(1)
    shift[0] += EYES_M
    joints = (joints + shift[:, None])[:, list(BONE_JOINTS)]
    # SMPL-X computes its joints before pose correctives are added.
    people[0] += body.shoulder_correctives @ np.concatenate([(turn - np.eye(3)).ravel() for turn in shoulder_turns])
    arms = _arm_weights(body)

    mean = (_lowered(people[:1], arms, pivots[:1], shoulder_turns) + shift[:1, None])[0]
    floor_m = joints[0, 1, 1] - CUT_M
    cut = cut_above(mean, body.faces, floor_m)
    shape = _lowered(people[:, cut.kept], arms[:, cut.kept], pivots, shoulder_turns) + shift[:, None]
    below = shape[0, :, 1] < floor_m
    # Vertices below the cut are moved onto it, for every identity.
    shape[:, below, 1] = 0
    shape[0, below, 1] = floor_m
    jaw_turn = cv2.Rodrigues(np.array([JAW_FULL_RAD, 0.0, 0.0]))[0] - np.eye(3)
    moves = np.concatenate([body.expression_basis.transpose(2, 0, 1), [body.jaw_correctives @ jaw_turn.ravel()]])
    moves = _lowered(moves[:, cut.kept], arms[:, cut.kept], np.zeros((len(moves), 2, 3)), shoulder_turns)
    marks = (mean[body.faces[body.landmark_faces]] * body.landmark_barycentrics[..., None]).sum(1)
    return _head(body, cut, _Linear(shape, moves[:-1], moves[-1], joints), marks), marks


@dataclass(frozen=True)
class _Linear:
    """Linear bases of the head, m; along the axis `people` row 0 is the mean, the others are shape components."""

    shape: Float[np.ndarray, "people N 3"]
    expression: Float[np.ndarray, "E N 3"]
    jaw_corrective: Float[np.ndarray, "N 3"]
    joints: Float[np.ndarray, "people 6 3"]


def _head(body: SmplxBody, cut: Cut, linear: _Linear, marks: Float[np.ndarray, "51 3"]) -> HeadModel:
    skinning = _bone_weights(body.skinning[cut.kept])
    division = subdivide_triangles(cut.faces, len(cut.kept))
    eyes = skinning[:, [EYE_LEFT, EYE_RIGHT]].T > 0.9
    template, joints = linear.shape[0], linear.joints[0]
    parts = regions.coarse_parts(template, division, eyes, joints[[EYE_LEFT, EYE_RIGHT]], marks)
    parts = regions.dense_parts(parts, division)
    high = torch.full((len(linear.expression),), EXPRESSION_MAX, dtype=torch.float64)
    return HeadModel(
        name="smplx",
        template=_real(template),
        identity_basis=_real(linear.shape[1:].transpose(1, 2, 0)),
        expression_basis=_real(linear.expression.transpose(1, 2, 0)),
        expression_names=tuple(f"exp{index:03}" for index in range(len(high))),
        expression_low=-high,
        expression_high=high,
        expression_prior=torch.full_like(high, EXPRESSION_PRIOR),
        expression_full=high,
        expression_neutral=torch.full_like(high, EXPRESSION_NEUTRAL),
        gaze_basis=torch.zeros(len(template), 3, 8),
        gaze_full_rad=torch.full((8,), GAZE_FULL_RAD),
        jaw_corrective=_real(linear.jaw_corrective),
        jaw_full_rad=JAW_FULL_RAD,
        joint_template=_real(joints),
        joint_basis=_real(linear.joints[1:].transpose(1, 2, 0)),
        skinning=_real(division.linear @ skinning),
        faces=torch.from_numpy(cut.faces),
        dense_faces=torch.from_numpy(division.triangles),
        operator=csr_tensor(division.smooth),
        parts=torch.from_numpy(parts),
        part_names=regions.PARTS,
        facial_mask=torch.zeros(len(parts)),
        landmark_triangles=torch.zeros(478, 3, dtype=torch.int64),
        landmark_barycentrics=torch.eye(3)[torch.zeros(478, dtype=torch.int64)],
        landmark_spread=torch.zeros(478),
    )


def _shoulder_turns() -> list[np.ndarray]:
    """Rotations of the left and of the right shoulder that lower the arms."""
    return [cv2.Rodrigues(np.array([0.0, 0.0, side * ARM_LOWERING_RAD]))[0] for side in (-1, 1)]


def _arm_weights(body: SmplxBody) -> Float[np.ndarray, "2 S"]:
    """Sum of each vertex's weights for the left, and for the right shoulder and the joints below it."""
    side_of = dict.fromkeys(range(JOINTS))
    for joint in range(1, JOINTS):
        side_of[joint] = joint if joint in SHOULDERS else side_of[int(body.parents[joint])]
    return np.stack([body.skinning[:, [j for j in side_of if side_of[j] == s]].sum(1) for s in SHOULDERS])


def _lowered(
    rows: Float[np.ndarray, "R P 3"],
    arms: Float[np.ndarray, "2 P"],
    pivots: Float[np.ndarray, "R 2 3"],
    turns: list[np.ndarray],
) -> Float[np.ndarray, "R P 3"]:
    """Rotate the arms about the shoulders; linear, so that it also applies to displacements (of `pivots` too)."""
    result = rows.copy()
    for side, turn in enumerate(turns):
        moved = np.flatnonzero(arms[side])
        arm = rows[:, moved] - pivots[:, side, None]
        result[:, moved] += arms[side, moved, None] * (arm @ (turn - np.eye(3)).T)
    return result


def _bone_weights(weights: Float[np.ndarray, "N 55"]) -> Float[np.ndarray, "N 6"]:
    """Weights of the six bones; all joints other than neck, head, jaw and eyes count as torso."""
    own = weights[:, list(BONE_JOINTS[1:])]
    torso = np.clip(weights.sum(1) - own.sum(1), 0, None)
    bones = np.column_stack([torso, own])
    return bones / bones.sum(1, keepdims=True)


def _real(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def load(
    device: torch.device | str = "cpu", *, file: Path | None = None, find_landmarks: FindLandmarks | None = None
) -> HeadModel:
    """Build the head from the user's file; see `embed.with_landmarks` for its landmarks.

    Raises:
        WeightsError: no usable file, or its landmarks are not cached and `find_landmarks` is not given.
    """
    path = file or find_file()
    head, marks = build(read(path))
    return with_landmarks(path, head, lambda: regions.colours(head, marks), find_landmarks).to(device)
