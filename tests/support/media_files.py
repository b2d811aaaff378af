"""Measuring what the tool wrote and found, without its own code."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jaxtyping import UInt16


def read_gray16(path: Path) -> UInt16[np.ndarray, "T H W"]:
    """Frames of a film of 16-bit grey pictures."""
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="gray16le", bits_per_pixel=16)
    width, height = next(reader)["size"]
    return np.stack([np.frombuffer(frame, "<u2").reshape(height, width) for frame in reader])


def eye_distance_px(landmarks: np.ndarray) -> float:
    """Distance between the centres of the eyes among FaceMesh's landmarks."""
    return float(np.linalg.norm(landmarks[[33, 133]].mean(0) - landmarks[[362, 263]].mean(0)))
