"""Interrupt every command at random moments, and see that nothing is lost: `python tests/fuzz/interrupt.py -n 200`.

Each trial runs a command in a fresh folder, sends it a signal (once, sometimes twice), and runs it again to its end.
Afterwards no result may be half written, no foreign file touched, and the results must be those of a run that nobody
interrupted, to the byte. A table is printed; the exit code is 1 if any trial failed.
"""

import argparse
import hashlib
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import NoReturn

import cv2
import numpy as np
import skimage.data
import warp
from PIL import Image

import expportrait_cli
from expportrait_cli.cli import app
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.runtime import settle_threads
from expportrait_cli.weights.catalogue import weights_file

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "SIGHUP": signal.SIGHUP, "SIGKILL": signal.SIGKILL}
FOREIGN = ("notes.txt", ".mine.partial", "film.work/mine.npz", ".film.mp4.partial", "segments-mine/a.mp4")
"""Files of somebody else that lie where results go."""
LIMIT_S = 1200.0
ENDLESS_S = 20.0
"""Time within which a command that ends by a signal alone gets one."""
COLD = 0.15
"""Share of the interrupted runs that start Python anew, which takes most of their time."""


@dataclass(frozen=True)
class Command:
    """One command, with paths relative to the trial's folder, whose inputs are in `../inputs`."""

    name: str
    words: tuple[str, ...]
    results: tuple[str, ...]
    """Files that it leaves, and that do not depend on the time."""
    keeps: str = ""
    """Beginning of the names of hidden files that an interrupted run leaves for the next."""
    needs: str = ""
    """Package of an extra, without which the command is left out."""
    grows: bool = False
    """True if results say what is done so far, and are whole only at the end."""
    is_endless: bool = False
    """True if it ends by a signal alone."""
    keeps_results: bool = False
    """True if it refuses to run again once its results are there."""


SERVED = "expportrait/weights/served.bin"
CONTENT = random.Random(0).randbytes(3 << 20)
"""What `weights fetch` gets."""
PROMPT = "a person is talking"

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
        "eval of a suite",
        ("eval", "--suite", "../inputs/suite.toml", "-o", "a.scores.json"),
        ("a.scores.json",),
    ),
    Command("export", ("export", "../inputs/a.head.npz", "-o", "a.glb"), ("a.glb",)),
    Command(
        "export of frames",
        ("export", "../inputs/a.meshes.npz", "-o", "frames", "--format", "ply"),
        tuple(f"frames/frame_{index:05d}.ply" for index in range(6)),
    ),
    Command(
        "data prepare",
        ("data", "prepare", "../inputs/videos", "-o", "set", "--jobs", "1", "--min-face", "40"),
        ("set/dataset.json",),
        grows=True,
    ),
    Command("weights fetch", ("weights", "fetch", "served"), (f"cache/{SERVED}",), keeps=".served.bin.partial"),
    Command("ui", ("ui", "-o", "page", "--port", "7869"), (), needs="gradio", is_endless=True),
    Command(
        "train generator",
        (
            *("train", "generator", "../inputs/set", "-o", "generator", "--base", "../inputs/base", "--steps", "6"),
            *("--size", "32", "--frames", "5", "--report-every", "2", "--sample-every", "4"),
        ),
        ("generator/generator.json", "generator/transformer/diffusion_pytorch_model.safetensors"),
        needs="diffusers",
    ),
    Command(
        "train transfer",
        ("train", "transfer", "-o", "net.safetensors", "--synthetic", "4", "--steps", "12"),
        ("net.safetensors",),
    ),
    Command(
        "train mini",
        ("train", "mini", "../inputs/set", "-o", "mini.safetensors", "--steps", "2", "--photos", "1"),
        ("mini.safetensors",),
        needs="diffusers",
    ),
    Command(
        "compare-recipes",
        (
            *("compare-recipes", "../inputs/photo.png", "../inputs/clip.mp4", "--size", "256", "--steps", "2"),
            *("--weights-folder", "../inputs/wan-vace-1.3b"),
        ),
        ("recipes/index.html", "recipes/proxy.mp4", "recipes/grey.mp4", "recipes/keep.mp4", "recipes/keep.json"),
        needs="diffusers",
    ),
    Command(
        "weights convert",
        ("weights", "convert", "../inputs/wan.safetensors", "-o", "base", "--parts", "../inputs/base"),
        ("base/transformer/diffusion_pytorch_model.safetensors", "base/transformer/config.json"),
        needs="diffusers",
        keeps_results=True,
    ),
    Command(
        "weights embed-prompt",
        ("weights", "embed-prompt", PROMPT, "--encoder", "../inputs/encoder"),
        (f"cache/expportrait/weights/prompts/{hashlib.sha256(PROMPT.encode()).hexdigest()[:16]}.safetensors",),
        needs="diffusers",
    ),
)


def load() -> None:
    """Load what the commands need, so that what is forked from this process begins at once."""
    # A pool of threads does not live on in what is forked.
    cv2.setNumThreads(1)
    for module in pkgutil.walk_packages(expportrait_cli.__path__, "expportrait_cli."):
        if not module.name.endswith("__main__"):
            # Some wrap a library that need not be there.
            with suppress(ModuleNotFoundError):
                importlib.import_module(module.name)
    importlib.import_module("mediapipe")
    # Every run has a cache of its own, but for the compiled kernels.
    warp.init()
    os.environ["WARP_CACHE_PATH"] = str(warp.config.kernel_cache_dir)


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
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
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
        except KeyboardInterrupt:
            # It came before the tool took signals over, as when Python is still starting.
            code = 128 + signal.SIGINT
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


MADE_LATER = {
    f"../inputs/{name}" for name in ("suite.toml", "videos", "set", "wan.safetensors", "encoder", "wan-vace-1.3b")
}
"""Inputs that `make_set` makes, which takes longer than most commands do."""


def make_set(folder: Path) -> None:
    """A suite of one pair, videos of a face, a set made of them, and a Wan of toy size."""
    (folder / "suite.toml").write_text('name = "one"\nsize = 256\n[[self]]\nname = "one"\nclip = "clip.mp4"\n')
    (folder / "videos").mkdir()
    # A face that moves: a set takes no other.
    frames = read_frames(Path(__file__).parents[2] / "examples" / "driving.mp4")
    with VideoWriter(folder / "videos" / "talk.mp4", rate=Fraction(12)) as writer:
        for frame in islice(frames, 0, 40, 2):
            writer.write(cv2.resize(frame, (256, 256), interpolation=cv2.INTER_AREA).astype(np.uint8))
    code, err, _ = Run(("data", "prepare", "videos", "-o", "set", "--jobs", "1", "--min-face", "40"), folder).end()
    if code != 0:
        raise RuntimeError(f"data prepare: {err}")
    if find_spec("diffusers") is not None:
        make_weights(folder)


def make_weights(folder: Path) -> None:
    """Weights of toy size: a Wan to train from, one in Wan's own format, its VACE, and a text encoder."""
    sys.path.append(str(Path(__file__).parents[1]))
    from safetensors.torch import save_file
    from support.tiny_wan import base_folder, text_encoder, tiny_transformer
    from support.wan_film import vace_folder
    from support.wan_tensors import original_name

    base_folder(folder / "base")
    vace_folder(folder)
    text_encoder(folder / "encoder")
    state = tiny_transformer(3, head_dim=128, layers=1).state_dict()
    save_file({original_name(name): value.contiguous() for name, value in state.items()}, folder / "wan.safetensors")


class Answer(BaseHTTPRequestHandler):
    """Sends `CONTENT` at a pace at which it can be interrupted, and goes on where it is asked to."""

    def do_GET(self) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.send_header("ETag", '"served"')
        self.end_headers()
        with suppress(OSError):
            for place in range(first, len(CONTENT), 1 << 16):
                self.wfile.write(CONTENT[place : place + (1 << 16)])
                time.sleep(0.02)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def served(folder: Path) -> Iterator[None]:
    """Serve a file of weights from a process of its own, and name it in a catalogue."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    child = os.fork()
    if not child:
        server.serve_forever()
    rows = {
        "name": "served",
        "file": "served.bin",
        "source": f"http://127.0.0.1:{server.server_port}/served.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "licence": "MIT",
    }
    server.server_close()
    entry = "".join(f'{name} = "{value}"\n' for name, value in rows.items())
    folder.mkdir()
    catalogue = weights_file("catalogue.toml").read_text("utf-8")
    (folder / "catalogue.toml").write_text(f"{catalogue}\n[[weight]]\n{entry}needed_by = []\noptional = true\n")
    os.environ["EXPPORTRAIT_WEIGHTS"] = str(folder)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def content(path: Path) -> bytes:
    """Bytes of a result; of a record, what does not depend on the time."""
    if path.suffix != ".json":
        return path.read_bytes()
    found = json.loads(path.read_text("utf-8"))
    for name in ("finished", "seconds", "cpu_seconds", "checksum"):
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
        elif path.is_file() and (is_done or not command.grows) and content(path) != expected[name]:
            found.append(f"{name} differs")
    # What is killed outright cannot clean up; the next run does.
    own = [path for path in folder.rglob(".*") if path.suffix in (".partial", ".lock")]
    left = [path.name for path in own if path.relative_to(folder).as_posix() not in FOREIGN]
    if command.keeps and not is_done:
        left = [name for name in left if not name.startswith(command.keeps)]
    if left and (is_done or not is_killed):
        found.append(f"{left[0]} was left")
    return found


def trial(command: Command, folder: Path, expected: dict[str, bytes], usual_s: float, rng: random.Random) -> list[str]:
    """Interrupt a command, once or twice, and let it finish; what went wrong."""
    folder.mkdir(parents=True)
    put_foreign(folder)
    found: list[str] = []
    is_killed = False
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
        # A second run that ended early has not yet cleaned up behind one that was killed.
        is_killed |= name == "SIGKILL" or code == -number
        wrong = faults(command, folder, expected, is_done=False, is_killed=is_killed)
        found += [f"{name} after {after_s:.1f} s: {each}" for each in wrong]
    if command.is_endless:
        return found
    is_there = command.keeps_results and all((folder / name).is_file() for name in command.results)
    code, err, _ = Run(command.words, folder).end()
    if code != (3 if is_there else 0):
        found.append(f"the resumed run ended with {code}: {err.strip()[-300:]}")
    return found + [f"resumed: {each}" for each in faults(command, folder, expected, is_done=True, is_killed=False)]


def fuzz(place: Path, count: int, seed: int, only: list[str]) -> int:
    """Run the trials; print a table. The number that failed."""
    load()
    rng = random.Random(seed)
    there = [command for command in COMMANDS if not command.needs or find_spec(command.needs) is not None]
    commands = [command for command in there if not only or command.name in only]
    make_inputs(place / "inputs")
    if any(set(command.words) & MADE_LATER for command in commands):
        make_set(place / "inputs")
    # Paths are part of some results: all runs are in a folder of the same name.
    folder = place / "trial"
    expected: dict[str, dict[str, bytes]] = {}
    usual_s: dict[str, float] = {}
    for command in commands:
        if command.is_endless:
            usual_s[command.name], expected[command.name] = ENDLESS_S, {}
            continue
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
    before = dict(os.environ)
    settle_threads()
    if os.environ != before:
        # Libraries read the number of threads when they are imported, as they are above; the results depend on it.
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "weights"):
        sys.exit(fuzz(Path(folder), options.n, options.seed, options.only) > 0)


if __name__ == "__main__":
    main()
