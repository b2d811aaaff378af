"""Heads of which everything is known, with the pictures that they would give: what the fit must find again."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.detect.estimate import Estimate
from expportrait_cli.fitting.clip import Clip, dynamic_mask, plain_skin
from expportrait_cli.fitting.dynamic import Dynamic, dynamic_offsets
from expportrait_cli.fitting.evidence import Estimates
from expportrait_cli.fitting.patch import Patch
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import to_turns
from expportrait_cli.head import HeadModel, dense, landmark_model, landmarks
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.render.buffers import Buffers, render_buffers
from expportrait_cli.solve.solver import IDENTITY_PRIOR, Solver
from expportrait_cli.solve.state import interocular_px
from expportrait_cli.tracking.observe import Crop, Observations
from expportrait_cli.tracking.stage import solve_frames
from support.performers import quiet

FOCAL_PX = 2200.0
FACE_DEPTH_M = 0.08
RATE = Fraction(25)
BIAS_IOD, JITTER_IOD = 0.012, 0.0022
MM = 1e3
BAND_STEPS = 25
"""Smoothing steps that leave waves longer than about 15 mm."""
GRAIN_PX = 8
"""Size of the blobs of noise."""
LIGHT = np.array([0.55, 0.3, 0.35, 0.75])
"""Constant and the three first harmonics of the light."""


def dynamic_poses(tracking: Tracking) -> dict[str, np.ndarray]:
    """Poses that the dynamic offsets of a clip's own fit go with."""
    names = ("expression", "jaw", "gaze", "rotation", "translation")
    return {f"dynamic_{name}": getattr(tracking, name) for name in names}


def blank_fit(head: HeadModel, identity: np.ndarray) -> HeadFit:
    """A head without offsets, a good metre in front of the camera."""
    vertices = head.operator.shape[0]
    return HeadFit(
        source="",
        source_hash="",
        frame=0,
        head_model=head.name,
        size=np.array([CROP_SIZE, CROP_SIZE]),
        crop=np.array([0, 0, CROP_SIZE], np.float32),
        focal_px=FOCAL_PX,
        landmarks=np.zeros((478, 2), np.float32),
        identity=identity.astype(np.float32),
        identity_from="",
        expression=np.zeros(len(head.expression_names), np.float32),
        jaw=np.zeros(3, np.float32),
        gaze=np.zeros(4, np.float32),
        rotation=np.zeros(3, np.float32),
        translation=np.array([0, 0, 1.2], np.float32),
        torso_rotation=np.zeros(3, np.float32),
        static_offset=np.zeros((vertices, 3), np.float32),
        frame_offset=np.zeros((vertices, 3), np.float32),
        relief=np.zeros((0, 0), np.float16),
        relief_seen=np.zeros(len(head.parts), np.float16),
        classes=np.zeros((0, 0, 3), np.uint8),
        ears_seen=np.ones(2, bool),
        silhouette_iou=1.0,
        dynamic_vertices=np.zeros(0, np.int64),
        dynamic_offset=np.zeros((0, 0, 3), np.float16),
        dynamic_expression=np.zeros((0, len(head.expression_names)), np.float32),
        dynamic_jaw=np.zeros((0, 3), np.float32),
        dynamic_gaze=np.zeros((0, 4), np.float32),
        dynamic_rotation=np.zeros((0, 3), np.float32),
        dynamic_translation=np.zeros((0, 3), np.float32),
        dynamic_loss=np.zeros((0, 2), np.float32),
    )


def tracking_of(head: HeadModel, identity: np.ndarray, frames: int, seed: int, source: Path) -> Tracking:
    """A clip in which head and face move smoothly; landmarks are filled in later."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 2 * np.pi, frames, endpoint=False)[:, None]

    def waves(channels: int, size: float) -> np.ndarray:
        phase = rng.uniform(0, 2 * np.pi, channels)
        speed = rng.integers(1, 4, channels)
        return size * np.sin(speed * time + phase)

    count = len(head.expression_names)
    expression = np.clip(waves(count, 0.5) * (rng.random(count) < 0.3), 0, 1)
    jaw = np.zeros((frames, 3))
    jaw[:, 0] = 0.12 * (1 + waves(1, 1.0)[:, 0]) / 2
    return Tracking(
        source=str(source),
        source_hash="",
        head_model=head.name,
        size=np.array([CROP_SIZE, CROP_SIZE]),
        rate=np.array([25, 1]),
        crop=np.array([0, 0, CROP_SIZE], np.float32),
        focal_px=FOCAL_PX,
        landmarks=np.zeros((frames, 478, 2), np.float32),
        identity=identity.astype(np.float32),
        expression=expression.astype(np.float32),
        jaw=jaw.astype(np.float32),
        gaze=np.zeros((frames, 4), np.float32),
        rotation=waves(3, 1.0).astype(np.float32) * np.radians([8, 15, 4]).astype(np.float32),
        translation=(np.array([0, 0.01, 1.2]) + waves(3, 0.004)).astype(np.float32),
        shoulders=np.full((frames, 2, 2), np.nan, np.float32),
        flow=np.zeros((frames, 2, 4), np.float32) + np.array([1, 0, 0, 0], np.float32),
        shot=np.zeros(frames, np.int64),
        state=np.zeros(frames, np.uint8),
        error=np.ones(frames, np.float32),
        doubt=np.zeros(frames, np.float32),
    )


def lively(head: HeadModel, frames: int, seed: int) -> np.ndarray:
    """Expressions [T,E] of which eight are at work in a frame, others in the next: half a smile and a frown."""
    rng = np.random.default_rng(seed)
    psi = np.zeros((frames, len(head.expression_names)))
    for row in psi:
        row[rng.choice(len(row), 8, replace=False)] = rng.uniform(0.3, 1.0, 8)
    return psi


def perturbed(tracking: Tracking, seed: int, *, bias_iod: float = 0.0, jitter_iod: float = 0.0) -> Tracking:
    """The clip with landmarks off by a random bias of each, the same in all frames, and by jitter; rms lengths."""
    rng = np.random.default_rng(1000 + seed)
    size = np.mean([interocular_px(frame) for frame in tracking.landmarks]) / np.sqrt(2)
    shape = tracking.landmarks.shape
    error = size * (bias_iod * rng.normal(size=shape[1:]) + jitter_iod * rng.normal(size=shape))
    return replace(tracking, landmarks=(tracking.landmarks + error).astype(np.float32))


def solved(tracking: Tracking, identity: np.ndarray, head: HeadModel, *, flow_trust: float = 0.0) -> Tracking:
    """The clip tracked anew, frame by frame, from its landmarks and its flow."""
    seen = Observations(
        size=(CROP_SIZE, CROP_SIZE),
        rate=RATE,
        crop=Crop(*map(float, tracking.crop)),
        landmarks=tracking.landmarks,
        shoulders=tracking.shoulders,
        flow=tracking.flow,
        flow_trust=np.full((len(tracking.error), 2), flow_trust, np.float32),
        shot=tracking.shot,
        state=tracking.state,
        doubt=tracking.doubt,
    )
    solver = Solver(landmark_model(head), focal_px=tracking.focal_px, centre_px=CROP_SIZE / 2)
    states = solve_frames(solver, np.asarray(identity, np.float64), seen, head)

    def column(name: str) -> np.ndarray:
        return np.stack([getattr(state, name) for state in states])

    found = {name: column(name).astype(np.float32) for name in ("expression", "jaw", "gaze", "translation")}
    turns = to_turns(column("rotation")).astype(np.float32)
    return replace(tracking, identity=np.asarray(identity, np.float32), rotation=turns, **found)


def write_film(path: Path, pictures: Iterable[np.ndarray]) -> Path:
    """Pictures as a lossless film."""
    with VideoWriter(path, rate=RATE, lossless=True) as writer:
        for picture in pictures:
            writer.write(picture)
    return path


def numbered_film(path: Path, frames: int) -> Path:
    """Grey pictures, each as bright as its number: a `NumberedOracle` tells by it which frame it is asked for."""
    return write_film(path, (np.full((64, 64, 3), number, np.uint8) for number in range(frames)))


def folds(head: HeadModel, seed: int, *, wave_m: float, rms_m: float) -> np.ndarray:
    """Heights [V] over the neutral mesh with about one wave length."""
    rng = np.random.default_rng(seed)
    verts = dense(head, head.template).numpy()
    height = np.zeros(len(verts))
    for _ in range(12):
        direction = rng.normal(size=3)
        direction *= 2 * np.pi / (wave_m * np.linalg.norm(direction))
        height += np.cos(verts @ direction + rng.uniform(0, 2 * np.pi))
    face = dynamic_mask(head) > 0.5
    return height * (rms_m / height[face].std())


def wrinkles(head: HeadModel, *, wave_m: float = 0.009, height_m: float = 0.0005) -> np.ndarray:
    """Heights [V] of level folds on the forehead and upright ones between the brows and beside the mouth."""
    x, y, z = dense(head, head.template).numpy().T
    brow = landmarks(head, dense(head, head.template)).numpy()

    def window(centre: np.ndarray, width: float, height: float) -> np.ndarray:
        away = ((x - centre[0]) / width) ** 2 + ((y - centre[1]) / height) ** 2
        return np.exp(-(away**2)) * (z > 0)

    level, upright = np.cos(2 * np.pi * y / wave_m), np.cos(2 * np.pi * x / wave_m)
    sides = window(brow[205], 0.015, 0.015) + window(brow[425], 0.015, 0.015)
    return height_m * (window(brow[151], 0.045, 0.02) * level + (window(brow[9], 0.012, 0.012) + sides) * upright)


@dataclass(frozen=True)
class KnownHead:
    """A clip of a known head; pictures are drawn on demand."""

    head: HeadModel
    clip: Clip
    patch: Patch
    offset: np.ndarray
    """Dynamic offset of every frame, masked, float32 [T,P,3]."""

    @classmethod
    def make(
        cls, head: HeadModel, heights: np.ndarray, directions: np.ndarray, *, seed: int, source: Path, expression=None
    ):
        """`heights` [T,V] over `directions` [V,3], canonical; expressions [T,E] other than small smooth ones."""
        rng = np.random.default_rng(seed)
        identity = 0.6 * rng.normal(size=head.identity_basis.shape[-1])
        patch = Patch.of(head.dense_faces.numpy(), dynamic_mask(head))
        field = heights[:, patch.vertices, None] * directions[patch.vertices]
        offset = (field * patch.mask.numpy()[:, None]).astype(np.float32)
        tracking = tracking_of(head, identity, len(heights), seed, source)
        if expression is not None:
            tracking = replace(tracking, expression=expression.astype(np.float32))
        clip = Clip.of(tracking, blank_fit(head, identity), head)
        known = cls(head, clip, patch, offset)
        verts = known.posed(np.arange(len(heights)))
        points = landmarks(head, verts).numpy()
        seen = points[..., :2] / points[..., 2:] * FOCAL_PX + CROP_SIZE / 2
        tracking = replace(tracking, landmarks=seen.astype(np.float32))
        return replace(known, clip=Clip.of(tracking, clip.fit, head))

    def posed(self, rows: np.ndarray) -> torch.Tensor:
        """True vertices in the camera."""
        return self.clip.pose(rows, self.patch, self.offset[rows])[0]

    def buffers(self, row: int) -> Buffers:
        """True normals, depth and mask of a frame."""
        camera = Camera.of_crop(FOCAL_PX, CROP_SIZE, CROP_SIZE)
        return render_buffers(self.posed(np.array([row])), self.head.dense_faces, camera)

    def picture(self, row: int, albedo: np.ndarray) -> np.ndarray:
        """The head under a light: uint8 [S,S,3]; `albedo` [V] sticks to the surface."""
        from expportrait_cli.render.rasterizer import interpolate, rasterize

        camera = Camera.of_crop(FOCAL_PX, CROP_SIZE, CROP_SIZE)
        verts = self.posed(np.array([row]))
        normals = vertex_normals(verts, self.head.dense_faces) * torch.tensor([1.0, -1.0, -1.0])
        attributes = torch.cat([normals, torch.from_numpy(albedo.astype(np.float32))[None, :, None]], -1)
        rast = rasterize(camera.clip(verts), self.head.dense_faces, (CROP_SIZE, CROP_SIZE))
        shown = interpolate(attributes, rast, self.head.dense_faces)[0].numpy()
        n = shown[..., :3] / np.maximum(np.linalg.norm(shown[..., :3], axis=-1, keepdims=True), 1e-6)
        linear = shown[..., 3] * np.clip(LIGHT[0] + n @ LIGHT[1:], 0.02, None)
        value = 255 * np.clip(linear, 0, 1) ** (1 / 2.2)
        return np.repeat(np.rint(value).astype(np.uint8)[..., None], 3, -1)


class Oracle:
    """Estimates that are right, or wrong by a known noise: frame after frame of a known clip."""

    name, licence = "oracle", "none"

    def __init__(self, known: KnownHead, *, noise_deg: float = 0.0, depth_noise: float = 0.0, seed: int = 0):
        self._known, self._noise, self._depth_noise = known, np.radians(noise_deg), depth_noise
        self._rng, self._row = np.random.default_rng(seed), 0

    def __call__(self, crop: np.ndarray) -> Estimate:
        """Normals and depth of the next frame."""
        found = self._known.buffers(self._row)
        self._row += 1
        normals, mask = found.normals[0].numpy(), found.mask[0].numpy()
        if self._noise:
            normals = normals + self._slow(3) * self._noise
            normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
            normals *= mask[..., None] > 0.5
        depth = found.depth[0].numpy() * 3.0 - 1.0
        depth = depth + 3.0 * FACE_DEPTH_M * self._depth_noise * self._slow(1)[..., 0]
        depth = np.where(mask > 0.5, depth, np.nan)
        return Estimate(normals.astype(np.float32), depth.astype(np.float32), (mask > 0.99).astype(np.float32))

    def _slow(self, channels: int) -> np.ndarray:
        """Unit noise that varies over several pixels, as a network's does."""
        import cv2

        grain = self._rng.normal(size=(CROP_SIZE // GRAIN_PX, CROP_SIZE // GRAIN_PX, channels)).astype(np.float32)
        wide = cv2.resize(grain, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_CUBIC).reshape(CROP_SIZE, -1, channels)
        return wide / wide.std()


class NumberedOracle(Oracle):
    """An oracle that knows from a numbered picture which frame it is; its noise depends on the frame alone."""

    def __init__(self, known: KnownHead, *, noise_deg: float = 0.0, depth_noise: float = 0.0, seed: int = 0):
        super().__init__(known, noise_deg=noise_deg, depth_noise=depth_noise)
        self._seed = seed

    def __call__(self, crop: np.ndarray) -> Estimate:
        """Normals and depth of the frame whose number the picture shows."""
        self._row = int(crop[0, 0, 0])
        self._rng = np.random.default_rng([self._seed, self._row])
        return super().__call__(crop)


def tracked_again(known: KnownHead, seed: int):
    """Identity from all frames, then every frame, from landmarks with bias and jitter, in the true camera."""
    head, seen = known.head, perturbed(known.clip.tracking, seed, bias_iod=BIAS_IOD, jitter_iod=JITTER_IOD)
    solver = Solver(landmark_model(head), focal_px=FOCAL_PX, centre_px=CROP_SIZE / 2)
    identity, _ = solver.identity(seen.landmarks, prior=IDENTITY_PRIOR)
    return solved(seen, identity, head)


def rigid_rms_mm(found: np.ndarray, true: np.ndarray) -> float:
    """Rms distance after the rotation and shift that are best for it; no scale (Kabsch)."""
    a, b = found - found.mean(0), true - true.mean(0)
    u, _, v = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ v))]) @ v
    return MM * float(np.sqrt(((a @ turn - b) ** 2).sum(1).mean()))


class Skin:
    """Facial skin that the camera sees plainly, and distances along its normals."""

    def __init__(self, head):
        self.verts = dense(head, head.template).numpy()
        self.normals = vertex_normals(torch.from_numpy(self.verts), head.dense_faces).numpy()
        self.plain = plain_skin(head)
        self.seen = self.plain & (self.normals[:, 2] > 0.3)

    def without_pose(self, heights: np.ndarray, rms_m: float) -> np.ndarray:
        """Heights [V] less what an offset along the view, or linear in depth, would do: networks' depth has neither."""
        z = self.normals[:, 2]
        basis = np.stack([z, z * self.verts[:, 2]], 1)
        rest = heights - basis @ np.linalg.lstsq(basis[self.seen], heights[self.seen], rcond=None)[0]
        return rest * (rms_m / rest[self.seen].std())

    def heights(self, known: KnownHead, offset: np.ndarray) -> np.ndarray:
        """Offsets [T,P,3] along the normals, m."""
        return (offset * self.normals[known.patch.vertices]).sum(-1)

    def error_mm(self, known: KnownHead, offset: np.ndarray) -> float:
        """Rms distance along the normal from the true offsets."""
        error = self.heights(known, offset - known.offset)[:, self.seen[known.patch.vertices]]
        return MM * float(np.sqrt((error**2).mean()))

    def band(self, known: KnownHead, offset: np.ndarray) -> np.ndarray:
        """Heights without their long waves."""
        heights = torch.from_numpy(self.heights(known, offset).astype(np.float32))[..., None]
        return (heights - known.patch.smooth(heights, BAND_STEPS))[..., 0].numpy()

    def agreement(self, known: KnownHead, found: Dynamic, height: np.ndarray, rows) -> float:
        """Correlation of found and true wrinkles where there are any; what is there in most frames is left out."""
        here = (self.seen & (np.abs(height) > 0.25 * np.abs(height).max()))[known.patch.vertices]
        bands = [self.band(known, offset)[:, here] for offset in (found.offset().astype(np.float32), known.offset)]
        return float(np.corrcoef(*[(band - np.median(band, 0))[rows].ravel() for band in bands])[0, 1])


def found_by(oracle: NumberedOracle, clip: Clip, patch: Patch) -> Dynamic:
    """Every frame's offset, as at the default settings; nothing of it static."""
    count = len(clip.tracking.error)
    return dynamic_offsets(
        clip,
        patch,
        weights=np.full(count, 1 / count),
        share=0.0,
        evidence=lambda field: Estimates(clip, patch, oracle, plain_skin(clip.head)),
        progress=quiet,
    )
