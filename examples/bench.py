"""Print the time of each stage as a ratio to the floor: decoding, FaceMesh and encoding of the same clip.

python examples/bench.py [PHOTO CLIP]
"""

import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from time import perf_counter

import skimage.data
from PIL import Image

from expportrait_cli.cli.app import run
from expportrait_cli.pipeline.provenance import read_record
from expportrait_cli.runtime import settle_threads

DRIVING = Path(__file__).with_name("driving.mp4")


def floor_s(clip: Path, folder: Path) -> tuple[float, int]:
    """Seconds and frames of the least that any such tool does."""
    from expportrait_cli.detect.mesh import FaceMesh
    from expportrait_cli.media.video import probe, read_frames
    from expportrait_cli.media.writer import VideoWriter

    mesh, count, since = FaceMesh(video=True), 0, perf_counter()
    with VideoWriter(folder / "floor.mp4", rate=probe(clip).rate) as writer:
        for frame in read_frames(clip):
            mesh.landmarks(frame)
            writer.write(frame)
            count += 1
    return perf_counter() - since, count


def fits_s(clip: Path, folder: Path) -> dict[str, float]:
    """Seconds of fitting the driver's own head: by landmarks and outline, and with the folds of every frame."""
    seconds, track = {}, folder / "clip.track.npz"
    run(["track", str(clip), "-o", str(track), "--quiet"])
    for quality in ("draft", "standard"):
        since = perf_counter()
        run(["fit", str(track), "--quality", quality, "-o", str(folder / "clip.head.npz"), "--quiet"])
        seconds[f"fit the clip, {quality}"] = perf_counter() - since
    return seconds


def main() -> int:
    """Print a table of the stages of one film, and of fits to its driver."""
    settle_threads()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo = folder / "astronaut.png"
        Image.fromarray(skimage.data.astronaut()).save(photo)
        photo, clip = (Path(word) for word in sys.argv[1:3]) if len(sys.argv) == 3 else (photo, DRIVING)
        floor, count = floor_s(clip, folder)
        with redirect_stdout(sys.stderr):
            code = run(["generate", str(photo), str(clip), "-o", str(folder / "film.mp4"), "--quiet"])
            fits = {} if code else fits_s(clip, folder)
        if code:
            return code
        seconds = read_record(folder / "film.json")["seconds"]
    print(f"{'stage':<24} {'s':>8} {'ms/frame':>9} {'x floor':>8}   ({count} frames)")
    for stage, spent in {"floor": floor, **seconds, **fits}.items():
        print(f"{stage:<24} {spent:>8.2f} {1000 * spent / count:>9.1f} {spent / floor:>8.2f}")
    draft, standard = fits.values()
    print(f"folds cost {standard / draft:.1f} times the fit by landmarks and outline")
    return 0


if __name__ == "__main__":
    sys.exit(main())
