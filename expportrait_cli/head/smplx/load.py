"""An SMPL-X file of the user's own as a head model."""

import logging
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import platformdirs
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor

from expportrait_cli import __version__
from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.head.model import HeadModel
from expportrait_cli.head.smplx import regions as regions
from expportrait_cli.head.smplx.build import build
from expportrait_cli.weights.catalogue import folders

ENVIRONMENT = "EXPPORTRAIT_SMPLX"
FILE = "SMPLX_NEUTRAL.npz"
HOW = (
    f"Register at https://smpl-x.is.tue.mpg.de, download SMPL-X v1.1 (NPZ+PKL), and name its {FILE} in {ENVIRONMENT} "
    "or put it into a folder of weights."
)
SHAPES, EXPRESSIONS, JOINTS, LANDMARKS = 300, 100, 55, 51
SHOULDERS, JAW = (16, 17), 22
PARENTS = {12: 9, 15: 12, 16: 13, 17: 14, 22: 15, 23: 15, 24: 15}
"""Joints that the head is made from, and what they hang on: the neck on the spine, the head on the neck, the shoulders
on the collars, jaw and eyes on the head. Left is before right."""


@dataclass(frozen=True)
class SmplxBody:
    """What a file holds of a body: `S` vertices, metres, y up, looking along z, arms out to the sides."""

    template: Float[np.ndarray, "S 3"]
    shape_basis: Float[np.ndarray, "S 3 300"]
    expression_basis: Float[np.ndarray, "S 3 100"]
    regressor: Float[np.ndarray, "55 S"]
    """Joints from vertices. Rows sum to one."""
    skinning: Float[np.ndarray, "S 55"]
    parents: Int[np.ndarray, " 55"]
    """The first one's means nothing."""
    faces: Int[np.ndarray, "F 3"]
    """Outward side counter-clockwise."""
    jaw_correctives: Float[np.ndarray, "S 3 9"]
    """Displacement by each entry, row by row, of the jaw's rotation minus the identity."""
    shoulder_correctives: Float[np.ndarray, "S 3 18"]
    """The same of the left, then of the right shoulder."""
    landmark_faces: Int[np.ndarray, " 51"]
    landmark_barycentrics: Float[np.ndarray, "51 3"]
    """iBUG's points without the outline: brows 0 to 9, nose, eyes, outer lips 31 to 42, inner lips 43 to 50; the
    person's right before left."""


def find_file() -> Path:
    """Path of the user's file: what EXPPORTRAIT_SMPLX names, else in the folders of weights.

    Raises:
        WeightsError: there is none, or it is a pickle.
    """
    chosen = os.environ.get(ENVIRONMENT)
    places = [Path(chosen)] if chosen else [folder / FILE for folder in folders()]
    for path in places:
        if path.suffix != ".pkl" and path.is_file():
            return path
    pickles = [path.with_suffix(".pkl") for path in places if path.with_suffix(".pkl").is_file()]
    if pickles:
        raise _pickle_refused(pickles[0])
    if chosen:
        raise WeightsError(f"{ENVIRONMENT} names {chosen}, which is no file. {HOW}")
    raise WeightsError(f"The SMPL-X model is not there: looked in {', '.join(map(str, folders()))}. {HOW}")


def read(path: Path) -> SmplxBody:
    """Read a file of version 1.1, the keys that are needed alone. About two seconds for the published one.

    Raises:
        WeightsError: it is a pickle, damaged, an older version with fewer components, or another model.
    """
    if path.suffix == ".pkl":
        raise _pickle_refused(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _body(path, lambda key: _member(path, key, archive.__getitem__))
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise WeightsError(f"{path} is no .npz file that can be read ({error}). {HOW}") from error


def _body(path: Path, member: Callable[[str], np.ndarray]) -> SmplxBody:
    template = _shaped(path, "v_template", member("v_template"), (None, 3))
    count = len(template)
    basis = _shaped(path, "shapedirs", member("shapedirs"), (count, 3, None))
    if basis.shape[2] < SHAPES + EXPRESSIONS:
        raise WeightsError(
            f"{path} has {basis.shape[2]} components in shapedirs, expected {SHAPES + EXPRESSIONS} "
            f"({SHAPES} of shape, {EXPRESSIONS} of expression): it is of an older version. {HOW}"
        )
    tree = _shaped(path, "kintree_table", member("kintree_table"), (2, JOINTS)).astype(np.int64)
    if any(tree[0, joint] != parent for joint, parent in PARENTS.items()):
        raise WeightsError(f"{path} has another skeleton than SMPL-X (kintree_table). {HOW}")
    correctives = _shaped(path, "posedirs", member("posedirs"), (count, 3, (JOINTS - 1) * 9))
    faces = _shaped(path, "f", member("f"), (None, 3)).astype(np.int64)
    landmark_faces = _shaped(path, "lmk_faces_idx", member("lmk_faces_idx"), (LANDMARKS,)).astype(np.int64)
    if faces.min() < 0 or faces.max() >= count or landmark_faces.min() < 0 or landmark_faces.max() >= len(faces):
        raise WeightsError(f"{path} names vertices or triangles that it does not have (f, lmk_faces_idx). {HOW}")
    # The root turns nothing: the first nine columns belong to joint 1.
    jaw, left, right = (np.s_[9 * (joint - 1) : 9 * joint] for joint in (JAW, *SHOULDERS))
    return SmplxBody(
        template=template,
        shape_basis=basis[:, :, :SHAPES],
        expression_basis=basis[:, :, SHAPES : SHAPES + EXPRESSIONS],
        regressor=_shaped(path, "J_regressor", member("J_regressor"), (JOINTS, count)),
        skinning=_shaped(path, "weights", member("weights"), (count, JOINTS)),
        parents=tree[0],
        faces=faces,
        jaw_correctives=correctives[:, :, jaw],
        shoulder_correctives=np.concatenate([correctives[:, :, left], correctives[:, :, right]], -1),
        landmark_faces=landmark_faces,
        landmark_barycentrics=_shaped(path, "lmk_bary_coords", member("lmk_bary_coords"), (LANDMARKS, 3)),
    )


def _member(path: Path, key: str, member: Callable[[str], object]) -> np.ndarray:
    try:
        array = member(key)
    except KeyError:
        raise WeightsError(f"{path} lacks '{key}', which SMPL-X v1.1 has. {HOW}") from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise WeightsError(
            f"{path} holds '{key}' as pickled objects: they could run code, and are not read. {HOW}"
        ) from None
    # numpy hands out the bytes of a member that is no array.
    if not isinstance(array, np.ndarray):
        raise WeightsError(f"{path} holds something else than an array as '{key}': it is damaged. {HOW}")
    return array


def _shaped(path: Path, key: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array itself, if it holds finite numbers and has the shape; None fits every length."""
    expected = "x".join("?" if length is None else str(length) for length in shape)
    fits = array.ndim == len(shape) and all(s in (None, n) for s, n in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu" or array.size == 0:
        found = f"{array.dtype} {'x'.join(map(str, array.shape))}"
        raise WeightsError(f"{path} holds '{key}' as {found}, expected numbers {expected}. {HOW}")
    if array.dtype.kind != "f":
        return array
    if not np.isfinite(array).all():
        raise WeightsError(f"{path} holds numbers in '{key}' that are not finite: it is damaged. {HOW}")
    return array.astype(np.float64, copy=False)


def _pickle_refused(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is a pickle, which could run code, and is not read. The same download has an .npz. {HOW}"
    )


log = logging.getLogger(__name__)

FindLandmarks = Callable[[HeadModel, Float32[Tensor, "V 3"]], HeadModel]
"""A head without landmarks and the paint of its dense vertices to the head with them (`head.embed.embed`)."""


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
