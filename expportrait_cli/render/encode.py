"""Normal maps as 8-bit RGB: camera space, x right, y up, z to the viewer.

The one place that knows the convention. Every generator's manifest names it, because a model that was trained
with another one fails without a word.
"""

import numpy as np
from jaxtyping import Float, UInt8

CONVENTION = "camera space; x right, y up, z to the viewer; rgb = round(127.5 n + 127.5); background 128,128,128"
BACKGROUND = (128, 128, 128)


def encode(normals: Float[np.ndarray, "*B H W 3"]) -> UInt8[np.ndarray, "*B H W 3"]:
    """Turn unit normals, and zero for background, into RGB. A normal to the viewer is (128, 128, 255)."""
    return np.clip(np.rint(normals * 127.5 + 127.5), 0, 255).astype(np.uint8)


def decode(rgb: UInt8[np.ndarray, "*B H W 3"]) -> Float[np.ndarray, "*B H W 3"]:
    """Turn RGB back into normals, each component to 1/127. Background is exactly zero; nothing is normalised."""
    normals = (rgb.astype(np.float32) - 127.5) / 127.5
    return np.where((rgb == 128).all(-1, keepdims=True), np.float32(0), normals)
