"""Make the pictures of the documentation: from the demo's film, and from films of three people by the demo's clip.

python examples/make_pictures.py out/demo.grid.mp4      # after `make demo`
"""

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from make_driving import Colours, draw, performance, performer
from PIL import Image

from expportrait_cli import generate
from expportrait_cli.config import FitConfig
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import write_png

FRAMES, WIDTH = (16, 50, 62), 1200
"""Frames that are shown, one below the other, and the width of the picture, px."""
DRIVING = Path(__file__).with_name("driving.mp4")
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
TILE, STEP = 240, 2
"""Width, px, of a film in `films.webp`, and step between the frames that are taken."""
FACE = np.s_[25:425, 56:456]
"""Part of the films that is shown."""
PAINTED = (
    (12, Colours((0.42, 0.26, 0.19), (0.36, 0.15, 0.15), (0.05, 0.04, 0.03), (0.05, 0.04, 0.04), (0.55, 0.42, 0.14))),
    (21, Colours((0.86, 0.66, 0.57), (0.74, 0.38, 0.37), (0.42, 0.27, 0.15), (0.48, 0.31, 0.17), (0.40, 0.16, 0.22))),
)
"""Seeds and colours of two painted people."""


def overview(grid: str) -> Path:
    """Photo, driver, normal maps and film in some frames of the demo's grid."""
    rows = [frame for index, frame in enumerate(read_frames(grid)) if index in FRAMES]
    sheet = np.concatenate(rows)
    size = (WIDTH, round(sheet.shape[0] * WIDTH / sheet.shape[1]))
    path = PICTURES / "overview.jpg"
    Image.fromarray(cv2.resize(sheet, size, interpolation=cv2.INTER_AREA)).save(path, quality=88)
    return path


def films() -> Path:
    """The demo's clip, and the films of three people that it drives, side by side, as an animation."""
    with tempfile.TemporaryDirectory() as folder:
        people = [skimage.data.astronaut()]
        for seed, colours in PAINTED:
            person = performer(seed, 1.0, colours)
            people.append(draw(person, performance(person)[0]))
        shown = [DRIVING]
        for index, picture in enumerate(people):
            photo, film = Path(folder) / f"{index}.png", Path(folder) / f"{index}.mp4"
            write_png(photo, picture)
            shown.append(generate(photo, DRIVING, film, fit=FitConfig(same_person="no")).path)
        rows = zip(*(read_frames(path) for path in shown), strict=True)
        sheets = [
            np.hstack([cv2.resize(each[FACE], (TILE, TILE), interpolation=cv2.INTER_AREA) for each in row])
            for row in rows
        ]
    first, *others = (Image.fromarray(sheet) for sheet in sheets[::STEP])
    path = PICTURES / "films.webp"
    first.save(path, save_all=True, append_images=others, duration=40 * STEP, loop=0, quality=70, method=6)
    return path


if __name__ == "__main__":
    print(overview(sys.argv[1]), films(), sep="\n")
