"""The files between stages, and how they are named: here, where nothing heavy is imported."""

from pathlib import Path

KINDS = (".track", ".head", ".meshes")


def stem(path: Path) -> str:
    """Name without its last suffix, and without the kind of an artifact: `a.track.npz` is `a`."""
    name = path.stem
    return name.rpartition(".")[0] if path.suffix == ".npz" and name.endswith(KINDS) else name


def film_name(reference: Path, driving: Path) -> str:
    """Name of a film when the user gives none."""
    return f"{stem(reference)}--{stem(driving)}.mp4"
