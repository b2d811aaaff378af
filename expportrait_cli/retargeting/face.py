"""The part of a neutral head that moves, as the transfer network sees it (V_neutral of paper Eq. 8), and its folds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from scipy.spatial import KDTree
from torch import Tensor

from expportrait_cli.artifacts.types import Curves, HeadFit
from expportrait_cli.errors import UsageError
from expportrait_cli.geometry.mesh import FieldMap, averaging, scipy_matrix, vertex_normals
from expportrait_cli.head import HeadModel, dense, facemesh, landmarks
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.head.model import is_finer

CODE_POINTS = 1200
"""Vertices that the identity code is read from: the code is smooth, so that every tenth is enough."""
SMOOTHING = (4, 32)
"""Steps of averaging whose remainder is the curvature: of about 2 and 6 edges' width."""


@dataclass(frozen=True)
class Face:
    """Constants of a head model's face: `P` dense vertices of the triangles on which the facial mask is above 0.

    A vertex of the mask in no such triangle has neither normal nor neighbours, and belongs to no face.
    """

    vertices: Int64[np.ndarray, " P"]
    faces: Int64[Tensor, "F_face 3"]
    """Triangles between them, as indices into `vertices`."""
    mask: Float32[Tensor, " P"]
    template: Float32[Tensor, "P 3"]
    """Mean head, head frame, m."""
    normals: Float32[Tensor, "P 3"]
    """Of the mean head."""
    averaging: Tensor
    """Sparse [P, P]: each vertex becomes half itself, half the mean of its neighbours."""
    code_rows: Int64[Tensor, " S"]
    """Rows of the vertices that the identity code is read from."""

    @classmethod
    def of(cls, head: HeadModel) -> "Face":
        """The face of a head model."""
        mask = head.facial_mask.float().cpu()
        whole = head.dense_faces.cpu()
        vertices, faces = torch.unique(whole[(mask > 0)[whole].all(1)], return_inverse=True)
        template = dense(head, head.template).float().cpu()[vertices]
        step = max(len(vertices) // CODE_POINTS, 1)
        return cls(
            vertices.numpy(),
            faces,
            mask[vertices],
            template,
            vertex_normals(template, faces),
            averaging(faces, len(vertices)),
            torch.arange(0, len(vertices), step),
        )

    def to(self, device: torch.device | str) -> "Face":
        """Move to a device; numbers of vertices stay where they are."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Neutral:
    """A person's face at rest, with what the network reads from it."""

    points: Float32[Tensor, "*B P 3"]
    """Head frame, m, with the template's place, turn and size (Umeyama): rigid motion and size are no shape."""
    frames: Float32[Tensor, "*B P 3 3"]
    """Shortest turn from the mean head's normal to the person's, times the person's size: takes steps on the mean
    head's surface to steps on theirs."""
    normals: Float32[Tensor, "*B P 3"]
    curvature: Float32[Tensor, "*B P 2"]
    """What averaging over the surface leaves along the normal, at two widths, mm."""

    @classmethod
    def of(cls, verts: Float32[Tensor, "P 3"], face: Face) -> "Neutral":
        """Read a neutral face, whatever its place, turn and size."""
        turn, scale, points = _aligned(verts, face.template)
        normals = vertex_normals(points, face.faces)
        # The turn that leads back from the aligned head, so that steps come out in the axes of `verts`.
        frames = scale * (turn.T @ shortest_turn(face.normals, normals))
        smooth, rest = points, []
        for step in range(max(SMOOTHING)):
            smooth = torch.sparse.mm(face.averaging, smooth)
            if step + 1 in SMOOTHING:
                rest.append(1000 * ((points - smooth) * normals).sum(-1))
        return cls(points, frames, normals, torch.stack(rest, -1))

    def to(self, device: torch.device | str) -> "Neutral":
        """Move to a device."""
        return Neutral(*(getattr(self, field.name).to(device) for field in fields(Neutral)))

    def at(self, rows: Int64[Tensor, " R"]) -> "Neutral":
        """Take some vertices of the same person only."""
        return Neutral(*(getattr(self, field.name)[rows] for field in fields(Neutral)))


def stacked(people: Sequence[Neutral]) -> Neutral:
    """Several people, of as many vertices each, along a first axis."""
    return Neutral(*(torch.stack([getattr(p, field.name) for p in people]) for field in fields(Neutral)))


def _aligned(points: Float[Tensor, "P 3"], to: Float[Tensor, "P 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Turn and size of points against others (Umeyama 1991), and the points with both taken away."""
    centre, goal = points.mean(0), to.mean(0)
    a, b = points - centre, to - goal
    u, s, vh = torch.linalg.svd(b.T @ a)
    sign = torch.ones_like(s)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    turn = u @ torch.diag(sign) @ vh
    scale = (a * a).sum() / (s * sign).sum()
    return turn, scale, a @ turn.T / scale + goal


def shortest_turn(start: Float[Tensor, "P 3"], end: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3 3"]:
    """Rotation of least angle from one unit vector to another; they must not be opposite."""
    axis = torch.linalg.cross(start, end)
    cosine = (start * end).sum(-1).clamp(min=-0.9)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + skew + skew @ skew / (1 + cosine)[:, None, None]


@runtime_checkable
class Offsets(Protocol):
    """Offsets beyond the expressions, as change from the photo: nothing where the photo's own expression is."""

    @property
    def vertices(self) -> Int64[np.ndarray, " P"]:
        """Dense vertices that move."""
        ...

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """Offsets of some frames, canonical, m; `curves` are these frames' own."""
        ...


FOLD_STEPS = 12
"""Steps of smoothing on the plain mesh beyond which a shape is none of folds: 3.5 mm on the default head."""


class Folded:
    """Other offsets, and along the normals what the driver's own folds show beyond them: high frequencies alone."""

    def __init__(
        self,
        offsets: Offsets | None,
        driver: HeadFit,
        neutral: int,
        head_fit: HeadFit,
        head: HeadModel,
        strength: float,
    ):
        """`neutral` is the driver's frame whose folds count as none; `strength` is the share of them that is taken."""
        self._offsets, self._driver, self._neutral, self._strength = offsets, driver, neutral, strength
        base = offsets.vertices if offsets is not None else driver.dynamic_vertices
        self.vertices = np.union1d(base, driver.dynamic_vertices)
        self._base, self._own = (np.searchsorted(self.vertices, rows) for rows in (base, driver.dynamic_vertices))
        theirs, self._normals = (
            vertex_normals(neutral_mesh(fit, head), head.dense_faces)[self.vertices].numpy()
            for fit in (driver, head_fit)
        )
        self._theirs = theirs[self._own]
        faces = head.dense_faces.numpy()
        inside = faces[np.isin(faces, self.vertices).all(1)]
        local = torch.from_numpy(np.searchsorted(self.vertices, inside))
        self._average = FieldMap(scipy_matrix(averaging(local, len(self.vertices))))
        # Edges of half the length: four times as many steps are as wide.
        self._steps = FOLD_STEPS * (4 if is_finer(head.name) else 1)
        self._mask = head.facial_mask.numpy()[self.vertices]

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        seen = self._driver.dynamic_offset[rows].astype(np.float32) - self._driver.dynamic_offset[self._neutral]
        result = np.zeros((len(seen), len(self.vertices), 3), np.float32)
        if self._offsets is not None:
            result[:, self._base] = self._offsets(rows, curves)
        beyond = -(result * self._normals).sum(-1)
        beyond[:, self._own] += (seen * self._theirs).sum(-1)
        heights = torch.from_numpy(beyond)[..., None]
        folds = (heights - self._average(heights, self._steps)).numpy()
        return result + (self._strength * self._mask[:, None] * folds * self._normals).astype(np.float32)


@dataclass(frozen=True)
class Copied:
    """The offsets that were fitted to the driver's clip, turned into the person's surface, and nothing more."""

    vertices: Int64[np.ndarray, " P"]
    offset: Float32[np.ndarray, "T P 3"]
    """Of the driver, from the neutral frame."""
    turns: Float32[np.ndarray, "P 3 3"]
    """From the driver's neutral surface to the person's."""

    @classmethod
    def of(cls, driver: HeadFit, neutral: int, head_fit: HeadFit, head: HeadModel, *, strength: float) -> "Copied":
        """Copy a driver's fit; `neutral` is the frame whose offsets count as none."""
        vertices = driver.dynamic_vertices
        offset = driver.dynamic_offset.astype(np.float32)
        theirs, own = (
            vertex_normals(neutral_mesh(fit, head), head.dense_faces)[vertices] for fit in (driver, head_fit)
        )
        return cls(vertices, strength * (offset - offset[neutral]), shortest_turn(theirs, own).numpy())

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        return np.einsum("pab,tpb->tpa", self.turns, self.offset[rows])


class Refitted:
    """Delta f of the driver's own frames, in place of the photo's: for the person themselves no offset is copied."""

    def __init__(self, driver: HeadFit, head_fit: HeadFit, strength: float):
        """`strength` is the share of the way from the photo's offset to each frame's."""
        own = np.flatnonzero(head_fit.frame_offset.any(1))
        self.vertices = np.union1d(driver.dynamic_vertices, own)
        self._rows = np.searchsorted(self.vertices, driver.dynamic_vertices)
        self._photo, self._strength = head_fit.frame_offset[self.vertices], strength
        self._driver = driver

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """See `Offsets`."""
        fitted = self._driver.dynamic_offset[rows].astype(np.float32)
        result = np.zeros((len(fitted), *self._photo.shape), np.float32)
        result[:, self._rows] = fitted
        return self._strength * (result - self._photo)


REGIONS = ("pose", "expression", "lips", "eyes", "gaze")
LIPS = ("jaw", "mouth", "lower_face", "tongue")
EYES = ("eye", "left_eye", "right_eye", "pupil")
"""Beginnings of the names of expressions that belong to a region."""
AROUND = {"lips": (facemesh.LIPS, 0.022, 0.04), "eyes": (facemesh.EYE_RINGS, 0.006, 0.014)}
"""Landmarks of a region, and the distances from them up to which skin is all, and from which it is none of it, m."""
RIDGE = 1e-4
"""Share of the mean component's energy that keeps components apart that move alike."""


def parse_regions(text: str) -> frozenset[str]:
    """Regions named in a comma-separated list; `all` is every one of them."""
    if text == "all":
        return frozenset(("pose", "expression", "gaze"))
    named = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(named - set(REGIONS))
    if unknown or not named:
        raise UsageError(f"`region={text!r}`: expected a list of {', '.join(REGIONS)}, or all.")
    return frozenset(named)


def expression_map(head: HeadModel, regions: frozenset[str]) -> Float[np.ndarray, "E E"]:
    """Expressions of which only the chosen regions move, as a linear map of all of them.

    Units that are named after their place are taken or left. Components without a place, such as SMPL-X's, move the
    whole face: the map then gives those that come nearest to the part of the motion that lies in the regions, found
    around FaceMesh's landmarks.
    """
    names = head.expression_names
    if "expression" in regions:
        return np.eye(len(names))
    chosen = (LIPS if "lips" in regions else ()) + (EYES if "eyes" in regions else ())
    if any(name.startswith(LIPS) for name in names):
        return np.diag([float(name.startswith(chosen)) if chosen else 0.0 for name in names])
    verts = dense(head, head.template)
    marks = landmarks(head, verts).numpy()
    share = np.zeros(len(verts))
    for region, (points, near_m, far_m) in AROUND.items():
        if region in regions:
            away = KDTree(marks[points]).query(verts.numpy())[0]
            share = np.maximum(share, np.clip((far_m - away) / (far_m - near_m), 0, 1))
    rows = (head.facial_mask > 0).numpy()
    steps = dense(head, head.expression_basis.permute(2, 0, 1)).numpy()[:, rows].astype(np.float64)
    flat = steps.reshape(len(names), -1)
    gram = flat @ flat.T
    ridge = RIDGE * np.trace(gram) / len(names) * np.eye(len(names))
    return np.linalg.solve(gram + ridge, flat @ (share[rows, None] * steps).reshape(len(names), -1).T)


def moves_jaw(regions: frozenset[str]) -> bool:
    """Return True if the jaw follows the driver."""
    return bool(regions & {"expression", "lips"})
