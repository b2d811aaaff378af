"""A clip's posed head in every frame, masks of the vertices that are fitted, and choice of frames."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from scipy.spatial import KDTree
from torch import Tensor

from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fitting.patch import Patch, PosedPatch
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS, LandmarkSpread
from expportrait_cli.head.fitted import canonical_mesh, person_joints, pose_of
from expportrait_cli.head.model import HEAD, JAW, NECK, bones, skin
from expportrait_cli.media.video import read_pictures
from expportrait_cli.solve.state import interocular_px

EAR_M = 0.066
EAR_FADE_STEPS = 8
EAR_SHARE = 0.3
"""Factor on the mask of Delta g at the ears, which move as rigid pieces: neither outline nor network shows their
detail."""
FEW, MANY = 4, 16
"""Number of distinct frames up to which the mask of Delta g is 0 in the face, and from which it is 1."""
DISTINCT_DEG, DISTINCT_EXPRESSION = 8.0, 0.15
CALM_FRAMES = 4
"""Fewest frames that albedo and noise are estimated from."""
NEUTRAL_EXPRESSION, NEUTRAL_JAW_DEG = 0.5, 12.0
"""Length of the expression vector, and opening of the jaw, degrees, at which a frame's neutral weight is 1/e."""
RIM_TOP_M = 0.03
"""Height in the head frame, m, below which skin beside the face is free of hair on most people."""
NOSTRILS = [20, 60, 75, 79, 166, 238, 241, 242, 250, 290, 305, 309, 392, 458, 461, 462]
NOSE_ROOT, NOSE = [6, 122, 168, 351], [1, 4, 5, 195, 197]
BROWS = [46, 52, 53, 55, 63, 65, 66, 70, 105, 107, 276, 282, 283, 285, 293, 295, 296, 300, 334, 336]
BESIDE = ((EYE_RINGS, 0.006), (LIPS, 0.004), (NOSTRILS, 0.005), (NOSE_ROOT, 0.006), (NOSE, 0.008), (BROWS, 0.004))
"""Landmarks, and the distance from them (m) up to which vertices are not plain skin: lashes, teeth, gloss, hair and
shadows."""

BROW_M = 0.004
"""Height over the middle of the brows at which the forehead begins, m."""


def ear_vertices(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of ears with the skin around them: vertices far to the side, near the height of the head's origin."""
    x, y, z = dense(head, head.template).numpy().T
    return (np.abs(x) > EAR_M) & (np.abs(y) < 0.045) & (z > -0.045) & (z < 0.03)


def _ears(head: HeadModel) -> Float[np.ndarray, " V"]:
    """Weight 1 on the ears, falling to 0 over the skin around them."""
    share, faces = ear_vertices(head).astype(float), head.dense_faces.numpy()
    count = np.maximum(np.bincount(faces.ravel(), minlength=len(share)), 1)
    for _ in range(EAR_FADE_STEPS):
        around = np.repeat(share[faces].mean(1), 3)
        share = np.bincount(faces.ravel(), around, len(share)) / count
    return share


def dynamic_mask(head: HeadModel) -> Float32[np.ndarray, " V"]:
    """Mask of Delta f, 0..1: the face, fading out over its border; exactly 0 elsewhere."""
    return head.facial_mask.numpy().astype(np.float32)


def static_mask(head: HeadModel, share: float) -> Float32[np.ndarray, " V"]:
    """Mask of Delta g, 0..1: 1 on skin, hair and clothes off the face, `share` in the face, lower on the ears."""
    mask = 1 - (1 - share) * dynamic_mask(head)
    mask = mask * (1 - (1 - EAR_SHARE) * _ears(head))
    return (mask * head.part("skin").numpy()).astype(np.float32)


def plain_skin(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of plain facial skin: without brows, and the rims of eyes, mouth and nostrils."""
    verts = dense(head, head.template)
    points, verts = landmarks(head, verts).numpy(), verts.numpy()
    skin = dynamic_mask(head) > 0.5
    for rim, reach in BESIDE:
        # Distances beyond the bound are infinite: to find each of them would take most of the time.
        skin[skin] = KDTree(points[rim]).query(verts[skin], distance_upper_bound=2 * reach)[0] > reach
    return skin


def above_brows(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of the vertices that lie higher than the brows."""
    verts = dense(head, head.template)
    return (verts[:, 1] > landmarks(head, verts)[9, 1] + BROW_M).numpy()


def bare_rim(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of skin around the face that is rarely covered by hair and not moved by expressions: ears, jaw, neck."""
    y = dense(head, head.template)[:, 1].numpy()
    bones = head.skinning[:, [NECK, HEAD, JAW]].sum(-1).numpy()
    return (bones > 0.5) & (dynamic_mask(head) < 0.02) & head.part("skin").numpy() & (y < RIM_TOP_M)


def distinct_frames(rotation: Float[np.ndarray, "T 3"], expression: Float[np.ndarray, "T E"]) -> int:
    """Number of frames, at most `MANY`, that differ from each other in rotation or expression, by greedy choice."""
    chosen: list[int] = []
    for t in range(len(rotation)):
        turn = np.degrees(np.linalg.norm(rotation[chosen] - rotation[t], axis=1))
        change = np.linalg.norm(expression[chosen] - expression[t], axis=1)
        if ((turn > DISTINCT_DEG) | (change > DISTINCT_EXPRESSION)).all():
            chosen.append(t)
        if len(chosen) >= MANY:
            break
    return len(chosen)


def face_share(distinct: int) -> float:
    """Weight, 0..1, of Delta g in the face; 0 up to FEW distinct frames, in which expression looks like shape."""
    return float(np.clip((distinct - FEW) / (MANY - FEW), 0, 1))


def neutral_weights(
    expression: Float[np.ndarray, "T E"], jaw: Float[np.ndarray, "T 3"], sure: Bool[np.ndarray, " T"]
) -> Float[np.ndarray, " T"]:
    """Weight of each frame in the mean that counts as the person's own shape: high for neutral frames; sums to one.

    0 unless `sure`. With equal weights a clip of smiles would put the smile into the neutral face.
    """
    opening = np.linalg.norm(jaw, axis=1) / np.radians(NEUTRAL_JAW_DEG)
    effort = (expression**2).sum(1) / NEUTRAL_EXPRESSION**2 + opening**2
    weights = np.exp(-(effort - effort[sure].min())) * sure
    return weights / weights.sum()


def calmest(
    expression: Float[np.ndarray, "T E"], jaw: Float[np.ndarray, "T 3"], sure: Bool[np.ndarray, " T"]
) -> Int64[np.ndarray, " C"]:
    """Indices of the most neutral third of the given frames, but at least `CALM_FRAMES` of them."""
    sure = sure if sure.any() else np.ones_like(sure)
    order = np.argsort(-neutral_weights(expression, jaw, sure), kind="stable")
    return np.sort(order[: max(len(order) // 3, CALM_FRAMES)])


def recentred(
    dynamic: Float32[np.ndarray, "T P C"], weights: Float[np.ndarray, " T"], share: float
) -> tuple[Float32[np.ndarray, "P C"], Float32[np.ndarray, "T P C"]]:
    """Split `share` of the weighted mean off the dynamic offsets: (static part to add, dynamic offsets that remain).

    Both are added before skinning, so that the mesh of every frame does not change.
    """
    mean = share * np.einsum("t,tpc->pc", weights, dynamic.astype(np.float64))
    return mean.astype(np.float32), (dynamic - mean).astype(np.float32)


STILL_IOD = 0.005
"""Largest mean motion of landmarks between still frames, in inter-ocular distances: a rotation by half a degree."""


def first_frame(tracking: Tracking) -> Tracking:
    """Return the tracking of the first frame alone, as of a photo, with the clip's identity and camera."""
    return replace(tracking.frames([0]), rate=np.array([0, 1]))


def still_frames(tracking: Tracking) -> Int64[np.ndarray, " R"]:
    """Frames after which the landmarks hardly move to the next frame."""
    points = tracking.landmarks
    way = np.linalg.norm(np.diff(points, axis=0), axis=-1).mean(1)
    eyes = np.array([interocular_px(frame) for frame in points[:-1]])
    seen = (tracking.state[:-1] == 0) & (tracking.state[1:] == 0) & (np.diff(tracking.shot) == 0)
    return np.flatnonzero(seen & (way < STILL_IOD * eyes))


WINDOW = 16
"""Frames that are posed and optimised together."""
SHOULDER_LIMIT_DEG = 35.0

Rows = Int64[np.ndarray, " R"]


def torso_turns(tracking: Tracking) -> Float32[np.ndarray, "T 3"]:
    """Rotation (axis-angle, rad) of the torso in each frame: the shoulders' slope, and a third of the head's yaw.

    Between frames with visible shoulders the slope is interpolated; it is 0 in a shot without any.
    """
    line, frames = tracking.shoulders[:, 0] - tracking.shoulders[:, 1], np.arange(len(tracking.shot))
    is_seen, roll = np.isfinite(line).all(1), np.zeros(len(line))
    for shot in np.unique(tracking.shot):
        own = tracking.shot == shot
        if (seen := np.flatnonzero(own & is_seen)).size:
            roll[own] = np.interp(frames[own], seen, np.arctan2(line[seen, 1], line[seen, 0]))
    limit = np.radians(SHOULDER_LIMIT_DEG)
    turns = np.stack([np.zeros_like(roll), tracking.rotation[:, 1] / 3, roll], -1)
    return np.clip(turns, -limit, limit).astype(np.float32)


def curves_of(tracking: Tracking, neck: Float32[np.ndarray, " 3"]) -> Curves:
    """Motion curves of a tracking; the torso is attached to the head at the neck joint (`neck`, canonical, m)."""
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
    """Offsets in the camera's x and y, m, that move a head's landmarks to `seen_px`; spread over `spread.vertices`."""
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
    """Identity and static offset; `frame_offset` is zero."""
    head: HeadModel
    curves: Curves
    config: FitConfig
    """Configuration of the fit."""

    @classmethod
    def of(cls, tracking: Tracking, fit: HeadFit, head: HeadModel, config: FitConfig | None = None) -> "Clip":
        """Take the identity from the fit and the motion from the tracking, in the tracking's camera."""
        bare = replace(fit, frame_offset=np.zeros_like(fit.frame_offset))
        curves = curves_of(tracking, person_joints(fit, head)[NECK].numpy())
        return cls(tracking, bare, head, curves, config or FitConfig())

    @property
    def focal_px(self) -> float:
        """Focal length of the clip's crop, px."""
        return self.tracking.focal_px

    def tracked(self) -> Rows:
        """Indices of the frames whose landmarks were detected, not interpolated."""
        return np.flatnonzero(self.tracking.state == 0)

    def windows(self) -> list[Rows]:
        """Indices of all frames, in windows of `WINDOW`."""
        count = len(self.tracking.state)
        return [np.arange(start, min(start + WINDOW, count)) for start in range(0, count, WINDOW)]

    def rows(self, rows: Rows) -> Curves:
        """Curves of some frames."""
        return Curves(*(getattr(self.curves, field.name)[rows] for field in fields(Curves)))

    def pose(
        self, rows: Rows, patch: Patch, offset: Float32[np.ndarray, "R P 3"] | None = None
    ) -> tuple[Float32[Tensor, "R V 3"], PosedPatch]:
        """Pose the whole head (camera, m) and a patch of it in some frames; `offset`: dynamic offsets, masked, m."""
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
        """Smooth offsets that bring the model to each frame's landmarks; canonical, before the mask, m."""
        verts, posed = self.pose(rows, patch)
        seen = self.tracking.landmarks[rows]
        steps = landmark_steps(self.head, verts, seen, spread, focal_px=self.focal_px)
        return np.einsum("tpji,tpj->tpi", posed.blend.numpy(), steps[:, patch.vertices]).astype(np.float32)

    def crops(self, rows: Rows) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        """Read the cropped pictures of some frames, whose order must rise; frames between are read and dropped."""
        crop = Crop(*map(float, self.tracking.crop))
        for picture in read_pictures(self.tracking.source, self.tracking.first_frame + rows):
            yield crop_image(picture, crop, CROP_SIZE)
