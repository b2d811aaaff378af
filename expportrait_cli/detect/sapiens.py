"""Sapiens (Khirodkar et al., ECCV 2024): normals and 308 keypoints, from the TorchScript files that Meta publishes.

Normals also from a state dict that the user made into a .safetensors file: everything around the network is the same.
CC-BY-NC-4.0: not for commercial use.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, UInt8
from torch import Tensor

from expportrait_cli.detect.estimate import Estimate, assemble, resized
from expportrait_cli.detect.sapiens_net import load_normals
from expportrait_cli.detect.torchscript import load_program
from expportrait_cli.errors import WeightsError

HEIGHT, WIDTH = 1024, 768
BAND = (HEIGHT - WIDTH) // 2
"""Rows above and below a square crop."""
MEAN, STD = (123.5, 116.5, 103.5), (58.5, 57.0, 57.5)
"""Of RGB in 0..255; facebookresearch/sapiens, lite/demo/vis_normal.py."""
AXES = np.eye(3, dtype=np.float32)
"""x right, y up, z to the viewer, as ours. Nowhere documented: others measured that flipping y and z leads to OpenCV's
axes, with a mean cosine of 0.8 to a fitted body and 0.06 ahead of the next best."""
KEYPOINTS = 308
BLUR = 11
"""Window of the blur before a heatmap's peak is refined, px; lite/demo/pose_utils.py."""
HOW = "Take the file that ends in _torchscript.pt2: `expportrait weights list`."


class Sapiens:
    """Sapiens' normals. It has neither depth nor matte: its vectors mean nothing off the person."""

    name = "sapiens"
    licence = "CC-BY-NC-4.0"

    def __init__(self, path: Path) -> None:
        self._net = _Net(path)

    def raw(self, crop: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S 3"]:
        """The net's own vectors, in its own axes and of any length."""
        vectors = self._net(crop, "normals [1, 3, H, W]", 3)
        whole = cv2.resize(vectors.permute(1, 2, 0).numpy(), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        return resized(np.ascontiguousarray(whole[BAND : BAND + WIDTH]), crop.shape[0])

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate an RGB crop."""
        return assemble(self.raw(crop), AXES)


class SapiensKeypoints:
    """Sapiens' 308 keypoints, 274 of them in the face."""

    licence = "CC-BY-NC-4.0"

    def __init__(self, path: Path) -> None:
        self._net = _Net(path)

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "308 3"]:
        """Find x, y in px of the crop, pixel centres at +0.5, and a score of about 0..1. A point may lie outside."""
        heatmaps = self._net(crop, f"heatmaps [1, {KEYPOINTS}, H, W]", KEYPOINTS).numpy()
        points = peaks(heatmaps)
        # The outermost pixels of a heatmap lie on those of the picture (Huang et al. 2020, "unbiased" coordinates).
        step = np.array([WIDTH - 1, HEIGHT - 1]) / (np.array(heatmaps.shape[:0:-1]) - 1)
        framed_px = points[:, :2] * step + 0.5
        crop_px = (framed_px - [0, BAND]) * (crop.shape[0] / WIDTH)
        return np.concatenate([crop_px, points[:, 2:]], 1).astype(np.float32)


class _Net:
    """A TorchScript file or a state dict, on CUDA where there is one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        is_state = path.suffix == ".safetensors"
        if is_state:
            self._module = load_normals(path).to(self._device)
        else:
            self._module = load_program(path, self._device, advice=HOW)

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"], expected: str, channels: int) -> Float32[Tensor, "C H W"]:
        """Run on a crop that is put into the middle of a frame of the shape that the net was trained on."""
        with torch.inference_mode():
            answer = self._module(frame(crop).to(self._device))
        if not isinstance(answer, Tensor) or answer.ndim != 4 or answer.shape[:2] != (1, channels):
            given = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise WeightsError(f"{self._path} gives {given}, expected {expected}. Run `expportrait weights list`.")
        return answer[0].float().cpu()


def frame(crop: UInt8[np.ndarray, "S S 3"]) -> Float32[Tensor, "1 3 1024 768"]:
    """Fit a crop into the width of the net's input and go on with its border above and below: no stretching."""
    square = resized(crop.astype(np.float32), WIDTH)
    picture = cv2.copyMakeBorder(square, BAND, BAND, 0, 0, cv2.BORDER_REPLICATE)
    normalised = (picture - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)[None]))


def peaks(heatmaps: Float[np.ndarray, "K H W"]) -> Float64[np.ndarray, "K 3"]:
    """Find each map's peak to a fraction of a pixel: column and row (centres at whole numbers), and its height.

    One Newton step on the logarithm of the blurred map (Zhang et al. 2020, Eq. 8), at most a pixel; none where the
    map has no maximum.
    """
    count, height, width = heatmaps.shape
    row, column = np.divmod(heatmaps.reshape(count, -1).argmax(1), width)
    score = heatmaps[np.arange(count), row, column]
    blurred = cv2.GaussianBlur(
        np.ascontiguousarray(heatmaps.transpose(1, 2, 0)), (BLUR, BLUR), 0, borderType=cv2.BORDER_CONSTANT
    ).reshape(height, width, count)
    logs = np.log(np.maximum(np.pad(blurred, ((1, 1), (1, 1), (0, 0)), mode="edge"), 1e-6)).astype(np.float64)
    around = np.arange(3)
    near = logs[row[:, None, None] + around[:, None], column[:, None, None] + around, np.arange(count)[:, None, None]]
    slope = np.stack([near[:, 1, 2] - near[:, 1, 0], near[:, 2, 1] - near[:, 0, 1]], -1) / 2
    across = near[:, 1, 2] - 2 * near[:, 1, 1] + near[:, 1, 0]
    down = near[:, 2, 1] - 2 * near[:, 1, 1] + near[:, 0, 1]
    mixed = (near[:, 2, 2] - near[:, 2, 0] - near[:, 0, 2] + near[:, 0, 0]) / 4
    determinant = across * down - mixed**2
    maximum = (across < 0) & (determinant > 1e-12)
    safe = np.where(maximum, determinant, 1)
    shift = np.stack([mixed * slope[:, 1] - down * slope[:, 0], mixed * slope[:, 0] - across * slope[:, 1]], -1)
    shift = np.where(maximum[:, None], np.clip(shift / safe[:, None], -1, 1), 0)
    return np.concatenate([np.stack([column, row], -1) + shift, score[:, None]], 1)
