import logging
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

# Test processes that share cores wait for each other's threads, minutes instead of seconds. Torch reads this when it is
# first imported, which is later; xdist's workers inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("EXPPORTRAIT_THREADS", "1")

MakeClip = Callable[..., Path]


@pytest.fixture(autouse=True)
def _open_log():
    """Let `caplog` hear the package in every test: a command line that was run in one keeps the log to itself."""
    yield
    log = logging.getLogger("expportrait_cli")
    log.propagate, log.handlers = True, []
    log.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def media() -> Path:
    """Folder of photos and clips of real people, which are not part of the repository."""
    default = Path(__file__).parents[2] / "shared" / "media" / "dev"
    folder = Path(os.environ.get("EXPPORTRAIT_MEDIA", default))
    if not folder.is_dir():
        pytest.skip("needs photos and clips: set EXPPORTRAIT_MEDIA to their folder")
    return folder


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> MakeClip:
    """Make a clip of ffmpeg's test picture with the given output options; `audio` adds a 440 Hz tone."""
    folder = tmp_path_factory.mktemp("clips")

    def make(
        name: str, *options: str, size: str = "128x96", rate: str = "25", seconds: float = 2.0, audio: bool = False
    ) -> Path:
        path = folder / name
        source = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds},format=rgb24"]
        if audio:
            source += ["-f", "lavfi", "-i", f"sine=frequency=440:sample_rate=48000:duration={seconds}"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *source, *options]
        subprocess.run([*command, f"file:{path}"], check=True)
        return path

    return make


@pytest.fixture(scope="session")
def picture() -> np.ndarray:
    """Smooth colours without symmetry: a wrong turn, mirror, scale or channel order shows."""
    x, y = np.meshgrid(np.linspace(0, 1, 160), np.linspace(0, 1, 120))
    rgb = np.stack([255 * x, 255 * y, 255 * (1 - x) * (0.5 + 0.5 * np.sin(5 * y))], -1)
    return np.rint(rgb).astype(np.uint8)
