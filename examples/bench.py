"""Print the time of each stage as a ratio to the floor: decoding, FaceMesh and encoding of the same clip.

python examples/bench.py [PHOTO CLIP]

Processor time counts all threads and ffmpeg. Stages overlap: the head is fitted while the driver is tracked, and what
of it is done by then counts there.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter

import skimage.data
from PIL import Image

from expportrait_cli.cli.app import run
from expportrait_cli.pipeline.provenance import read_record
from expportrait_cli.runtime import cpu_seconds, settle_threads

DRIVING = Path(__file__).with_name("driving.mp4")

Times = tuple[float, float]
"""Wall clock and processor, s."""


def timed(work: Callable[[], int]) -> tuple[Times, int]:
    """What some work takes, and what it returns."""
    since, before = perf_counter(), cpu_seconds()
    result = work()
    return (perf_counter() - since, cpu_seconds() - before), result


def floor(clip: Path, folder: Path) -> int:
    """Do the least that any such tool does, and count the frames."""
    from expportrait_cli.detect.mesh import FaceMesh
    from expportrait_cli.media.video import probe, read_frames
    from expportrait_cli.media.writer import VideoWriter

    mesh, count = FaceMesh(video=True), 0
    with VideoWriter(folder / "floor.mp4", rate=probe(clip).rate) as writer:
        for frame in read_frames(clip):
            mesh.landmarks(frame)
            writer.write(frame)
            count += 1
    return count


def normals(folder: Path) -> Times:
    """Draw the normal maps of the film's meshes as a film of their own."""
    meshes = str(folder / "film.work" / "driving.meshes.npz")
    return timed(lambda: run(["render-normals", meshes, "-o", str(folder / "film.normals.mkv"), "--quiet"]))[0]


def fits(clip: Path, folder: Path) -> dict[str, Times]:
    """Fit the driver's own head: by landmarks and outline, and with the folds of every frame."""
    times, track = {}, folder / "clip.track.npz"
    run(["track", str(clip), "-o", str(track), "--quiet"])
    for quality in ("draft", "standard"):
        command = ["fit", str(track), "--quality", quality, "-o", str(folder / "clip.head.npz"), "--quiet"]
        times[f"fit the clip, {quality}"], _ = timed(lambda command=command: run(command))
    return times


def main() -> int:
    """Print a table of the stages of one film, of its normal maps, and of fits to its driver."""
    settle_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "astronaut.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        photo, clip = (Path(word) for word in sys.argv[1:3]) if len(sys.argv) == 3 else (photo, DRIVING)
        least, count = timed(lambda: floor(clip, folder))
        film = ["generate", str(photo), str(clip), "-o", str(folder / "film.mp4"), "--quiet"]
        with redirect_stdout(sys.stderr):
            whole, code = timed(lambda: run(film))
            own = {} if code else {"normal maps": normals(folder), **fits(clip, folder)}
        if code:
            return code
        record = read_record(folder / "film.json")
    stages = {stage: (wall, record["cpu_seconds"].get(stage)) for stage, wall in record["seconds"].items()}
    stages.pop("whole run")
    print(f"{'stage':<24} {'wall s':>8} {'x floor':>8} {'CPU s':>8} {'x floor':>8} {'CPU ms':>8} a frame of {count}")
    for stage, (wall, cpu) in {"floor": least, **stages, "whole command": whole, **own}.items():
        print(
            f"{stage:<24} {wall:>8.2f} {wall / least[0]:>8.2f} {cpu:>8.2f} {cpu / least[1]:>8.2f} "
            f"{1000 * cpu / count:>8.1f}"
        )
    draft, standard = (cpu for _, cpu in list(own.values())[-2:])
    print(f"folds cost {standard / draft:.1f} times the fit by landmarks and outline")
    return 0


if __name__ == "__main__":
    sys.exit(main())
