"""Write raster.npz: what the reference rasteriser makes of a small scene, forward and backward.

python tests/golden/make_raster.py
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.raster_scene import gradients, scene


def main() -> None:
    """Draw with the slow reference; float32, zipped."""
    rast, image, by_pos, by_attr = gradients("reference", *scene())
    arrays = {"rast": rast, "image": image, "by_pos": by_pos, "by_attr": by_attr}
    np.savez_compressed(
        Path(__file__).with_name("raster.npz"), **{name: value.numpy() for name, value in arrays.items()}
    )


if __name__ == "__main__":
    main()
