"""Films painted a segment after the other: whole, gone on with, and what is kept for that."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tiny_wan import tiny_prompts, tiny_vace
from support.wan_film import sketches_of, still, swaying, vace_folder, vae

from expportrait_cli.cli import app
from expportrait_cli.painting.scene import Sketch
from expportrait_cli.painting.wan.chain import REACH, Link, paint_chain
from expportrait_cli.painting.wan.film import Sampling, sigmas_of
from expportrait_cli.painting.wan.vace import VaceModel
from expportrait_cli.pipeline import film

pytestmark = pytest.mark.slow
pytest_plugins = ("support.astronaut",)

SAMPLING = Sampling(sigmas_of(1, shift=3.0), length=4, overlap=2)
"""Segments of 13 frames."""


class Film:
    """A film that notes which of its frames were drawn."""

    def __init__(self, count: int, given: int, keep: Path | None = None) -> None:
        self.count, self.given, self.keep = count, given, keep
        self.drawn: list[int] = []

    def sketches(self, start: int) -> Iterator[Sketch]:
        for index, frame in enumerate(sketches_of(self.count, height=16, width=16)(start), start):
            self.drawn.append(index)
            yield frame

    @torch.inference_mode()
    def frames(self, start: int, end: int | None = None) -> list[np.ndarray]:
        model = VaceModel(tiny_vace(), vae(), tiny_prompts(), still(16, 16), keep=False)
        painted = paint_chain(
            model,
            vae(),
            self.sketches,
            SAMPLING,
            given=self.given,
            start=start,
            count=self.count,
            keep=self.keep,
        )
        return list(islice(painted, None if end is None else end - start))


@pytest.mark.parametrize("given", [1, 5])
@pytest.mark.parametrize("count", [3, 13, 14, 40])
def test_a_chain_has_every_frame_and_can_be_gone_on_with(given, count):
    whole = Film(count, given).frames(0)
    assert len(whole) == count
    assert np.array_equal(np.stack(Film(count, given).frames(count // 2)), np.stack(whole[count // 2 :]))


@pytest.mark.parametrize("given", [1, 5])
@pytest.mark.parametrize("stop", [2, 13, 30, 39])
def test_a_stopped_film_goes_on_with_the_segment_that_it_was_in(given, stop, tmp_path):
    whole = Film(40, given).frames(0)
    assert np.array_equal(np.stack(Film(40, given, tmp_path).frames(0, stop)), np.stack(whole[:stop]))
    later = Film(40, given, tmp_path)
    assert np.array_equal(np.stack(later.frames(stop)), np.stack(whole[stop:]))
    # Segments end at frame 13 and every 13 less the given ones after it.
    ends = [0, *range(13, 41, 13 - given)]
    begun = max(end for end in ends if end <= stop)
    assert min(later.drawn) == max(0, begun - given) and later.drawn[-1] == 39
    # Once more from the same place: what was kept since does not lead astray.
    assert np.array_equal(np.stack(Film(40, given, tmp_path).frames(stop)), np.stack(whole[stop:]))


def test_what_is_kept_is_what_may_be_asked_for(tmp_path):
    for end in range(80, 2000, 80):
        Link(end - 1, [np.full((2, 2, 3), end % 256, np.uint8)]).save(tmp_path)
    kept = [int(path.stem) for path in sorted(tmp_path.iterdir())]
    assert kept == [1600, 1680, 1760, 1840, 1920] == list(range(1920 - REACH, 2000, 80))
    link = Link.before(1850, tmp_path)
    assert (link.begin, link.end) == (1839, 1840) and (link.painted[0] == 1840 % 256).all()
    assert Link.before(100, tmp_path).end == Link.before(100, None).end == 0


def test_the_command_keeps_it_beside_the_film(fitted, head, tmp_path, monkeypatch, capsys):
    """The film is stopped when all of its frames are there; then it is finished, and nothing is left."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "film.mp4"
    words = ["generate", *swaying(tmp_path, fitted, head, 2), "-o", out, "--size", 256, "--audio", "none"]
    words += ["--weights-folder", vace_folder(tmp_path), "--steps", 1, "--chain", 1]
    with monkeypatch.context() as patch:
        patch.setattr(film, "join", interrupted)
        assert app.run([str(word) for word in words]) == 130
    (kept,) = tmp_path.glob("film.work/*/kept/*.npz")
    assert kept.stem == "00000002" and Link.before(2, kept.parent).painted[0].shape == (256, 256, 3)
    assert app.run([str(word) for word in words]) == 0
    assert out.is_file() and not kept.exists()
