"""The only door to flip-evaluator: how different two pictures look when one flips between them."""

from importlib.util import find_spec
from typing import Any

import numpy as np
from jaxtyping import Float32

Picture = Float32[np.ndarray, "H W 3"]


def missing_package() -> str | None:
    """Name what has to be installed before FLIP can be measured."""
    if find_spec("flip_evaluator") is not None:
        return None
    return "flip-evaluator is not installed: pip install 'expportrait-cli[eval]'"


def error_map(picture: Picture, target: Picture) -> Float32[np.ndarray, "H W"]:
    """LDR-FLIP of sRGB pictures in 0..1: 0 where none sees a difference, 1 at most (`flip` is its mean).

    At the package's own viewing distance of 67 pixels per degree. 0.1 to 0.3 s for 512x512; needs `missing_package()`
    to be None. Source: Andersson et al., FLIP: A Difference Evaluator for Alternating Images, 2020.
    """
    import flip_evaluator

    # An extension without types.
    library: Any = flip_evaluator
    errors, _, _ = library.evaluate(target, picture, "LDR", applyMagma=False, computeMeanError=False)
    return np.asarray(errors, np.float32)[:, :, 0]
