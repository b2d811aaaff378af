"""Training data and training loop of the small painting network, which corrects a proxy film in one step.

Its examples are proxy films that the tool makes of prepared clips, with the clip's own frames as ground truth.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Float32, Int8, UInt8
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.head import HeadModel
from expportrait_cli.media.video import read_pictures
from expportrait_cli.painting.mini import MiniNet, MiniShape, correct
from expportrait_cli.painting.scene import Scene, Sketch
from expportrait_cli.runtime import Progress, best_device, has_bf16
from expportrait_cli.train.config import MiniTraining
from expportrait_cli.train.scenes import own_scene, photo_rows
from expportrait_cli.train.state import follow, load_state, save_state

SIZE = 256
"""Side of the training pictures, px, before they are cropped."""
TIMES = 4
"""Frames of a window."""
STRIDES = (1, 2, 3)
"""Steps between the frames of a window; the windows of a film take them in turn."""
NORMAL = 127.0
"""Component 1 of a normal as an 8-bit integer."""


@dataclass(frozen=True)
class Example:
    """Windows of one proxy film, and the clip's own frames (ground truth)."""

    KIND: ClassVar[str] = "lesson"
    VERSION: ClassVar[int] = 1

    person: str
    photo: UInt8[np.ndarray, "S S 3"]
    still: Int8[np.ndarray, "S S 3"]
    """Normal map N^R of the photo, in steps of 1/127."""
    proxy: UInt8[np.ndarray, "N T S S 3"]
    guess: UInt8[np.ndarray, "N T S S"]
    """Share of each pixel that the proxy had to guess, in steps of 1/255."""
    normals: Int8[np.ndarray, "N T S S 3"]
    truth: UInt8[np.ndarray, "N T S S 3"]


def make_examples(
    clips: Sequence[Clip], head: HeadModel, *, photos: int, windows: int, folder: Path, progress: Progress
) -> list[Path]:
    """Make the examples that `folder` lacks, and return the paths of all.

    Of each clip, up to `photos` frames that differ most are photos of one example each, which has `windows` windows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index, clip in enumerate(clips):
        progress(index, len(clips))
        tracking = replace(npz.load(Tracking, clip.tracking), source=str(clip.video.resolve()))
        for row in photo_rows(tracking, photos):
            path = folder / f"{clip.name}-{row:05d}.npz"
            if not path.is_file():
                npz.save(_example(clip, tracking, int(row), head, windows=windows), path, made_by={})
            paths.append(path)
    progress(len(clips), len(clips))
    return paths


def window_rows(frame_count: int, count: int, seed: int) -> list[np.ndarray]:
    """Frame indices of `count` random windows of a film, in the order of their starts; strides take turns."""
    draw = np.random.default_rng(seed)
    starts = np.sort(draw.integers(0, max(frame_count - max(STRIDES) * (TIMES - 1), 1), count))
    strides = [STRIDES[k % len(STRIDES)] for k in range(count)]
    rows = [start + stride * np.arange(TIMES) for start, stride in zip(starts, strides, strict=True)]
    return [np.minimum(each, frame_count - 1) for each in rows]


def _example(clip: Clip, tracking: Tracking, row: int, head: HeadModel, *, windows: int) -> Example:
    with own_scene(clip, tracking, row, head, size=SIZE) as scene:
        # The network gets normals without static detail (`MiniPainter.detail`).
        scene = replace(scene, detail=False)
        chosen = window_rows(len(tracking.error), windows, seed=row)
        sketches = [[_at(scene, int(frame)) for frame in rows] for rows in chosen]
        still, crop = scene.still, Crop(*map(float, scene.fit.crop))
    needed = np.unique(np.concatenate(chosen))
    pictures = read_pictures(str(clip.video), needed)
    seen = dict(zip(needed.tolist(), (crop_image(picture, crop, SIZE) for picture in pictures), strict=True))
    return Example(
        person=clip.person,
        photo=still.photo,
        still=_steps(still.normals),
        proxy=np.stack([[s.proxy for s in window] for window in sketches]),
        guess=np.stack([[np.rint(255 * s.guess).astype(np.uint8) for s in window] for window in sketches]),
        normals=np.stack([[_steps(s.normals) for s in window] for window in sketches]),
        truth=np.stack([[seen[int(frame)] for frame in rows] for rows in chosen]),
    )


def _at(scene: Scene, frame: int) -> Sketch:
    return next(islice(scene.sketches(frame), 1))


def _steps(normals: Float32[np.ndarray, "S S 3"]) -> Int8[np.ndarray, "S S 3"]:
    return np.rint(NORMAL * normals).astype(np.int8)


HELD = 24
"""Examples in memory at a time; one is replaced every `EXCHANGE` steps."""
EXCHANGE = 8
WARM_UP = 100
GUESS = 0.5
GUESSED, HEAD = 4.0, 1.0
"""Loss weights that are added where the proxy guessed, and on the head, to the 1 that every pixel has."""
EDGES = 1.0
"""Weight of the error in differences of neighbouring pixels; that of the pixels has 1."""

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Batch:
    """Windows as the network takes them (colour, guessed share, normal), and the truth; colours in -1..1."""

    frames: Float[Tensor, "B T 7 H W"]
    still: Float[Tensor, "B 7 H W"]
    truth: Float[Tensor, "B T 3 H W"]

    def to(self, device: torch.device) -> "Batch":
        """Move to another device."""
        return Batch(self.frames.to(device), self.still.to(device), self.truth.to(device))


def window(example: Example, index: int) -> Batch:
    """Return one window of an example, uncropped, as a batch of one."""
    colours = [torch.from_numpy(each.astype(np.float32) / 127.5 - 1) for each in (example.proxy[index], example.photo)]
    guess = torch.from_numpy(example.guess[index].astype(np.float32) / 255)[..., None]
    normals = [torch.from_numpy(each.astype(np.float32) / NORMAL) for each in (example.normals[index], example.still)]
    frames = torch.cat([colours[0], guess, normals[0]], -1).permute(0, 3, 1, 2)[None]
    still = torch.cat([colours[1], torch.zeros_like(guess[0]), normals[1]], -1).permute(2, 0, 1)[None]
    truth = torch.from_numpy(example.truth[index].astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)[None]
    return Batch(frames, still, truth)


class Examples:
    """Batches of random windows. They depend on step and seed alone, so that a run can be resumed at any step."""

    def __init__(self, paths: Sequence[Path], config: MiniTraining) -> None:
        self._paths, self._config = list(paths), config
        self._held: dict[int, Example] = {}

    def batch(self, step: int) -> Batch:
        """Draw the batch of a step: random crops, flips and colour gains, and faults added to some proxies."""
        draw = np.random.default_rng((self._config.seed, step))
        first = step // EXCHANGE
        here = [self._in_order(first + k) for k in range(min(HELD, len(self._paths)))]
        self._held = {k: self._held.get(k) or npz.load(Example, self._paths[k]) for k in dict.fromkeys(here)}
        parts = [self._one(self._held[int(draw.choice(here))], draw) for _ in range(self._config.windows)]
        return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in ("frames", "still", "truth")))

    def _in_order(self, position: int) -> int:
        """Index of the example at a position of an endless sequence; each round is a new permutation."""
        count = len(self._paths)
        order = np.random.default_rng((self._config.seed, 1 << 20, position // count)).permutation(count)
        return int(order[position % count])

    def _one(self, example: Example, draw: np.random.Generator) -> Batch:
        whole = window(example, int(draw.integers(len(example.proxy))))
        side = self._config.side
        top, left = _corner(whole.frames[0, :, 3], side, draw)
        cut = (..., slice(top, top + side), slice(left, left + side))
        frames, still, truth = (each[cut].clone() for each in (whole.frames, whole.still, whole.truth))
        if draw.random() < 0.5:
            frames, still, truth = (each.flip(-1) for each in (frames, still, truth))
            frames[..., 4, :, :] *= -1
            still[..., 4, :, :] *= -1
        gain = torch.from_numpy(draw.uniform(0.85, 1.15, (3, 1, 1)).astype(np.float32))
        for each in (frames[:, :, :3], still[:, :3], truth):
            each.add_(1).mul_(gain).sub_(1).clamp_(-1, 1)
        if draw.random() < self._config.faults:
            _spoil(frames, draw)
        return Batch(frames, still, truth)


def _corner(guess: Float[Tensor, "T H W"], side: int, draw: np.random.Generator) -> tuple[int, int]:
    """Top and left of a random crop; it contains a pixel that the proxy guessed, if there is one."""
    rows, columns = np.nonzero(guess.amax(0).numpy() > GUESS)
    if not len(rows):
        return int(draw.integers(0, SIZE - side + 1)), int(draw.integers(0, SIZE - side + 1))
    at = int(draw.integers(len(rows)))
    down, right = draw.integers(side // 4, 3 * side // 4, 2)
    return int(np.clip(rows[at] - down, 0, SIZE - side)), int(np.clip(columns[at] - right, 0, SIZE - side))


def _spoil(frames: Float[Tensor, "1 T 7 H W"], draw: np.random.Generator) -> None:
    """Imitate a worse fit, in place: shift the proxy by up to two pixels, and blur it in half of the cases."""
    colour = frames[0, :, :3]
    down, right = (int(n) for n in draw.integers(-2, 3, 2))
    colour.copy_(torch.roll(colour, (down, right), (-2, -1)))
    if draw.random() < 0.5:
        colour.copy_(torch.nn.functional.avg_pool2d(colour, 3, stride=1, padding=1, count_include_pad=False))


def loss_of(network: MiniNet, batch: Batch) -> Float[Tensor, ""]:
    """Mean absolute error of pixels and of their differences; weights are higher where guessed and on the head."""
    error = batch.frames[:, :, :3] + correct(network, batch.frames, batch.still) - batch.truth
    unsure = torch.nn.functional.max_pool2d(batch.frames[:, :, 3:4].flatten(0, 1), 5, stride=1, padding=2)
    on_head = (batch.frames[:, :, 4:].square().sum(2, keepdim=True) > 0.25).float()
    weight = 1 + GUESSED * unsure.unflatten(0, error.shape[:2]) + HEAD * on_head
    edges = error.diff(dim=-1)[..., :-1, :].abs() + error.diff(dim=-2)[..., :-1].abs()
    return (weight * error.abs()).mean() + EDGES * (weight[..., :-1, :-1] * edges).mean()


def train(
    paths: Sequence[Path], config: MiniTraining, *, state: Path, progress: Progress, log: Log, judge: Callable
) -> MiniNet:
    """Train on examples, or resume from `state`; returns the network with its averaged weights.

    Every `report_every` steps, `log` gets the step and figures, with those that `judge` measures on held-out people.
    """
    torch.manual_seed(config.seed)
    device = best_device()
    network = MiniNet(MiniShape()).to(device)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(config.seed)
    first = load_state(state, network, average, optimizer, generator)
    source, running = Examples(paths, config), 0.0
    for step in range(first, config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.rate * _share(step, config.steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.half and has_bf16(device)):
            loss = loss_of(network, source.batch(step).to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        share = min(config.average, (1 + step) / (10 + step))
        follow(average.parameters(), network.parameters(), share)
        running = loss.item() if step == first else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % config.report_every == 0 or step + 1 == config.steps:
            save_state(state, step + 1, network, average, optimizer, generator)
            log(step + 1, {"loss": running, **judge(average)})
        progress(step + 1, config.steps)
    return average.eval().cpu()


def _share(step: int, steps: int) -> float:
    """Learning rate of a step, as a share of the peak: a linear warm-up times a half cosine from 1 to 0.05."""
    warm = min(1.0, (step + 1) / WARM_UP)
    return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
