"""A tracked clip as the fit sees it: posed heads in windows of frames, and the pictures beside them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fitting.patch import Patch, PosedPatch
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import LandmarkSpread
from expportrait_cli.head.fitted import canonical_mesh, person_joints, pose_of
from expportrait_cli.head.model import NECK, bones, skin
from expportrait_cli.media.video import read_pictures

WINDOW = 16
"""Frames that are posed and optimised together."""
SHOULDER_LIMIT_DEG = 35.0

Rows = Int64[np.ndarray, " R"]


def torso_turns(tracking: Tracking) -> Float32[np.ndarray, "T 3"]:
    """Turn of the torso in each frame: the shoulders' slope, 0 where none are seen, and a third of the head's yaw."""
    line = tracking.shoulders[:, 0] - tracking.shoulders[:, 1]
    roll = np.where(np.isfinite(line).all(1), np.arctan2(line[:, 1], line[:, 0]), 0.0)
    limit = np.radians(SHOULDER_LIMIT_DEG)
    turns = np.stack([np.zeros_like(roll), tracking.rotation[:, 1] / 3, roll], -1)
    return np.clip(turns, -limit, limit).astype(np.float32)


def curves_of(tracking: Tracking, neck: Float32[np.ndarray, " 3"]) -> Curves:
    """The clip's own motion; the torso hangs at the head's neck joint (`neck`, canonical)."""
    torso = from_turns(tracking.rotation) @ neck + tracking.translation
    return Curves(
        expression=tracking.expression,
        jaw=tracking.jaw,
        gaze=tracking.gaze,
        rotation=tracking.rotation,
        translation=tracking.translation,
        torso_rotation=torso_turns(tracking),
        torso_translation=torso.astype(np.float32),
    )


def landmark_steps(
    head: HeadModel,
    verts_cam: Float32[Tensor, "R V 3"],
    seen_px: Float32[np.ndarray, "R 478 2"],
    spread: LandmarkSpread,
    *,
    focal_px: float,
) -> Float32[np.ndarray, "R V 3"]:
    """Steps across the view, m, that bring a head's landmarks to where they are seen; eyes and teeth follow."""
    points = landmarks(head, verts_cam).numpy()
    shown = points[..., :2] / points[..., 2:] * focal_px + CROP_SIZE / 2
    steps = np.zeros(verts_cam.shape, np.float32)
    depth = verts_cam[:, spread.vertices, 2:].numpy()
    steps[:, spread.vertices, :2] = spread((seen_px - shown).astype(np.float32)) * depth / focal_px
    return steps


@dataclass(frozen=True)
class Clip:
    """A person's head in every frame of a clip, or in one photo."""

    tracking: Tracking
    fit: HeadFit
    """Identity and static offset; its own photo's dynamic offset is left out."""
    head: HeadModel
    curves: Curves
    config: FitConfig
    """How it is fitted."""

    @classmethod
    def of(cls, tracking: Tracking, fit: HeadFit, head: HeadModel, config: FitConfig | None = None) -> "Clip":
        """Take the identity from the fit and the motion from the tracking, in the tracking's camera."""
        bare = replace(fit, frame_offset=np.zeros_like(fit.frame_offset))
        curves = curves_of(tracking, person_joints(fit, head)[NECK].numpy())
        return cls(tracking, bare, head, curves, config or FitConfig())

    @property
    def focal_px(self) -> float:
        """Of the clip's crop."""
        return self.tracking.focal_px

    def tracked(self) -> Rows:
        """Frames whose landmarks were seen, not filled in."""
        return np.flatnonzero(self.tracking.state == 0)

    def windows(self) -> list[Rows]:
        """All frames, in windows."""
        count = len(self.tracking.state)
        return [np.arange(start, min(start + WINDOW, count)) for start in range(0, count, WINDOW)]

    def rows(self, rows: Rows) -> Curves:
        """Curves of some frames."""
        return Curves(*(getattr(self.curves, field.name)[rows] for field in fields(Curves)))

    def pose(
        self, rows: Rows, patch: Patch, offset: Float32[np.ndarray, "R P 3"] | None = None
    ) -> tuple[Float32[Tensor, "R V 3"], PosedPatch]:
        """Whole heads in the camera, and the patch of them; both with dynamic offsets (masked already) if given."""
        curves = self.rows(rows)
        canonical = canonical_mesh(self.fit, self.head, curves)
        turns, shifts = bones(person_joints(self.fit, self.head), pose_of(curves, curves.torso_translation))
        verts = skin(self.head.skinning, canonical, turns, shifts)
        blend = torch.einsum("pj,tjab->tpab", self.head.skinning[patch.vertices], turns)
        posed = PosedPatch(patch, verts[:, patch.vertices], blend, self.focal_px)
        if offset is not None:
            posed = posed.shifted(torch.from_numpy(offset))
            verts[:, patch.vertices] = posed.verts
        return verts, posed

    def landmark_offsets(self, rows: Rows, patch: Patch, spread: LandmarkSpread) -> Float32[np.ndarray, "R P 3"]:
        """What each frame's landmarks say beyond identity and expression: smooth, canonical, before the mask, m."""
        verts, posed = self.pose(rows, patch)
        seen = self.tracking.landmarks[rows]
        steps = landmark_steps(self.head, verts, seen, spread, focal_px=self.focal_px)
        return np.einsum("tpji,tpj->tpi", posed.blend.numpy(), steps[:, patch.vertices]).astype(np.float32)

    def crops(self, rows: Rows) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """The pictures of some frames in rising order, cropped; frames between are read and dropped."""
        crop = Crop(*self.tracking.crop)
        for picture in read_pictures(self.tracking.source, rows):
            yield crop_image(picture, crop, CROP_SIZE)
