"""Identity from what networks see, not from landmarks alone: joint descent on the model's parameters (paper 3.1.2).

Landmarks say where the features of a face are; how far a nose stands out they hardly say. Normals, smoothed and gated,
and aligned depth of several frames do (Eq. 5 to 7).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import FitWeights
from expportrait_cli.fit.clip import Clip
from expportrait_cli.fit.evidence import Evidence
from expportrait_cli.fit.identity import key_frames
from expportrait_cli.fit.losses import LandmarkLoss
from expportrait_cli.fit.patch import Patch
from expportrait_cli.fit.surface import Surface
from expportrait_cli.geometry import rotations
from expportrait_cli.head import coarse, dense, joints, pose
from expportrait_cli.head.facemesh import FACE_OVAL, IRIS
from expportrait_cli.head.fitted import pose_of
from expportrait_cli.solve.solver import UNIT_IOD
from expportrait_cli.solve.state import interocular_px

ITERATIONS = 60
RATES = {"identity": 3e-2, "expression": 1e-2, "jaw": 3e-3, "turn": 1e-3, "translation": 5e-4}


@dataclass(frozen=True)
class _Frames:
    """What stays as it is."""

    clip: Clip
    curves: dict[str, Tensor]
    gaze: Float32[Tensor, "R 4"]

    def surface(self, moved: dict[str, Tensor]) -> Surface:
        """The whole head in every frame, with parameters moved from where the tracking put them."""
        head, still = self.clip.head, self.curves
        identity, jaw = moved["identity"], moved["jaw"]
        shape = coarse(head, identity.expand(len(jaw), -1), moved["expression"], jaw, self.gaze)
        canonical = dense(head, shape) + torch.from_numpy(self.clip.fit.static_offset)
        turn = rotations.axis_angle(rotations.matrix(moved["turn"]) @ rotations.matrix(still["rotation"]))
        arguments = {**still, "jaw": jaw, "rotation": turn, "translation": moved["translation"]}
        verts = pose(head, canonical, joints(head, identity), **arguments)
        return Surface.of(torch.zeros_like(verts), verts, head.dense_faces, focal_px=self.clip.focal_px)


def whole_patch(clip: Clip) -> Patch:
    """Every vertex of the head: what the parameters move."""
    faces = clip.head.dense_faces.numpy()
    return Patch.of(faces, np.ones(len(clip.head.parts), np.float32))


def refined_identity(clip: Clip, evidence: Evidence) -> Float32[np.ndarray, " K"]:
    """Descend on identity, and on expression and pose of key frames beside it, from where the tracking left them.

    `evidence` speaks of `whole_patch`. The identity of the least loss is kept; the frames are fitted again by whoever
    called, since a new identity moves them all.
    """
    rows = key_frames(clip.tracking)
    curves = clip.rows(rows)
    crops = list(clip.crops(rows))
    verts, _ = clip.pose(rows, whole_patch(clip))
    terms = [*evidence.terms(crops, verts), _landmarks(clip, rows)]
    arguments = pose_of(curves, curves.torso_translation)
    frames = _Frames(clip, arguments, arguments["gaze"])
    moved = {
        "identity": torch.from_numpy(clip.fit.identity.copy()),
        "expression": torch.from_numpy(curves.expression.copy()),
        "jaw": arguments["jaw"].clone(),
        "turn": torch.zeros(len(rows), 3),
        "translation": arguments["translation"].clone(),
    }
    return _descend(frames, moved, terms).numpy()


def _descend(frames: _Frames, moved: dict[str, Tensor], terms: Sequence) -> Float[Tensor, " K"]:
    head = frames.clip.head
    low, high = head.expression_low.float(), head.expression_high.float()
    optimiser = torch.optim.Adam([{"params": [moved[name].requires_grad_()], "lr": RATES[name]} for name in RATES])
    best, least = moved["identity"].detach().clone(), torch.inf
    for iteration in range(ITERATIONS + 1):
        surface = frames.surface(moved)
        loss = torch.stack([term(surface).mean() for term in terms]).sum()
        loss = loss + FitWeights.identity * moved["identity"].square().mean()
        loss = loss + FitWeights.expression * moved["expression"].square().mean()
        if loss.item() < least:
            best, least = moved["identity"].detach().clone(), loss.item()
        if iteration < ITERATIONS:
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            moved["expression"].data.clamp_(low, high)
    return best


def _landmarks(clip: Clip, rows: np.ndarray) -> LandmarkLoss:
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
