"""Look at a performance from all sides: normal maps on a camera orbit, and the head as a glTF file.

python examples/03_orbit.py HEAD.head.npz MESHES.meshes.npz FOLDER
"""

import subprocess
import sys
from pathlib import Path

from expportrait_cli import load, render_normals


def main(head: str, meshes: str, folder: str) -> Path:
    """Write `orbit.normals.mkv` and `head.glb` to the folder; return the film's path."""
    out = Path(folder)
    film = render_normals(meshes, out / "orbit.normals.mkv", orbit="yaw=-40..40,pitch=5").path
    camera = load(film).camera
    print(f"camera of the maps: {camera.width} x {camera.height} px, focal length {camera.focal_px:.0f} px")
    subprocess.run(["expportrait", "export", head, "-o", str(out / "head.glb")], check=True)
    return film


if __name__ == "__main__":
    print(main(*sys.argv[1:4]))
