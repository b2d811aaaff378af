"""Interrupt every command at random moments, and see that nothing is lost: `python tests/fuzz/interrupt.py -n 200`.

Each trial runs a command in a fresh folder, sends it a signal (once, sometimes twice), and runs it again to its end.
Afterwards no result may be half written, no foreign file touched, and the results must be those of a run that nobody
interrupted, to the byte. A table is printed; the exit code is 1 if any trial failed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import skimage.data
from PIL import Image

from expportrait_cli.media.writer import VideoWriter

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "SIGKILL": signal.SIGKILL}
FOREIGN = ("notes.txt", ".mine.partial", "film.work/mine.npz", ".film.mp4.partial", "segments-mine/a.mp4")
"""Files of somebody else that lie where results go."""
LIMIT_S = 1200.0


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
        ("train", "transfer", "-o", "net.safetensors", "--synthetic", "8", "--steps", "40"),
        ("net.safetensors",),
    ),
)


def run(words: tuple[str, ...], folder: Path) -> subprocess.Popen[str]:
    """Start the tool in a folder, and in a session of its own, as a terminal would."""
    # A job in the background of a script ignores Ctrl-C, and so would what it starts.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeds}; from expportrait_cli.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(command: Command, folder: Path) -> tuple[int, str, float]:
    """Run to the end: exit code, stderr, seconds."""
    since = time.monotonic()
    process = run(command.words, folder)
    _, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, err, time.monotonic() - since


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
        ("fit", "photo.track.npz", "-o", "a.head.npz"),
        ("transfer", "a.head.npz", "clip.track.npz", "-o", "a.meshes.npz"),
    ):
        code, err, _ = finished(Command(words[0], words, ()), folder)
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
        name, after_s, is_group = rng.choice(list(SIGNALS)), rng.uniform(0.2, usual_s), rng.random() < 0.5
        process = run(command.words, folder)
        try:
            _, err = process.communicate(timeout=after_s)
        except subprocess.TimeoutExpired:
            (os.killpg if is_group else os.kill)(process.pid, SIGNALS[name])
            _, err = process.communicate(timeout=LIMIT_S)
        number = int(SIGNALS[name])
        # Before the tool has begun, the signal ends Python by itself; after its end there is nothing to interrupt.
        if process.returncode not in (0, 128 + number, -number):
            found.append(f"{name} after {after_s:.1f} s: exit code {process.returncode}: {err.strip()[-200:]}")
        is_killed = name == "SIGKILL" or process.returncode == -number
        wrong = faults(command, folder, expected, is_done=False, is_killed=is_killed)
        found += [f"{name} after {after_s:.1f} s: {each}" for each in wrong]
    code, err, _ = finished(command, folder)
    if code != 0:
        found.append(f"the resumed run ended with {code}: {err.strip()[-300:]}")
    return found + [f"resumed: {each}" for each in faults(command, folder, expected, is_done=True, is_killed=False)]


def fuzz(place: Path, count: int, seed: int, only: list[str]) -> int:
    """Run the trials; print a table. The number that failed."""
    rng = random.Random(seed)
    commands = [command for command in COMMANDS if not only or command.name in only]
    make_inputs(place / "inputs")
    expected: dict[str, dict[str, bytes]] = {}
    usual_s: dict[str, float] = {}
    for command in commands:
        folder = place / f"whole-{command.name.replace(' ', '-')}"
        folder.mkdir()
        code, err, usual_s[command.name] = finished(command, folder)
        if code != 0:
            raise RuntimeError(f"{command.name}: {err}")
        expected[command.name] = {name: content(folder / name) for name in command.results}
    done, failed = Counter(), Counter()
    for number in range(count):
        command = commands[number % len(commands)]
        folder = place / f"trial-{number}"
        found = trial(command, folder, expected[command.name], usual_s[command.name], rng)
        done[command.name] += 1
        failed[command.name] += bool(found)
        for line in found:
            print(f"{number} {command.name}: {line}", flush=True)
        if not found:
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
