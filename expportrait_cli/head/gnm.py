"""GNM Head v3 (google/GNM, Apache-2.0) as a head model: skin, eyeballs, teeth, gums and tongue.

The published `gnm_head.npz` holds `S` = 17,821 vertices, `I` = 253 identity and `E` = 383 expression components and `J`
joints, in metres, x to the person's left, y up, z ahead; components are standard normal over people:
`template_vertex_positions` [S,3], `vertex_identity_basis` [I,S,3], `expression_basis` [E,S,3], `expression_names` [E]
(`left_eye_region_000`, `right_eye_region_...`, `lower_face_region_...`, `tongue_...`, `pupils_...`), `joint_names` [J],
`template_joint_positions` [J,3], `joint_identity_basis` [I,J,3], `skinning_weights` [J,S], `triangles` [F,3],
`vertex_group_names` [G], `vertex_groups` [G,S], `version`. The other members are not needed here; pose correctives are
not applied.

GNM has no jaw joint: components alone move its lower face. `_jaw` fits a hinge to them, and keeps the rest of their
motion as the jaw's corrective, so that the open mouth is GNM's.
"""

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from scipy import sparse
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.head.embed import with_landmarks
from expportrait_cli.head.model import FindLandmarks, HeadModel
from expportrait_cli.head.smplx import regions
from expportrait_cli.weights.catalogue import checked_file

ENVIRONMENT = "EXPPORTRAIT_GNM"
HOW = f"Run `expportrait weights fetch gnm`, or name the published gnm_head.npz in {ENVIRONMENT}."
PARTS = (*regions.PARTS, "tongue")
GROUPS = {
    "eye_left": "left_eye",
    "eye_right": "right_eye",
    "teeth_upper": "upper_teeth_and_gums",
    "teeth_lower": "lower_teeth_and_gums",
    "tongue": "tongue",
}
"""Vertex group of each part that is not skin."""
INSIDE = {"mouth_cavity": "mouth_sock", "eye_socket": "eye_sockets"}
"""Vertex group of each part that is visible only through an opening, if the file has the group."""
LIPS, BROWS = ("upper_lip", "lower_lip"), ("left_brow_region", "right_brow_region")
LOWER_FACE = "lower_face"
EYES_M = np.array([0.0, 0.0222, 0.0791])
"""The middle of the eye joints in the head frame, m, as in the default head."""
NECK_FADE_M = 0.04
"""Height below the neck joint over which neck weights become torso weights, m."""
OPENING_M = 0.02
"""Mean distance by which the fully open jaw lowers the lower teeth, m."""
LEAST_M = 1e-3
"""Displacement by the rigid jaw, m, below which a vertex gets jaw weight 0, because its weight cannot be measured."""
EXPRESSION_MAX, EXPRESSION_PRIOR, EXPRESSION_NEUTRAL = 3.0, 10.0, 0.15
"""Largest weight, stiffness and neutral range of the expressions, as for SMPL-X, in standard deviations."""
GAZE_FULL_RAD = 0.45
"""`HeadModel.gaze_full_rad`; its value is arbitrary, because the gaze moves no lids in this model."""
BROW_M = 0.004
"""Half width of the painted brows, m."""


@dataclass(frozen=True)
class GnmFile:
    """Arrays of a GNM file that the head is built from: `S` vertices, `J` joints, metres."""

    template: Float[np.ndarray, "S 3"]
    identity: Float[np.ndarray, "I S 3"]
    expression: Float[np.ndarray, "E S 3"]
    expression_names: tuple[str, ...]
    joints: dict[str, int]
    joint_template: Float[np.ndarray, "J 3"]
    joint_identity: Float[np.ndarray, "I J 3"]
    skinning: Float[np.ndarray, "J S"]
    triangles: Int64[np.ndarray, "F 3"]
    groups: dict[str, Float[np.ndarray, " S"]]

    def joint(self, name: str) -> int:
        """Index of the first joint whose name contains `name`."""
        return next(index for own, index in self.joints.items() if name in own)


def find_file() -> Path:
    """Path of the file: the value of EXPPORTRAIT_GNM, else in the folders of weights.

    Raises:
        WeightsError: there is no such file.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if not chosen:
        return checked_file("gnm")
    if not Path(chosen).is_file():
        raise WeightsError(f"{ENVIRONMENT} names {chosen}, which is no file. {HOW}")
    return Path(chosen)


def load(
    device: torch.device | str = "cpu", *, file: Path | None = None, find_landmarks: FindLandmarks | None = None
) -> HeadModel:
    """Build the head from the published file; see `embed.with_landmarks` for its landmarks.

    Raises:
        WeightsError: no usable file, or its landmarks are not cached and `find_landmarks` is not given.
    """
    path = file or find_file()
    found = read(path)
    head = build(found)
    return with_landmarks(path, head, lambda: colours(found, head), find_landmarks).to(device)


def read(path: Path) -> GnmFile:
    """Read the arrays that are needed.

    Raises:
        WeightsError: the file is damaged, or is not GNM Head v3.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = _content({key: archive[key] for key in archive.files if key not in ("quad_uvs", "triangle_uvs")})
            for name in ("left_eye", "right_eye", "head", "neck"):
                found.joint(name)
    except StopIteration:
        raise WeightsError(f"{path} lacks a joint of neck, head or an eye, which GNM Head v3 has. {HOW}") from None
    except KeyError as error:
        raise WeightsError(f"{path} lacks {error}, which GNM Head v3 has. {HOW}") from None
    except (OSError, ValueError, IndexError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path} is no .npz file of GNM Head v3 ({error}). {HOW}") from error
    return found


def _content(arrays: dict[str, np.ndarray]) -> GnmFile:
    def numbers(key: str, *shape: int) -> np.ndarray:
        values = np.asarray(arrays[key], np.float64)
        if values.shape != shape or not np.isfinite(values).all():
            found = "x".join(map(str, values.shape))
            raise ValueError(f"{key} has shape {found} or values that are not finite, expected finite ones of {shape}")
        return values

    if not str(arrays["version"]).startswith("3"):
        raise ValueError(f"version {arrays['version']}, expected 3")
    count, people = len(arrays["template_vertex_positions"]), len(arrays["vertex_identity_basis"])
    names = tuple(str(name) for name in arrays["expression_names"])
    joints = [str(name) for name in arrays["joint_names"]]
    triangles = np.asarray(arrays["triangles"], np.int64)
    if triangles.ndim != 2 or triangles.shape[1] != 3 or triangles.min() < 0 or triangles.max() >= count:
        raise ValueError("triangles refers to vertices that do not exist")
    groups = numbers("vertex_groups", len(arrays["vertex_group_names"]), count)
    named = {str(name): row for name, row in zip(arrays["vertex_group_names"], groups, strict=True)}
    for name in (*GROUPS.values(), *LIPS):
        if not (named[name] > 0.5).any():
            raise ValueError(f"the vertex group {name} is empty")
    return GnmFile(
        template=numbers("template_vertex_positions", count, 3),
        identity=numbers("vertex_identity_basis", people, count, 3),
        expression=numbers("expression_basis", len(names), count, 3),
        expression_names=names,
        joints={name: index for index, name in enumerate(joints)},
        joint_template=numbers("template_joint_positions", len(joints), 3),
        joint_identity=numbers("joint_identity_basis", people, len(joints), 3),
        skinning=numbers("skinning_weights", len(joints), count),
        triangles=triangles,
        groups=named,
    )


def build(file: GnmFile) -> HeadModel:
    """Build the head without landmarks and facial mask; dense and coarse mesh are the same (Eq. 2 is the identity)."""
    eyes = [file.joint("left_eye"), file.joint("right_eye")]
    order = [file.joint("neck"), file.joint("neck"), file.joint("head"), file.joint("head"), *eyes]
    shift = EYES_M - file.joint_template[eyes].mean(0)
    template = file.template + shift
    joint_template = file.joint_template[order] + shift
    jaw = _jaw(file, template)
    joint_template[3] = jaw.pivot
    # Identity components move the hinge as they move the head joint.
    joint_basis = file.joint_identity[:, order]
    high = torch.full((len(file.expression_names),), EXPRESSION_MAX, dtype=torch.float64)
    identity = sparse.identity(len(template), format="csr")
    return HeadModel(
        name="gnm",
        template=_real(template),
        identity_basis=_real(file.identity.transpose(1, 2, 0)),
        expression_basis=_real(file.expression.transpose(1, 2, 0)),
        expression_names=file.expression_names,
        expression_low=-high,
        expression_high=high,
        expression_prior=torch.full_like(high, EXPRESSION_PRIOR),
        expression_full=high,
        expression_neutral=torch.full_like(high, EXPRESSION_NEUTRAL),
        gaze_basis=torch.zeros(len(template), 3, 8),
        gaze_full_rad=torch.full((8,), GAZE_FULL_RAD),
        jaw_corrective=_real(jaw.corrective),
        jaw_full_rad=jaw.full_rad,
        joint_template=_real(joint_template),
        joint_basis=_real(joint_basis.transpose(1, 2, 0)),
        skinning=_real(_bone_weights(file, template, joint_template[1], jaw.weight)),
        faces=torch.from_numpy(file.triangles),
        dense_faces=torch.from_numpy(file.triangles),
        operator=csr_tensor(sparse.csr_matrix(identity)),
        parts=torch.from_numpy(_parts(file)),
        part_names=PARTS,
        facial_mask=torch.zeros(len(template)),
        landmark_triangles=torch.zeros(478, 3, dtype=torch.int64),
        landmark_barycentrics=torch.eye(3)[torch.zeros(478, dtype=torch.int64)],
        landmark_spread=torch.zeros(478),
    )


def _real(values: np.ndarray) -> Float32[Tensor, "..."]:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))


def _parts(file: GnmFile) -> UInt8[np.ndarray, " S"]:
    parts = np.zeros(len(file.template), np.uint8)
    for part, group in (*INSIDE.items(), *GROUPS.items()):
        if group in file.groups:
            parts[file.groups[group] > 0.5] = PARTS.index(part)
    return parts


@dataclass(frozen=True)
class _Jaw:
    """A jaw hinge about x: pivot (m), angle of the open jaw, weight of each vertex, and the rest of its motion (m)."""

    pivot: Float[np.ndarray, " 3"]
    full_rad: float
    weight: Float[np.ndarray, " S"]
    corrective: Float[np.ndarray, "S 3"]


def _jaw(file: GnmFile, template: Float[np.ndarray, "S 3"]) -> _Jaw:
    """Fit the jaw: the rotation about x of the lower teeth when the lower face's components open the mouth.

    The coefficients are those of least norm that lower the teeth by `OPENING_M` (along the gradient of their height).
    A vertex's weight is the share of the rigid rotation in its motion; the rest is the corrective.

    Raises:
        WeightsError: the rotation is implausible.
    """
    lower = np.flatnonzero(file.groups[GROUPS["teeth_lower"]] > 0.5)
    block = [k for k, name in enumerate(file.expression_names) if name.startswith(LOWER_FACE)]
    down = -file.expression[block][:, lower, 1].mean(1)
    steps = np.tensordot(OPENING_M * down / (down @ down), file.expression[block], 1)
    # Kabsch's algorithm on the teeth, which are nearly rigid.
    start, end = template[lower], template[lower] + steps[lower]
    u, _, vh = np.linalg.svd((end - end.mean(0)).T @ (start - start.mean(0)))
    turn = u @ np.diag([1, 1, np.linalg.det(u @ vh)]) @ vh
    angle = float(cv2.Rodrigues(turn)[0][0, 0])
    if not 0.02 < angle < 1.0:
        raise WeightsError(f"The lower teeth of this GNM file turn by {angle:.2f} rad as they come down. {HOW}")
    hinge = cv2.Rodrigues(np.array([angle, 0.0, 0.0]))[0]
    # The fixed point of the motion in the plane x = 0.
    away = (hinge - np.eye(3))[1:, 1:]
    shift = (end.mean(0) - hinge @ start.mean(0))[1:]
    pivot = np.r_[0.0, np.linalg.solve(-away, shift)]
    rigid = (template - pivot) @ (hinge - np.eye(3)).T
    size = (rigid**2).sum(1)
    weight = np.where(size > LEAST_M**2, (steps * rigid).sum(1) / np.maximum(size, 1e-12), 0.0).clip(0, 1)
    return _Jaw(pivot, angle, weight, steps - weight[:, None] * rigid)


def _bone_weights(file: GnmFile, template, neck, jaw_weight) -> Float[np.ndarray, "S 6"]:
    """Weights of the six bones; weights of other joints go to the neck, and below the neck joint to the torso."""
    weights = np.clip(file.skinning, 0, None) / np.maximum(np.clip(file.skinning, 0, None).sum(0), 1e-9)
    head, left, right = (weights[file.joint(name)] for name in ("head", "left_eye", "right_eye"))
    rest = np.clip(1 - head - left - right, 0, None)
    low = np.clip((neck[1] - template[:, 1]) / NECK_FADE_M, 0, 1)
    jaw = jaw_weight * head
    bones = np.stack([rest * low, rest * (1 - low), head - jaw, jaw, left, right], 1)
    return bones / bones.sum(1, keepdims=True)


def colours(file: GnmFile, head: HeadModel) -> Float32[Tensor, "V 3"]:
    """RGB of the vertices, 0..1, for the landmark detector: lips by their groups, brows as strokes in their regions."""
    verts = head.template.numpy().astype(np.float64)
    lips = np.clip(sum(file.groups[name] for name in LIPS), 0, 1)[:, None]
    paint = regions.SKIN_COLOUR + lips * (regions.LIP_COLOUR - regions.SKIN_COLOUR)
    for group in BROWS:
        inside = np.flatnonzero(file.groups.get(group, np.zeros(len(verts))) > 0.5)
        if len(inside) > 3:
            x, y = verts[inside, 0], verts[inside, 1]
            line = np.polyval(np.polyfit(x, y, 2), x)
            stroke = np.clip(1.5 - np.abs(y - line) / BROW_M, 0, 1)[:, None]
            paint[inside] += stroke * (regions.BROW_COLOUR - paint[inside])
    parts = head.parts.numpy()
    own = np.vstack([regions.PART_COLOURS, [[0.62, 0.3, 0.3]]])
    return torch.from_numpy(np.float32(np.where(parts[:, None] == 0, paint, own[parts])))
