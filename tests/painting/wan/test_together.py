"""One film made by two processes: the film of one, the files of the first alone, and a clean end for both."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.places import ROOT, TESTS
from support.wan_film import portrait_folder, swaying

from expportrait_cli.cli import app
from expportrait_cli.config import WanConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.media.video import read_frames
from expportrait_cli.painting.wan import together

pytestmark = pytest.mark.slow
pytest_plugins = ("support.astronaut",)

COUNT = 2


def launched(*words: object, processes: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]),
    }
    return subprocess.Popen(
        [*command, str(TESTS / "support" / "together_run.py"), *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_shares_make_the_film_of_the_whole(tmp_path):
    """Several windows, an odd number of tokens, guidance, layers that come and go, and image tokens."""
    process = launched("films", tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-4000:]
    for name, lead in (("wan-portrait", 1), ("wan-v2v", 0)):
        with np.load(tmp_path / f"{name}.npz") as made:
            away = np.abs(made["alone"].astype(int) - made["shared"])
            assert made["alone"].shape == (33, 44, 76, 3) and made["alone"].std() > 10
            # Sums in another order, which now and then round to the next level.
            assert away.max() <= 1 and (away > 0).mean() < 1e-3
            # The first has the larger half of a window's 5 latent frames of 15 tokens.
            assert made["tokens"].max() == -(-15 * (5 + lead) // 2)
    with np.load(tmp_path / "i2v.npz") as made:
        assert made["tokens"].tolist() == [23] and made["alone"].shape == (1, 16, 3, 6, 10)
        assert np.allclose(made["alone"], made["shared"], atol=1e-5)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="module")
def command(work, fitted, head) -> list[object]:
    return ["generate", *swaying(work, fitted, head, COUNT), "--size", 256, "--audio", "none"]


def test_the_command_makes_one_film(command, work, tmp_path, capsys):
    words = [*command, "--weights-folder", portrait_folder(work), "--steps", 2, "-o"]
    assert app.run([*map(str, words), str(tmp_path / "1.mp4")]) == 0
    capsys.readouterr()
    process = launched(*words, tmp_path / "2.mp4")
    said, err = process.communicate(timeout=120)
    assert process.returncode == 0 and said == f"{tmp_path / '2.mp4'}\n", err[-4000:]
    assert err.count("wan-portrait, this machine") == 1
    one, two = (np.stack(list(read_frames(tmp_path / f"{processes}.mp4"))) for processes in (1, 2))
    assert one.shape == (COUNT, 256, 256, 3) and np.abs(one.astype(int) - two).max() <= 3


def test_a_signal_ends_both(command, work, tmp_path):
    out = tmp_path / "out.mp4"
    process = launched(*command, "-o", out, "--weights-folder", portrait_folder(work / "again"), "--steps", 200)
    assert process.stderr is not None
    lines = []
    while "for each of 1 windows" not in "".join(lines):
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    process.send_signal(signal.SIGTERM)
    # Well before the launcher would kill them, after half a minute.
    _, err = process.communicate(timeout=20)
    assert "expportrait_cli" not in err and not out.exists()


@pytest.mark.parametrize(
    "name, processes, options, said",
    [
        ("proxy", 2, {}, "2 processes were launched, and proxy paints with one. Launch one, or take `backend`"),
        ("wan-portrait", 3, {}, "3 processes cannot share the transformer's 2 heads evenly. Launch 1, 2 of them"),
        ("wan-portrait", 2, {"cache": 0.05}, "`cache` lets each process decide on its own"),
        ("wan-portrait", 2, {"attention": "xformers"}, "`attention=xformers` cannot be shared by processes; _"),
    ],
)
def test_what_does_not_fit_is_named(name, processes, options, said, tmp_path, monkeypatch):
    folder = portrait_folder(tmp_path) if name == "wan-portrait" else None
    monkeypatch.setattr(together, "count", lambda: processes)
    with pytest.raises(UsageError) as caught:
        together.check(name, folder, WanConfig(**options))
    assert str(caught.value).startswith(said)
