"""Edit a performance: make the driver smile twice as much, and keep the eyes on the camera.

python examples/02_edit_a_smile.py HEAD.head.npz CLIP.track.npz FOLDER
"""

import csv
import sys
from pathlib import Path

from expportrait_cli import generate, transfer


def main(head: str, tracking: str, folder: str) -> Path:
    """Write the curves of the performance, edit them as a spreadsheet would, make the film; return its path."""
    out = Path(folder)
    meshes, curves = out / "smile.meshes.npz", out / "smile.csv"
    transfer(head, tracking, meshes, curves=curves)  # the table is not there yet: it is written

    with curves.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        for name in row:
            if name.startswith("mouthSmile"):
                row[name] = str(min(1.0, 2 * float(row[name])))
            elif name.startswith("gaze"):
                # Degrees. The gaze is relative to the head: eyes on the camera turn against it.
                turn = float(row["head_rx" if name.endswith("pitch") else "head_ry"])
                row[name] = str(min(25.0, max(-25.0, turn)))
    with curves.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)

    transfer(head, tracking, meshes, curves=curves)  # the table is there: it is read
    film = out / "smile.mp4"
    generate(head, meshes, film)
    return film


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
