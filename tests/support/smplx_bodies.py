"""SMPL-X files made from the default head, as the real one is licensed; and a comparison with the package `smplx`."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree

from expportrait_cli.geometry import rotations
from expportrait_cli.head import HeadModel, coarse, dense, joints, landmarks, pose
from expportrait_cli.head.model import NECK, HeadPose, eye_rotation
from expportrait_cli.head.smplx.build import ARM_LOWERING_RAD, EYES_M, SmplxBody, build, read
from expportrait_cli.head.smplx.regions import facial_mask

VERTICES = 10475
"""The package looks for its vertices by number, so that a smaller body is filled up with ones that no triangle uses."""
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
PARENTS += [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
PARENTS += [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53]
IBUG = [
    *(70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 197, 5, 4, 75, 97, 2, 326, 305),
    *(33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380),
    *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87),
]
"""FaceMesh's points nearest to iBUG's 51."""
BONE_JOINTS = {12: 1, 15: 2, 22: 3, 23: 4, 24: 5}
SIDES = {16: (0.15, -0.16), 17: (-0.15, -0.16), 18: (0.2, -0.25), 19: (-0.2, -0.25)}
"""Where shoulders and elbows are, x and y in the head frame."""


def body(anny: HeadModel) -> dict[str, np.ndarray]:
    """The default head without teeth, standing a metre above the floor, as a file of SMPL-X holds a body."""
    count = len(anny.template)
    teeth = anny.part("teeth_upper", "teeth_lower").numpy()[:count]
    faces = anny.faces.numpy()
    faces = faces[~teeth[faces].any(1)]
    template = np.zeros((VERTICES, 3))
    template[:count] = anny.template.numpy() + np.float64([0.01, 1.0, -0.05])
    places = np.tile([0.01, 0.7, -0.05], (55, 1))
    for joint, bone in BONE_JOINTS.items():
        places[joint] += anny.joint_template[bone].numpy() + np.array([0, 0.3, 0])
    for joint, (x, y) in SIDES.items():
        places[joint] += [x, 0.3 + y, 0]
    shapes = np.zeros((VERTICES, 3, 400), np.float32)
    shapes[:count, :, :80] = anny.identity_basis.numpy()
    shapes[:count, :, 300:340] = anny.expression_basis.numpy()
    weights = np.zeros((VERTICES, 55))
    bones = anny.skinning[:count].numpy()
    weights[:, 9] = 1
    weights[:count, 9] = bones[:, 0]
    weights[:count, list(BONE_JOINTS)] = bones[:, list(BONE_JOINTS.values())]
    corners, marks = landmarks_of(anny, faces)
    return {
        "v_template": template,
        "shapedirs": shapes,
        "posedirs": np.zeros((VERTICES, 3, 486), np.float32),
        "J_regressor": np.stack([regressor(template[:count], place) for place in places]),
        "weights": weights / weights.sum(1, keepdims=True),
        "kintree_table": np.array([PARENTS, range(55)]),
        "f": faces.astype(np.uint32),
        "lmk_faces_idx": corners,
        "lmk_bary_coords": marks,
        **{f"hands_components{side}": np.eye(45) for side in "lr"},
        **{f"hands_mean{side}": np.zeros(45) for side in "lr"},
    }


def regressor(points: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Row of weights of the 40 vertices nearest to a joint that yields it and sums to one."""
    near = np.argsort(np.linalg.norm(points - place, axis=1))[:40]
    row = np.zeros(VERTICES)
    row[near] = np.linalg.lstsq(np.c_[points[near], np.ones(40)].T, [*place, 1], rcond=None)[0]
    return row


def landmarks_of(anny: HeadModel, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = landmarks(anny, dense(anny, anny.template)).numpy()[IBUG]
    nearest = KDTree(anny.template.numpy()[faces].mean(1)).query(points)[1]
    return nearest, np.full((51, 3), 1 / 3)


def randomised(arrays: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Random components, and arms: what a linear model may be, plausible or not."""
    generator = np.random.default_rng(seed)
    shapes = generator.normal(0, 3e-4, (VERTICES, 3, 400)).astype(np.float32)
    # The package lets expressions move the joints; here they leave the vertices alone that joints come from.
    shapes[np.abs(arrays["J_regressor"]).sum(0) > 0, :, 300:] = 0
    x, weights = arrays["v_template"][:, 0], arrays["weights"].copy()
    for side, chain in ((1, (13, 16, 18, 20, 37)), (-1, (14, 17, 19, 21, 52))):
        share = np.clip((side * x - 0.12) / 0.06, 0, 1) * weights[:, 9]
        weights[:, 9] -= share
        weights[:, list(chain)] += share[:, None] * generator.dirichlet(np.ones(5), VERTICES)
    return {**arrays, "shapedirs": shapes, "weights": weights}


def file_of(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / "SMPLX_NEUTRAL.npz"
    np.savez(path, **arrays)
    return path


TOLERANCE_M = 1e-5
"""Single precision, over a chain of nine joints a metre from the origin."""


@dataclass(frozen=True)
class Twin:
    """One file, read by both implementations."""

    body: SmplxBody
    head: HeadModel
    package: torch.nn.Module
    vertex: np.ndarray
    """The package's vertex of each coarse vertex; -1 where the head ends, which is put on the cut."""

    def rest(self, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Joints of the package's own frame, and where the head's frame has its origin in it."""
        places = self.body.regressor @ (self.body.template + self.body.shape_basis @ betas)
        return places, places[23:25].mean(0) - EYES_M

    def packaged(self, **parameters: np.ndarray) -> np.ndarray:
        """The package's vertices with lowered arms."""
        pose = parameters.pop("body_pose", np.zeros((21, 3)))
        pose[15], pose[16] = [0, 0, -ARM_LOWERING_RAD], [0, 0, ARM_LOWERING_RAD]
        tensors = {name: torch.tensor(value)[None].double() for name, value in parameters.items()}
        out = self.package(body_pose=torch.tensor(pose).reshape(1, 63), **tensors)
        return out.vertices[0].detach().numpy()[self.vertex]

    def posed(self, betas, psi, jaw, gaze, **bones) -> np.ndarray:
        """Our coarse vertices, in single precision."""
        real = partial(torch.tensor, dtype=torch.float32)
        bones = {name: real(value) for name, value in bones.items()}
        shape = dense(self.head, coarse(self.head, real(betas), real(psi), real(jaw), real(gaze)))
        verts = pose(
            self.head, shape, joints(self.head, real(betas)), HeadPose(jaw=real(jaw), gaze=real(gaze), **bones)
        )
        return verts[: len(self.vertex)].numpy()


def twin(file: Path) -> Twin:
    """Read a file twice, and find each other's vertices in the average person."""
    package = pytest.importorskip("smplx", reason="compares with the PyPI package smplx")
    body = read(file)
    head, _ = build(body)
    oracle = package.SMPLX(
        str(file), num_betas=300, num_expression_coeffs=100, use_pca=False, flat_hand_mean=True, dtype=torch.float64
    )
    whole = Twin(body, head, oracle, np.arange(len(body.template)))
    mean = whole.packaged(betas=np.zeros(300), expression=np.zeros(100)) - whole.rest(np.zeros(300))[1]
    used = np.unique(body.faces)
    distance, nearest = KDTree(mean[used]).query(head.template.numpy())
    on_floor = head.template[:, 1].numpy() <= head.template[:, 1].numpy().min() + 1e-6
    assert (distance[~on_floor] < 1e-6).all() and len(np.unique(nearest[~on_floor])) == (~on_floor).sum()
    return Twin(body, head, oracle, np.where(on_floor, -1, used[nearest]))


def eye_turns(gaze: np.ndarray) -> dict[str, np.ndarray]:
    turns = rotations.axis_angle(eye_rotation(torch.tensor(gaze.reshape(2, 2)))).numpy()
    return {"leye_pose": turns[0], "reye_pose": turns[1]}


def difference_m(both: Twin, ours: np.ndarray, theirs: np.ndarray, *, without: tuple[int, ...] = ()) -> float:
    """Largest distance over the vertices above the cut that do not hang on the joints `without`."""
    free = (both.vertex >= 0) & (both.body.skinning[both.vertex][:, list(without)] == 0).all(1)
    assert free.sum() > 2000
    return float(np.linalg.norm(ours - theirs, axis=1)[free].max())


def in_place(both: Twin, betas: np.ndarray, jaw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Our vertices and the package's of a head at rest that opens its mouth."""
    neck = joints(both.head, torch.tensor(betas).float())[NECK].numpy()
    still = {"rotation": np.zeros(3), "translation": np.zeros(3), "torso_rotation": np.zeros(3)}
    ours = both.posed(betas, np.zeros(100), jaw, np.zeros(4), **still, torso_translation=neck)
    return ours + both.rest(betas)[1], both.packaged(betas=betas, expression=np.zeros(100), jaw_pose=jaw)


def turned(both: Twin, betas, psi, *, turn, shift, jaw, gaze) -> tuple[np.ndarray, np.ndarray]:
    """Our vertices and the package's of somebody whose whole body turns and shifts, mouth and eyes at work."""
    theirs = both.packaged(
        betas=betas, expression=psi, jaw_pose=jaw, global_orient=turn, transl=shift, **eye_turns(gaze)
    )
    places, origin = both.rest(betas)
    R = rotations.matrix(torch.tensor(turn)).numpy()
    translation = R @ (origin - places[0]) + places[0] + shift
    bones = {"rotation": turn, "translation": translation, "torso_rotation": turn}
    ours = both.posed(betas, psi, jaw, gaze, **bones, torso_translation=R @ (places[12] - origin) + translation)
    return ours, theirs


def head_of(folder: Path, anny: HeadModel, arrays: dict[str, np.ndarray] | None = None) -> HeadModel:
    """A file's head, with the default head's landmarks where they lie on it: FaceMesh would look for a minute."""
    head, _ = build(read(file_of(folder, body(anny) if arrays is None else arrays)))
    return landmarked(head, anny)


def landmarked(head: HeadModel, anny: HeadModel) -> HeadModel:
    """A head of the default one's shape with its landmarks and its face."""
    verts = dense(head, head.template).numpy()
    corners = head.dense_faces.numpy()
    points = landmarks(anny, dense(anny, anny.template)).numpy()
    nearest = KDTree(verts[corners].mean(1)).query(points)[1]
    head = replace(
        head,
        landmark_triangles=torch.from_numpy(corners[nearest]),
        landmark_barycentrics=torch.full((478, 3), 1 / 3),
        landmark_spread=anny.landmark_spread,
    )
    return replace(head, facial_mask=facial_mask(head))
