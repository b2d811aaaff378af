"""Make a film from a photo and a clip, stage by stage, and look at what lies between.

python examples/01_film.py PHOTO CLIP FOLDER
"""

import sys
from pathlib import Path

from expportrait_cli import fit, generate, load, track, transfer


def main(photo: str, clip: str, folder: str) -> Path:
    """Write a tracking of each input, the head, the meshes and the film to the folder; return the film's path."""
    out = Path(folder)
    person, driver = out / "photo.track.npz", out / "clip.track.npz"
    track(photo, person)
    tracking = track(clip, driver)
    print(f"{len(tracking.state)} frames, landmarks {tracking.error.mean():.1f} % of the eye distance off the model")

    head = fit([person], out / "photo.head.npz")
    print(f"the head covers {100 * head.silhouette_iou:.0f} % of the person's outline")

    meshes = transfer(out / "photo.head.npz", driver, out / "clip.meshes.npz")
    print(f"{meshes.frame_count} frames of {len(meshes.faces)} triangles")

    film = out / "film.mp4"
    generate(out / "photo.head.npz", out / "clip.meshes.npz", film)
    print(load(out / "photo.head.npz").expression.max())
    return film


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
