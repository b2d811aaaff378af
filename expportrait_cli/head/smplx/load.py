"""An SMPL-X file of the user's own as a head model."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import platformdirs
import torch
from jaxtyping import Float, Float32, Int64

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.head.model import FindLandmarks, HeadModel
from expportrait_cli.head.smplx import regions as regions
from expportrait_cli.head.smplx.build import (
    build,
    find_file,
    read,
)
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SmplxLandmarks:
    """FaceMesh's landmarks on one file's head, kept in the cache folder.

    The version also stands for how the mesh is cut and subdivided, and for how landmarks are found on it.
    """

    KIND: ClassVar[str] = "landmarks"
    VERSION: ClassVar[int] = 1

    file_hash: str
    """sha256 of the file."""
    triangles: Int64[np.ndarray, "478 3"]
    barycentrics: Float32[np.ndarray, "478 3"]
    spread: Float32[np.ndarray, " 478"]


def load(
    device: torch.device | str = "cpu", *, file: Path | None = None, find_landmarks: FindLandmarks | None = None
) -> HeadModel:
    """Build the head from the user's file.

    `find_landmarks` is called the first time that a file is seen; what it found is kept in the user's cache folder.

    Raises:
        WeightsError: no usable file, or its landmarks were not found yet and `find_landmarks` is not given.
    """
    path = file or find_file()
    head, marks = build(read(path))
    return _with_landmarks(path, head, marks, find_landmarks).to(device)


def _with_landmarks(
    path: Path, head: HeadModel, marks: Float[np.ndarray, "51 3"], find_landmarks: FindLandmarks | None
) -> HeadModel:
    """Add FaceMesh's landmarks, from the cache or found now, and the facial mask, which is made from them."""
    digest = sha256(path)
    kept = platformdirs.user_cache_path("expportrait") / "landmarks" / f"smplx-{digest[:16]}.npz"
    found = _cached(kept, digest, len(head.parts))
    if found is None:
        if find_landmarks is None:
            raise WeightsError(
                f"FaceMesh's landmarks were not found yet on {path}. Run `expportrait track --head-model smplx` once."
            )
        log.info("Looking for FaceMesh's landmarks on %s: once for each file, for a minute or two.", path)
        marked = find_landmarks(head, regions.colours(head, marks))
        found = SmplxLandmarks(
            digest,
            marked.landmark_triangles.numpy().astype(np.int64),
            marked.landmark_barycentrics.numpy().astype(np.float32),
            marked.landmark_spread.numpy().astype(np.float32),
        )
        npz.save(found, kept, {"tool": f"expportrait {__version__}"})
    head = replace(
        head,
        # The files of the sexes, and of the years, are as many models: their parameters do not mix.
        name=f"{head.name}-{digest[:8]}",
        landmark_triangles=torch.from_numpy(found.triangles),
        landmark_barycentrics=torch.from_numpy(found.barycentrics),
        landmark_spread=torch.from_numpy(found.spread),
    )
    return replace(head, facial_mask=regions.facial_mask(head))


def _cached(path: Path, digest: str, vertices: int) -> SmplxLandmarks | None:
    if not path.is_file():
        return None
    try:
        found = npz.load(SmplxLandmarks, path)
    except InputError as error:
        log.info("%s It is made again.", error)
        return None
    return found if found.file_hash == digest and found.triangles.max() < vertices else None
