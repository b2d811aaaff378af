"""Make the demo film: the astronaut photo that scikit-image ships performs the driving clip beside this file.

python examples/demo.py OUT.mp4
"""

import sys
from pathlib import Path

import skimage.data
from PIL import Image

from expportrait_cli.cli.app import run

DRIVING = Path(__file__).with_name("driving.mp4")


def main() -> int:
    """Save the photo beside the film, make the film, print its path."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".mp4"):
        sys.exit("usage: python examples/demo.py OUT.mp4")
    out = Path(sys.argv[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    photo = out.with_name("astronaut.png")
    # NASA's portrait of Eileen Collins, public domain.
    Image.fromarray(skimage.data.astronaut()).save(photo)
    return run(["generate", str(photo), str(DRIVING), "--grid", "-o", str(out)])


if __name__ == "__main__":
    sys.exit(main())
