"""Fréchet video distance: features of windows by I3D, and the distance between two sets of features."""

from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from torch import Tensor

from expportrait_cli.detect.sapiens import load_program
from expportrait_cli.errors import WeightsError
from expportrait_cli.evaluation.columns import CLASSES, WINDOW
from expportrait_cli.evaluation.onnx_net import find
from expportrait_cli.runtime import best_device


def frechet_distance(a: Float64[np.ndarray, "N D"], b: Float64[np.ndarray, "M D"]) -> float:
    """Squared Frechet distance |m - n|^2 + tr(A + B - 2 (A B)^(1/2)) of Gaussians with the sets' moments.

    Each set needs two vectors or more; covariances are normalised by N - 1. Exact also for covariances without full
    rank, for which iterative matrix square roots fail: with A = P'P and B = Q'Q the trace of (A B)^(1/2) is the sum of
    the singular values of P Q'. Source: Dowson and Landau, The Frechet Distance between Multivariate Normal
    Distributions, 1982, Eq. 4.
    """
    roots = [_root(x) for x in (a, b)]
    shift = a.mean(0) - b.mean(0)
    spread = sum(float((root**2).sum()) for root in roots)
    shared = float(np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum())
    # For equal sets the difference is 0 up to rounding, and may be negative.
    return max(float(shift @ shift) + spread - 2 * shared, 0.0)


def _root(vectors: Float64[np.ndarray, "N D"]) -> Float64[np.ndarray, "R D"]:
    """A matrix P, with D rows at most, whose P'P is the covariance."""
    centred = (vectors - vectors.mean(0)) / np.sqrt(len(vectors) - 1)
    return np.linalg.qr(centred).R


WEIGHTS = "i3d"
"""Name of the network in the catalogue."""
SIDE = 224
"""Side of its pictures, px."""
HOW = "Take i3d_torchscript.pt as StyleGAN-V uses it: `expportrait weights list`."


class I3d:
    """I3D as a TorchScript program: from clips [N, 3, T, 224, 224] in -1..1 to 400 features each."""

    def __init__(self, path: Path) -> None:
        """Load the program, onto a GPU if there is one.

        Raises:
            WeightsError: the file is no TorchScript, or calls functions that no network needs.
        """
        self._path = path
        self._device = best_device()
        self._program = load_program(path, self._device, advice=HOW)

    @torch.inference_mode()
    def look(self, window: Float32[np.ndarray, "T 224 224 3"]) -> Float32[np.ndarray, "400"]:
        """Compute the features (before the softmax) of pictures in -1..1. 28 GMAC for 16 frames: seconds on a CPU.

        Raises:
            WeightsError: the program has other inputs or outputs.
        """
        clip = torch.from_numpy(np.ascontiguousarray(window.transpose(3, 0, 1, 2)[None])).to(self._device)
        try:
            answer = self._program(clip, rescale=False, resize=False, return_features=True)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise WeightsError(f"{self._path} cannot be used as FVD's network ({said}). {HOW}") from error
        if not isinstance(answer, Tensor) or answer.shape != (1, CLASSES):
            given = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise WeightsError(f"{self._path} gives {given}, expected [1, {CLASSES}]. {HOW}")
        return answer[0].float().cpu().numpy()


class Windows:
    """Features of the windows of two clips, frame by frame; keeps one window of pictures of each, 10 MB."""

    def __init__(self) -> None:
        path = find(WEIGHTS)
        self._net = I3d(path) if path is not None else None
        self._pictures: list[list[np.ndarray]] = [[], []]
        self._answers: list[list[np.ndarray]] = [[], []]

    def add(self, *frames: UInt8[np.ndarray, "_ _ 3"]) -> None:
        """Add the next frame of each clip."""
        if self._net is None:
            return
        for pictures, answers, frame in zip(self._pictures, self._answers, frames, strict=True):
            pictures.append(prepared(frame))
            if len(pictures) == WINDOW:
                answers.append(self._net.look(np.stack(pictures)))
                pictures.clear()

    @property
    def answers(self) -> Float64[np.ndarray, "2 N 400"]:
        """Features of both clips so far; N is 0 without weights."""
        return np.array(self._answers, np.float64).reshape(2, len(self._answers[0]), CLASSES)


def prepared(frame: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "224 224 3"]:
    """The middle square of a frame at the network's size, in -1..1; bilinear without prefiltering, as usual."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frame[top : top + side, left : left + side].astype(np.float32)
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) / 127.5 - 1
