"""Interrupt every command at random moments, and see that nothing is lost: `python tests/fuzz/interrupt.py -n 200`.

Each trial runs a command in a fresh folder, sends it a signal (once, sometimes twice), and runs it again to its end.
Afterwards no result may be half written, no foreign file touched, and the results must be those of a run that nobody
interrupted, to the byte. A table is printed; the exit code is 1 if any trial failed.
"""

import argparse
import importlib
import json
import os
import pkgutil
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import skimage.data
from PIL import Image

import expportrait_cli
from expportrait_cli.cli import app
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.runtime import settle_threads

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "SIGKILL": signal.SIGKILL}
FOREIGN = ("notes.txt", ".mine.partial", "film.work/mine.npz", ".film.mp4.partial", "segments-mine/a.mp4")
"""Files of somebody else that lie where results go."""
LIMIT_S = 1200.0
COLD = 0.15
"""Share of the interrupted runs that start Python anew, which takes most of their time."""


@dataclass(frozen=True)
class Command:
    """One command, with paths relative to the trial's folder, whose inputs are in `../inputs`."""

    name: str
    words: tuple[str, ...]
    results: tuple[str, ...]
    """Files that it leaves, and that do not depend on the time."""


COMMANDS = (
    Command("track", ("track", "../inputs/clip.mp4", "-o", "a.track.npz"), ("a.track.npz",)),
    Command("fit", ("fit", "../inputs/photo.track.npz", "-o", "a.head.npz"), ("a.head.npz",)),
    Command(
        "transfer",
        ("transfer", "../inputs/a.head.npz", "../inputs/clip.track.npz", "-o", "a.meshes.npz", "--curves", "c.csv"),
        ("a.meshes.npz", "c.csv"),
    ),
    Command(
        "render-normals",
        ("render-normals", "../inputs/a.meshes.npz", "-o", "a.normals.mkv", "--size", "256", "--depth", "--mask"),
        ("a.normals.mkv", "a.depth.mkv", "a.mask.mkv", "a.normals.json"),
    ),
    Command(
        "generate",
        (
            *("generate", "../inputs/photo.png", "../inputs/clip.mp4", "-o", "film.mp4", "--size", "256"),
            *("--grid", "--curves", "c.csv"),
        ),
        ("film.mp4", "film.grid.mp4", "film.json", "c.csv", "film.work/driving.meshes.npz"),
    ),
    Command(
        "generate from a head",
        ("generate", "../inputs/a.head.npz", "../inputs/clip.track.npz", "-o", "film.mp4", "--size", "256", "--grid"),
        ("film.mp4", "film.grid.mp4", "film.json", "film.work/driving.meshes.npz"),
    ),
    Command(
        "batch",
        ("batch", "../inputs/jobs.csv", "-o", "."),
        ("a--clip.mp4", "a--clip.json", "a--a.mp4", "a--a.json"),
    ),
    Command(
        "eval",
        ("eval", "../inputs/clip.mp4", "--target", "../inputs/clip.mp4", "-o", "a.scores.json"),
        ("a.scores.json",),
    ),
    Command(
        "train transfer",
        ("train", "transfer", "-o", "net.safetensors", "--synthetic", "4", "--steps", "12"),
        ("net.safetensors",),
    ),
)


def load() -> None:
    """Load what the commands need, so that what is forked from this process begins at once."""
    settle_threads()
    # A pool of threads does not live on in what is forked.
    cv2.setNumThreads(1)
    for module in pkgutil.walk_packages(expportrait_cli.__path__, "expportrait_cli."):
        if not {"wan", "generator", "mini"} & set(module.name.split(".")) and not module.name.endswith("__main__"):
            # Some wrap a library that need not be there.
            with suppress(ModuleNotFoundError):
                importlib.import_module(module.name)
    importlib.import_module("mediapipe")


class Run:
    """The tool in a folder, in a session of its own, as a terminal would start it."""

    def __init__(self, words: tuple[str, ...], folder: Path, *, is_cold: bool = False) -> None:
        """Fork; one that is cold starts Python anew, and can be interrupted while that loads the tool."""
        self._since, self._stderr = time.monotonic(), folder.parent / f"{folder.name}.stderr"
        self._stderr.write_text("")
        self.pid = os.fork()
        if not self.pid:
            self._become(words, folder, is_cold)

    def _become(self, words: tuple[str, ...], folder: Path, is_cold: bool) -> NoReturn:
        code = 1
        try:
            os.setsid()
            os.chdir(folder)
            nothing = os.open(os.devnull, os.O_RDWR)
            said = os.open(self._stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for number, stream in ((nothing, 0), (nothing, 1), (said, 2)):
                os.dup2(number, stream)
            # A job in the background of a script ignores Ctrl-C, and so would what it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if is_cold:
                start = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
                start += "; from expportrait_cli.cli.app import main; main()"
                os.execv(sys.executable, [sys.executable, "-c", start, *words])
            sys.argv[1:] = words
            app.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def ended(self, within_s: float) -> tuple[int, str, float] | None:
        """Exit code, negative for a signal, stderr and seconds; None if it has not ended within the time."""
        until = time.monotonic() + within_s
        while not (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > until:
                return None
            time.sleep(0.01)
        return (
            os.waitstatus_to_exitcode(found[1]),
            self._stderr.read_text("utf-8", "replace"),
            time.monotonic() - self._since,
        )

    def end(self) -> tuple[int, str, float]:
        """Wait until it has ended.

        Raises:
            TimeoutError: it does not end.
        """
        if (found := self.ended(LIMIT_S)) is None:
            os.killpg(self.pid, signal.SIGKILL)
            raise TimeoutError(f"{self._stderr.stem} does not end")
        return found


def make_inputs(folder: Path) -> None:
    """A photo, a clip of six frames, the artifacts between them, and a list of two films."""
    folder.mkdir(parents=True)
    face = cv2.resize(skimage.data.astronaut()[22:202, 132:312], (128, 128), interpolation=cv2.INTER_AREA)
    Image.fromarray(face).save(folder / "photo.png")
    with VideoWriter(folder / "clip.mp4", rate=Fraction(25)) as writer:
        for index in range(6):
            turn = cv2.getRotationMatrix2D((64, 50), 4 * np.sin(index), 1)
            writer.write(cv2.warpAffine(face, turn, (128, 128), borderMode=cv2.BORDER_REPLICATE).astype(np.uint8))
    rows = ("reference,driving,size", "a.head.npz,clip.track.npz,256", "a.head.npz,a.meshes.npz,256")
    (folder / "jobs.csv").write_text("\n".join(rows) + "\n")
    for words in (
        ("track", "photo.png", "-o", "photo.track.npz"),
        ("track", "clip.mp4", "-o", "clip.track.npz"),
        ("fit", "photo.track.npz", "--quality", "draft", "-o", "a.head.npz"),
        ("transfer", "a.head.npz", "clip.track.npz", "-o", "a.meshes.npz"),
    ):
        code, err, _ = Run(words, folder).end()
        if code != 0:
            raise RuntimeError(f"{words}: {err}")


def content(path: Path) -> bytes:
    """Bytes of a result; of a record, what does not depend on the time."""
    if path.suffix != ".json":
        return path.read_bytes()
    found = json.loads(path.read_text("utf-8"))
    for name in ("finished", "seconds", "checksum"):
        found.pop(name, None)
    return json.dumps(found, sort_keys=True).encode()


def put_foreign(folder: Path) -> None:
    """Lay out the files of somebody else."""
    for name in FOREIGN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"mine: {name}")


def faults(command: Command, folder: Path, expected: dict[str, bytes], *, is_done: bool, is_killed: bool) -> list[str]:
    """What is wrong in a trial's folder."""
    found = [
        f"{name} was touched"
        for name in FOREIGN
        if not (folder / name).is_file() or (folder / name).read_text() != f"mine: {name}"
    ]
    for name in command.results:
        path = folder / name
        if is_done and not path.is_file():
            found.append(f"{name} is missing")
        elif path.is_file() and content(path) != expected[name]:
            found.append(f"{name} differs")
    # What is killed outright cannot clean up; the next run does.
    own = [path for path in folder.rglob(".*") if path.suffix in (".partial", ".lock")]
    left = [path.name for path in own if path.relative_to(folder).as_posix() not in FOREIGN]
    if left and (is_done or not is_killed):
        found.append(f"{left[0]} was left")
    return found


def trial(command: Command, folder: Path, expected: dict[str, bytes], usual_s: float, rng: random.Random) -> list[str]:
    """Interrupt a command, once or twice, and let it finish; what went wrong."""
    folder.mkdir(parents=True)
    put_foreign(folder)
    found: list[str] = []
    for _ in range(rng.choice((1, 1, 2))):
        name, after_s, is_group = rng.choice(list(SIGNALS)), rng.uniform(0.02, usual_s), rng.random() < 0.5
        process = Run(command.words, folder, is_cold=rng.random() < COLD)
        if (done := process.ended(after_s)) is None:
            while is_group and os.getpgid(process.pid) != process.pid:
                time.sleep(0.01)
            (os.killpg if is_group else os.kill)(process.pid, SIGNALS[name])
            done = process.end()
        number, (code, err, _) = int(SIGNALS[name]), done
        # Before the tool has begun, the signal ends Python by itself; after its end there is nothing to interrupt.
        if code not in (0, 128 + number, -number):
            found.append(f"{name} after {after_s:.1f} s: exit code {code}: {err.strip()[-200:]}")
        is_killed = name == "SIGKILL" or code == -number
        wrong = faults(command, folder, expected, is_done=False, is_killed=is_killed)
        found += [f"{name} after {after_s:.1f} s: {each}" for each in wrong]
    code, err, _ = Run(command.words, folder).end()
    if code != 0:
        found.append(f"the resumed run ended with {code}: {err.strip()[-300:]}")
    return found + [f"resumed: {each}" for each in faults(command, folder, expected, is_done=True, is_killed=False)]


def fuzz(place: Path, count: int, seed: int, only: list[str]) -> int:
    """Run the trials; print a table. The number that failed."""
    load()
    rng = random.Random(seed)
    commands = [command for command in COMMANDS if not only or command.name in only]
    make_inputs(place / "inputs")
    # Paths are part of some results: all runs are in a folder of the same name.
    folder = place / "trial"
    expected: dict[str, dict[str, bytes]] = {}
    usual_s: dict[str, float] = {}
    for command in commands:
        folder.mkdir()
        code, err, usual_s[command.name] = Run(command.words, folder).end()
        if code != 0:
            raise RuntimeError(f"{command.name}: {err}")
        expected[command.name] = {name: content(folder / name) for name in command.results}
        shutil.rmtree(folder)
    # Short commands are tried more often than long ones, each of them at least once.
    often = rng.choices(commands, [1 / usual_s[command.name] for command in commands], k=count)
    done, failed = Counter(), Counter()
    for number, command in enumerate([*commands, *often][:count]):
        found = trial(command, folder, expected[command.name], usual_s[command.name], rng)
        done[command.name] += 1
        failed[command.name] += bool(found)
        for line in found:
            print(f"{number} {command.name}: {line}", flush=True)
        if found:
            folder.rename(place / f"failed-{number}")
        else:
            shutil.rmtree(folder)
    print(f"{'command':<24}{'seconds':>8}{'trials':>8}{'failed':>8}")
    for command in commands:
        print(f"{command.name:<24}{usual_s[command.name]:>8.1f}{done[command.name]:>8}{failed[command.name]:>8}")
    return sum(failed.values())


def main() -> None:
    """Read the options, and exit with 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="number of trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", default=[], choices=[command.name for command in COMMANDS])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(fuzz(Path(folder), options.n, options.seed, options.only) > 0)


if __name__ == "__main__":
    main()
