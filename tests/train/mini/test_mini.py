"""Training the small painter: examples from the real pipeline, learning, going on, and the gate."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from support.mini_examples import TINY, example
from support.places import ROOT

from expportrait_cli import fit
from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import TrackConfig
from expportrait_cli.dataset import dataset
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.head import HeadModel, load_head
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.mini import MiniNet, MiniShape
from expportrait_cli.tracking import track
from expportrait_cli.train.mini.loop import SIZE, TIMES, Example, Examples, make_examples, train
from expportrait_cli.train.mini.run import judge, passes

pytest.importorskip("diffusers")
DRIVING = ROOT / "examples" / "driving.mp4"


def quiet(done: int, total: int | None) -> None:
    pass


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("examples")
    return [npz.save(example(f"person{k}", k), folder / f"{k}.npz", {}) for k in range(3)]


@pytest.fixture(scope="module")
def learned(paths, tmp_path_factory) -> tuple[MiniNet, list[float], Path]:
    losses: list[float] = []
    state = tmp_path_factory.mktemp("run") / "state.safetensors"
    network = train(
        paths[:2], TINY, state=state, progress=quiet, log=lambda step, row: losses.append(row["loss"]), judge=dict_of
    )
    return network, losses, state


def dict_of(network: MiniNet) -> dict[str, float]:
    return {}


@pytest.mark.slow
def test_it_fills_what_the_proxy_lost_from_the_photo(learned, paths):
    network, losses, _ = learned
    assert losses[-1] < losses[0]
    before, _ = judge(MiniNet(MiniShape()).eval(), paths[2:])
    after, rows = judge(network, paths[2:])
    assert before["guessed_db"] == before["head_db"] == 0
    assert after["guessed_db"] > 0.5 and len(rows) == 1


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_as_if_it_had_not(learned, paths, tmp_path):
    network, _, _ = learned
    state = tmp_path / "state.safetensors"

    class Stopped(Exception):
        pass

    def stop(step: int, row: dict[str, float]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train(paths[:2], TINY, state=state, progress=quiet, log=stop, judge=dict_of)
    again = train(paths[:2], TINY, state=state, progress=quiet, log=lambda *_: None, judge=dict_of)
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batches_depend_on_the_step_alone(paths):
    one, other = Examples(paths, TINY), Examples(paths, TINY)
    for step in (0, 1, 2):
        one.batch(step)
    assert torch.equal(one.batch(9).frames, other.batch(9).frames)
    assert not torch.equal(one.batch(9).truth, one.batch(10).truth)


def test_the_gate_asks_for_everything():
    good = {"head_db": 0.4, "guessed_db": 3.2, "sharp": 0.95, "flicker": 0.98}
    assert passes(good)
    for name, bad in (("head_db", 0.2), ("guessed_db", 2.0), ("sharp", 0.8), ("flicker", 1.1)):
        assert not passes({**good, name: bad})
    assert not passes({})


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> tuple[Clip, HeadModel]:
    """Twenty frames of the demo's driver, prepared."""
    folder, head = tmp_path_factory.mktemp("set"), load_head()
    place = folder / dataset.CLIPS / "driver"
    place.mkdir(parents=True)
    made = dataset.clip_of(folder, "driver", "driver")
    with VideoWriter(made.video, rate=Fraction(25)) as writer:
        for frame in islice(read_frames(DRIVING), 40, 60):
            writer.write(frame)
    npz.save(track(made.video, head, TrackConfig(), quiet), made.tracking, {})
    fit([made.tracking], made.head)
    row = dataset.Row("driver", "driver", "driver.mp4", "", 0, 20, "25", "accepted", "", head.name)
    dataset.write(folder, [row], source=folder, head_model=head.name, settings={}, complete=True)
    return made, head


@pytest.mark.slow
def test_examples_hold_the_real_proxy_films(clip, tmp_path):
    made, head = clip
    (path,) = make_examples([made], head, photos=1, windows=3, folder=tmp_path / "l", progress=quiet)
    found = npz.load(Example, path)
    assert found.person == "driver" and found.proxy.shape == (3, TIMES, SIZE, SIZE, 3)
    error = np.square(found.proxy.astype(float) - found.truth).mean()
    still = np.square(found.photo.astype(float) - found.truth).mean()
    # In place, to the pixel: otherwise the proxy would be no nearer to the truth than the photo is. The rest is mostly
    # the inside of the open mouth, which the photo does not show.
    assert error < 0.75 * still
    since = path.stat().st_mtime_ns
    make_examples([made], head, photos=1, windows=3, folder=tmp_path / "l", progress=quiet)
    assert path.stat().st_mtime_ns == since
    assert len(npz.load(Tracking, made.tracking).error) == 20


@pytest.mark.slow
def test_from_a_set_to_weights_and_their_gate(clip, tmp_path, capsys):
    made, _ = clip
    folder, out = made.video.parents[2], tmp_path / "mini.safetensors"
    line = ["train", "mini", str(folder), "-o", str(out), "--steps", "2", "--photos", "1", "--json"]
    assert app.run(line) == 0
    assert '"passed": false' in capsys.readouterr().out
    assert app.run(["train", "gate", str(out), str(folder)]) == 3
    assert "trained on one of these sets" in capsys.readouterr().err
