"""What happens at the machine's limits: a full disk, a place that cannot be written to, a long clip, a busy picture."""

import os
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import get_type_hints

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import TrackConfig
from expportrait_cli.detect.faces import FaceBox
from expportrait_cli.errors import InputError
from expportrait_cli.head import landmark_model, load_head
from expportrait_cli.media.video import frame_count
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.provenance import DOUBTFUL, warn_of_misfit
from expportrait_cli.tracking import observe

FACE = skimage.data.astronaut()[:300, 74:374]


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(FACE).save(path)
    return path


def swaying(path: Path, count: int) -> Path:
    with VideoWriter(path, rate=Fraction(25)) as writer:
        for index in range(count):
            turn = cv2.getRotationMatrix2D((150, 130), 5 * np.sin(index / 5), 1)
            writer.write(cv2.warpAffine(FACE, turn, (300, 300), borderMode=cv2.BORDER_REPLICATE))
    return path


def box(x: float, side: float) -> FaceBox:
    return FaceBox(float(x), 100.0, float(x + side), float(100 + side), 0.9, np.zeros((6, 2), np.float32))


def mesh_of(face: FaceBox) -> np.ndarray:
    low, high = np.array([face.x0, face.y0]), np.array([face.x1, face.y1])
    grow = (observe.BOX_TO_MESH - 1) / 2 * (high - low)
    return np.linspace(low - grow, high + grow, 478).astype(np.float32)


def test_the_second_person_may_come_later():
    choice = observe._Choice("1")
    assert choice.face([box(20, 80)], (600, 400)) is None
    assert choice.refusal is not None
    late = [box(20, 80), box(300, 60)]
    assert choice.face(late, (600, 400)) is late[1]


def test_after_a_cut_the_face_most_like_the_one_before_is_taken():
    choice = observe._Choice("left")
    first = [box(20, 80), box(400, 80)]
    assert choice.face(first, (600, 400)) is first[0]
    choice.keep(mesh_of(first[0]))
    after = [box(10, 20), box(60, 90), box(400, 80)]
    assert choice.face(after, (600, 400)) is after[1]


def test_small_faces_are_no_rivals():
    choice = observe._Choice("largest")
    choice.face([box(0, 30), box(100, 100), box(300, 40)], (600, 400))
    assert choice.rivals == 1
    choice.face([box(0, 60), box(100, 100)], (600, 400))
    assert choice.rivals == 2


def test_the_file_is_named_when_the_chosen_face_is_not_in_it(photo):
    drawn = []

    def show(image, faces):
        drawn.append((image.shape, len(faces)))
        return photo.with_suffix(".faces.png")

    with pytest.raises(
        InputError, match=r"photo\.png: Face 3 was asked for.*0 at \(\d+, \d+\); .*photo\.faces\.png shows"
    ):
        observe.observe(photo, landmark_model(load_head()), TrackConfig(face="3"), lambda done, total: None, show)
    assert len(drawn) == 1 and drawn[0][1] == 1


def tracking_of(error: float) -> Tracking:
    """A tracking of two frames with this mean error."""
    shapes = {"L": 478, "K": 3, "E": 4, "T": 2}
    values = {}
    for name, hint in get_type_hints(Tracking).items():
        if hint in (str, float):
            values[name] = hint()
        elif hasattr(hint, "dtypes"):
            shape = [shapes[word] if word.isalpha() else int(word) for word in hint.dim_str.split()]
            values[name] = np.zeros(shape, hint.dtypes[0])
    return Tracking(**{**values, "error": np.array([error - 1, error + 1], np.float32)})


@pytest.mark.parametrize(("error", "is_said"), [(DOUBTFUL - 0.5, False), (DOUBTFUL + 0.5, True)])
def test_a_bad_fit_is_said_in_one_line(error, is_said, caplog):
    warn_of_misfit(Path("cat.png"), tracking_of(error))
    assert (caplog.text.count("cat.png: the head fits the face badly") == 1) == is_said


@pytest.mark.parametrize("place", ["/proc/film.mp4", "{photo}/film.mp4"])
def test_a_place_that_cannot_be_written_to_is_said_at_once(place, photo, capsys):
    assert app.run(["generate", str(photo), str(photo), "-o", place.format(photo=photo)]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "Name another folder" in err


@pytest.mark.slow
def test_a_full_disk_leaves_no_partial_file(photo, tmp_path, capsys):
    """A limit on the size of files stands in for the disk: it strikes another stage each time."""
    clip, path = swaying(tmp_path / "clip.mp4", 10), tmp_path / "out" / "film.mp4"
    line = ["-q", "generate", str(photo), str(clip), "-o", str(path)]
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for kilobytes, whole in ((2, 0), (300, 2), (900, 4)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, most))
        try:
            code = app.run(line)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
        out, err = capsys.readouterr()
        # The clip shows the photo's own person, which is said before.
        *said, error = err.splitlines()
        assert code == 3 and out == "" and "could not be written" in error and len(said) <= 1, err
        assert not list(tmp_path.rglob("*.partial")) and not path.exists()
        assert len(list(tmp_path.rglob("*.npz"))) == whole
    # What was whole is used again.
    assert app.run(line[1:]) == 0
    out, err = capsys.readouterr()
    assert out == f"{path}\n" and "paint the film" in err and "fit the head" not in err


# The kernel's `ru_maxrss` would count the process of the tests too, which this one is started from.
MEASURED = """
import re, sys
from pathlib import Path
from expportrait_cli.cli.app import run
code = run(sys.argv[1:])
print(int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.skipif("EXPPORTRAIT_LONG" not in os.environ, reason="two minutes: set EXPPORTRAIT_LONG=1")
def test_a_long_film_needs_no_more_memory_than_a_short_one(photo, tmp_path):
    head, peak_mb = tmp_path / "a.head.npz", {}
    assert app.run(["-q", "track", str(photo), "-o", str(tmp_path / "a.track.npz")]) == 0
    assert app.run(["-q", "fit", str(tmp_path / "a.track.npz"), "-o", str(head)]) == 0
    for count in (60, 360):
        clip, path = swaying(tmp_path / f"{count}.mp4", count), tmp_path / f"film{count}.mp4"
        line = ["-q", "generate", str(head), str(clip), "-o", str(path), "--size", "256"]
        done = subprocess.run([sys.executable, "-c", MEASURED, *line], capture_output=True, text=True, check=True)
        peak_mb[count] = int(done.stdout.splitlines()[-1])
        assert frame_count(path) == count
    # One picture of the clip a frame would be 77 MB more; landmarks and parameters are some 4 MB.
    assert peak_mb[360] < peak_mb[60] + 50, peak_mb
    assert peak_mb[360] < 2048, peak_mb
