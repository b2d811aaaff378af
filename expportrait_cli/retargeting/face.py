"""Input of the transfer network (V_neutral of paper Eq. 8), sources of dynamic offsets, and regions of the face."""

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
"""Approximate number of vertices that the identity code is computed from."""
SMOOTHING = (4, 32)
"""Smoothing steps of the two curvatures, over about 2 and 6 edges."""


@dataclass(frozen=True)
class Face:
    """Constants of a head model's face: `P` dense vertices of the triangles on which the facial mask is above 0.

    Vertices of the mask that are in no such triangle have no normal and no neighbours, and are left out.
    """

    vertices: Int64[np.ndarray, " P"]
    faces: Int64[Tensor, "F_face 3"]
    """Triangles between them, as indices into `vertices`."""
    mask: Float32[Tensor, " P"]
    template: Float32[Tensor, "P 3"]
    """Mean head, head frame, m."""
    normals: Float32[Tensor, "P 3"]
    """Unit normals of the mean head."""
    averaging: Tensor
    """One smoothing step, sparse [P, P]: half the vertex itself, half the mean of its neighbours."""
    code_rows: Int64[Tensor, " S"]
    """Rows of the vertices that the identity code is computed from."""

    @classmethod
    def of(cls, head: HeadModel) -> "Face":
        """Make the face of a head model."""
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
        """Move the tensors to a device; `vertices` is a NumPy array and does not move."""
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


@dataclass(frozen=True)
class Neutral:
    """A person's face at rest, with the features that the network takes."""

    points: Float32[Tensor, "*B P 3"]
    """Vertices, head frame, m, aligned with the template in position, rotation and size (Umeyama)."""
    frames: Float32[Tensor, "*B P 3 3"]
    """Shortest rotation from the mean head's normal to the person's, times the person's size: maps offsets on the mean
    head's surface to offsets on the person's."""
    normals: Float32[Tensor, "*B P 3"]
    """Unit normals of `points`."""
    curvature: Float32[Tensor, "*B P 2"]
    """Signed height of each vertex over the smoothed surface, along the normal, mm, for the two `SMOOTHING` steps."""

    @classmethod
    def of(cls, verts: Float32[Tensor, "P 3"], face: Face) -> "Neutral":
        """Compute the features of a neutral face (m), in any position, rotation and size."""
        turn, scale, points = aligned(verts, face.template)
        normals = vertex_normals(points, face.faces)
        # With the inverse of the alignment's rotation, so that offsets are in the axes of `verts`.
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
        """Select vertices; only for a single person."""
        return Neutral(*(getattr(self, field.name)[rows] for field in fields(Neutral)))


def stacked(people: Sequence[Neutral]) -> Neutral:
    """Stack people of the same number of vertices along a first axis."""
    return Neutral(*(torch.stack([getattr(p, field.name) for p in people]) for field in fields(Neutral)))


def aligned(points: Float[Tensor, "P 3"], to: Float[Tensor, "P 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Rotation and scale of points relative to others (Umeyama 1991), and the points aligned with the others."""
    centre, goal = points.mean(0), to.mean(0)
    a, b = points - centre, to - goal
    u, s, vh = torch.linalg.svd(b.T @ a)
    sign = torch.ones_like(s)
    sign[2] = torch.sign(torch.linalg.det(u @ vh))
    turn = u @ torch.diag(sign) @ vh
    scale = (a * a).sum() / (s * sign).sum()
    return turn, scale, a @ turn.T / scale + goal


def shortest_turn(start: Float[Tensor, "P 3"], end: Float[Tensor, "P 3"]) -> Float[Tensor, "P 3 3"]:
    """Rotations of least angle from unit vectors to others; they must not be opposite."""
    axis = torch.linalg.cross(start, end)
    cosine = (start * end).sum(-1).clamp(min=-0.9)
    x, y, z = axis.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    return torch.eye(3, dtype=axis.dtype, device=axis.device) + skew + skew @ skew / (1 + cosine)[:, None, None]


@runtime_checkable
class Offsets(Protocol):
    """Source of dynamic offsets relative to the photo: zero for the photo's own expression."""

    @property
    def vertices(self) -> Int64[np.ndarray, " P"]:
        """Indices of the dense vertices that move."""
        ...

    def __call__(self, rows: slice, curves: Curves) -> Float32[np.ndarray, "T P 3"]:
        """Offsets of some frames, canonical, m; `curves` are these frames' own."""
        ...


FOLD_STEPS = 12
"""Smoothing steps on the plain mesh; coarser shapes (3.5 mm on the default head) do not count as folds."""


class Folded:
    """Other offsets, plus the difference to the driver's fitted offsets along the normals, high frequencies only."""

    def __init__(
        self,
        offsets: Offsets | None,
        driver: HeadFit,
        neutral: int,
        head_fit: HeadFit,
        head: HeadModel,
        strength: float,
    ):
        """`neutral`: the driver's frame that offsets are relative to; `strength`: factor on the added folds."""
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
        # With edges of half the length four times as many steps smooth over the same width.
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
    """The offsets that were fitted to the driver's clip, rotated to the person's surface."""

    vertices: Int64[np.ndarray, " P"]
    offset: Float32[np.ndarray, "T P 3"]
    """Offsets of the driver relative to the neutral frame, canonical, m."""
    turns: Float32[np.ndarray, "P 3 3"]
    """Rotations from the driver's neutral surface normals to the person's."""

    @classmethod
    def of(cls, driver: HeadFit, neutral: int, head_fit: HeadFit, head: HeadModel, *, strength: float) -> "Copied":
        """Copy a driver's fit; `neutral`: the frame that offsets are relative to; `strength`: factor on them."""
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
    """Delta f fitted to the driver's frames, in place of the photo's, if the driver is the person."""

    def __init__(self, driver: HeadFit, head_fit: HeadFit, strength: float):
        """`strength`: 0 keeps the photo's offset, 1 takes each frame's."""
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
"""Prefixes of the names of expressions in the regions lips (LIPS) and eyes (EYES)."""
AROUND = {"lips": (facemesh.LIPS, 0.022, 0.04), "eyes": (facemesh.EYE_RINGS, 0.006, 0.014)}
"""Landmarks of a region, and the distances from them, m, at which skin belongs to it by 1, and by 0."""
RIDGE = 1e-4
"""Ridge for similar components, as a share of the mean energy of a component."""


def parse_regions(text: str) -> frozenset[str]:
    """Regions named in a comma-separated list; `all` is pose, expression and gaze.

    Raises:
        UsageError: an unknown region, or none.
    """
    if text == "all":
        return frozenset(("pose", "expression", "gaze"))
    named = {part.strip() for part in text.split(",") if part.strip()}
    unknown = sorted(named - set(REGIONS))
    if unknown or not named:
        raise UsageError(f"`region={text!r}`: expected a list of {', '.join(REGIONS)}, or all.")
    return frozenset(named)


def expression_map(head: HeadModel, regions: frozenset[str]) -> Float[np.ndarray, "E E"]:
    """Linear map of expression coefficients that keeps only the motion of the chosen regions.

    Units whose names contain a region are kept or set to 0. Components such as SMPL-X's move the whole face: the map
    then gives the coefficients that approximate, by least squares, the motion inside the regions, which are found
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
