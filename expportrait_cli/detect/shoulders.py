"""Shoulder joints, for the torso that the head sits on."""

import numpy as np
from jaxtyping import Float32, UInt8

from expportrait_cli.detect.nets import PoseNet

LEFT, RIGHT = 11, 12
MIN_VISIBILITY = 0.5


class Shoulders:
    """BlazePose on a portrait crop. 15 to 20 ms."""

    def __init__(self, *, video: bool = False) -> None:
        self._net = PoseNet(video=video)

    def shoulders(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "2 2"] | None:
        """The person's left and right shoulder, px, also a little outside the image; None unless both are seen."""
        body = self._net(image)
        if body is None or body[[LEFT, RIGHT], 2].min() < MIN_VISIBILITY:
            return None
        left, right = body[[LEFT, RIGHT], :2]
        # Seen from the front the person's left is on the right; a swap is a false find.
        return np.stack([left, right]) if left[0] > right[0] else None
