"""Make the pictures of the documentation from the demo's film: photo, driver, normal maps and film, side by side.

python examples/make_pictures.py out/demo.grid.mp4      # after `make demo`
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from expportrait_cli.media.video import read_frames

FRAMES, WIDTH = (16, 50, 62), 1200
"""Frames that are shown, one below the other, and the width of the picture, px."""
OUT = Path(__file__).parents[1] / "docs" / "pictures" / "overview.jpg"


def main(grid: str) -> Path:
    """Write `docs/pictures/overview.jpg`; return its path."""
    rows = [frame for index, frame in enumerate(read_frames(grid)) if index in FRAMES]
    sheet = np.concatenate(rows)
    size = (WIDTH, round(sheet.shape[0] * WIDTH / sheet.shape[1]))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)).save(OUT, quality=88)
    return OUT


if __name__ == "__main__":
    print(main(sys.argv[1]))
