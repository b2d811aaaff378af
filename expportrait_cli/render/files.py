"""Normal maps on disk: a lossless film and a JSON sidecar that describes it."""

import json
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt16

from expportrait_cli.artifacts.files import atomic_path, check_file, sha256
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.render.buffers import CONVENTION
from expportrait_cli.render.stage import NormalFrame
from expportrait_cli.version import __version__

SUFFIX = ".normals.mkv"
KIND, VERSION = "normals", 1
LARGEST = 10**6
"""Upper bound of the camera's numbers, of the rate and of the number of frames in a sidecar."""
# 16 bits reach 10.5 m, beyond the far plane of the camera.
DEPTH_STEP_M = 0.00016


@dataclass(frozen=True)
class NormalsInfo:
    """Content of the sidecar of a `.normals.mkv`."""

    camera: Camera
    """Camera of the film, at its size."""
    rate: Fraction
    """Exact frames per second; 30000/1001 in the file."""
    mesh_hash: str
    """Hash of the meshes that were rendered."""
    rasterizer: str
    """Backend that rendered them."""
    meshes: str
    """Absolute path of the meshes."""
    viewpoint: str = ""
    """Angles of the camera as they were given; empty for the photo's own viewpoint."""
    frame_count: int = 0
    """Number of frames; set when the film is written."""
    convention: str = CONVENTION
    """Encoding of normals as colours (`render.buffers.CONVENTION`)."""


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """Path of a film's JSON sidecar."""
    return Path(path).with_suffix(".json")


def beside(path: Path, ending: str) -> Path:
    """Path of a related film of normal maps; `ending` is `depth.mkv`, `mask.mkv` or `preview.mp4`."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.{ending}")


def save_normals(
    frames: Iterable[NormalFrame],
    path: str | os.PathLike[str],
    info: NormalsInfo,
    *,
    with_depth: bool = False,
    with_mask: bool = False,
) -> Path:
    """Write `NAME.normals.mkv` and `NAME.normals.json`, on request `NAME.depth.mkv` and `NAME.mask.mkv`.

    Depth is 16-bit grey in steps of `DEPTH_STEP_M`, mask is 16-bit grey from 0 to 65535; all are FFV1. The sidecar is
    written last and contains the hashes of its films, so that films of another run are detected.

    Raises:
        UsageError: the name does not end in .normals.mkv.
        OutputError: it could not be written, or there was no frame.
    """
    target = Path(path)
    if not target.name.endswith(SUFFIX) or target.name == SUFFIX:
        raise UsageError(f"{path} does not end in {SUFFIX}. Name the film like head{SUFFIX}.")
    extra_paths = {name: beside(target, f"{name}.mkv") for name in ("depth", "mask")}
    with ExitStack() as stack:

        def begun(place: Path) -> VideoWriter:
            tags = {"comment": f"normal maps by expportrait {__version__}"}
            return stack.enter_context(VideoWriter(place, rate=info.rate, lossless=True, metadata=tags))

        film = begun(target)
        depth = begun(extra_paths["depth"]) if with_depth else None
        mask = begun(extra_paths["mask"]) if with_mask else None
        for frame in frames:
            film.write(frame.normals)
            if depth:
                depth.write(depth_to_steps(frame.depth))
            if mask:
                mask.write(frame.mask.astype(np.uint16) * 257)
    described: dict[str, Any] = {"kind": KIND, "version": VERSION, "made_by": f"expportrait {__version__}"}
    described |= {**asdict(info), "frame_count": film.frame_count}
    written = [target]
    if with_depth:
        described["depth"] = {"file": extra_paths["depth"].name, "step_m": DEPTH_STEP_M, "background": 0}
        written.append(extra_paths["depth"])
    if with_mask:
        described["mask"] = {"file": extra_paths["mask"].name, "covered": 65535}
        written.append(extra_paths["mask"])
    described["sha256"] = {each.name: sha256(each) for each in written}
    with atomic_path(sidecar_path(target)) as partial:
        partial.write_text(json.dumps(described, indent=1, default=str) + "\n")
    return target


def load_info(path: str | os.PathLike[str]) -> NormalsInfo:
    """Read and check the sidecar of a `.normals.mkv`.

    Raises:
        InputError: film or sidecar is missing or damaged, or the sidecar's hashes are not those of the films.
    """
    check_file(path)
    sidecar = sidecar_path(path)
    check_file(sidecar)
    try:
        found = json.loads(sidecar.read_text("utf-8"))
        hashes = {str(name): str(digest) for name, digest in found["sha256"].items()}
        info = NormalsInfo(
            camera=Camera(**found["camera"]),
            rate=Fraction(found["rate"]),
            mesh_hash=str(found["mesh_hash"]),
            rasterizer=str(found["rasterizer"]),
            meshes=str(found["meshes"]),
            viewpoint=str(found["viewpoint"]),
            frame_count=int(found["frame_count"]),
            convention=str(found["convention"]),
        )
        if not all(0 < number < LARGEST for number in (*vars(info.camera).values(), info.rate, info.frame_count)):
            raise ValueError("camera, rate or number of frames out of range")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{sidecar} does not describe films of normal maps. Run `render-normals` again.") from error
    for name in {Path(path).name, *hashes}:
        film = sidecar.with_name(Path(name).name)
        if not film.is_file() or sha256(film) != hashes.get(name):
            raise InputError(
                f"{film} is not the film that {sidecar} describes: a run was stopped between the two, or one of them "
                "was replaced. Run `render-normals` again."
            )
    return info


def depth_to_steps(depth_m: Float[np.ndarray, "H W"]) -> UInt16[np.ndarray, "H W"]:
    """Convert depth, m, to the stored 16-bit steps; depth beyond 10.5 m is clamped."""
    return np.clip(np.rint(depth_m / DEPTH_STEP_M), 0, 65535).astype(np.uint16)
