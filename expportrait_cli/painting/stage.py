"""Choice of the painter (by name, or the best one that is installed), and painting of the film."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import GenerateConfig, Representation, WanConfig
from expportrait_cli.errors import FilmError, UsageError, WeightsError
from expportrait_cli.head import HeadModel
from expportrait_cli.painting.canvas import Canvas
from expportrait_cli.painting.mini import KIND
from expportrait_cli.painting.scene import Painter, ProxyPainter, Scene
from expportrait_cli.painting.wan import require_packages
from expportrait_cli.runtime import best_device
from expportrait_cli.weights.catalogue import (
    FETCHED,
    MANIFEST,
    TINY_DECODER,
    Folder,
    FolderName,
    checked_file,
    entry,
    folders,
    found_file,
    kind_of,
    read_folder,
)

FOLDERS: dict[FolderName, str] = {
    "wan-portrait": "wan-portrait",
    "wan-vace": "wan-vace-1.3b",
    "wan-v2v": "wan-t2v-1.3b",
}
"""Default folder of each painter's weights, inside the weights folders."""
MINI = "mini.safetensors"
SEAM_PX = 10
"""Margin around the changed pixels, px of the photo, in which a pasted frame is blended with the photo."""
UNIFORM = 0.05
"""Contrast of a frame, as a share of the photo's, below which it counts as one colour."""
HOW: dict[FolderName, str] = {
    "wan-portrait": "Train one with `expportrait train generator`, and name its folder with `weights_folder`.",
    "wan-vace": "Run `expportrait weights fetch wan-vace-1.3b`, or name its folder with `weights_folder`.",
    "wan-v2v": "Run `expportrait weights fetch wan-t2v-1.3b`, or name its folder with `weights_folder`.",
}


@dataclass(frozen=True)
class Choice:
    """A painter and its weights."""

    name: Literal["proxy", "mini"] | FolderName
    folder: Folder | None = None
    file: Path | None = None
    """Weights file of `mini`."""
    lora: str = ""
    """Hashes and scales of the LoRAs; empty without one."""
    decoder: Path | None = None
    """File of the tiny decoder that replaces Wan's own; None without."""

    @property
    def identity(self) -> dict[str, str]:
        """Name of the painter and hashes of its weights, as inputs of a film."""
        weights = self.folder.sha256 if self.folder is not None else sha256(self.file) if self.file is not None else ""
        decoder = {"decoder": sha256(self.decoder)} if self.decoder is not None else {}
        return {"painter": self.name, "weights": weights, "lora": self.lora, **decoder}

    def check_shown(self, representation: Representation) -> None:
        """Raise UsageError if this is a generator that was trained on another `representation` of the head."""
        if self.name != "wan-portrait" or self.folder is None:
            return
        from expportrait_cli.painting.wan.manifest import read_manifest

        settings = read_manifest(self.folder.path).train.get("settings")
        known = settings.get("representation", "full") if isinstance(settings, dict) else "full"
        if known != representation:
            raise UsageError(
                f"{self.folder.path} was trained on normals of the {known} head, and the film's are of the "
                f"{representation} one. Give `representation={known}`, or a generator that was trained on these."
            )

    @property
    def licences(self) -> list[dict[str, str]]:
        """Rows of the run record about weights that are not part of the tool."""
        rows = [self.folder.row()] if self.folder is not None else []
        if self.decoder is not None:
            weight = entry(TINY_DECODER)
            digest = sha256(self.decoder)
            rows.append({"name": weight.name, "licence": weight.licence, "source": weight.source, "sha256": digest})
        return rows


def choose(config: GenerateConfig) -> Choice:
    """Choose the painter of `config.backend`; for `auto`, the best one that is installed.

    `auto` chooses Wan painters only with a GPU, and with weights that were compared with the proxy on this machine; or
    if the user names their weights.

    Raises:
        WeightsError: the painter's weights are missing, or are another painter's.
        UsageError: there are options of Wan transformers, and the painter is another one.
    """
    named = _named(config.wan.weights) if config.wan.weights else None
    name = _best(named) if config.backend == "auto" else config.backend
    if name == "proxy" or name == "mini":
        if config.wan != WanConfig():
            raise UsageError(
                f"Options of Wan transformers were given, but the painter is {name}. Choose a Wan `backend`, "
                "or leave them out."
            )
        return Choice(name, file=found_file(entry("mini")) if name == "mini" else None)
    decoder = checked_file(TINY_DECODER) if config.wan.vae == "tiny" else None
    return Choice(name, _folder(name, named), lora=_hash_of(config.wan), decoder=decoder)


COMPARED = "compared.json"
"""File in the cache folder: hashes of weights that were compared with the proxy here, and the pages of these tests."""


def is_compared(folder: Folder) -> bool:
    """True if `compare-recipes` has compared these weights with the proxy on this machine; `auto` needs that."""
    return folder.sha256 in _compared()


def note_comparison(folder: Folder, page: Path) -> None:
    """Record that these weights were compared with the proxy, so that `auto` may choose them."""
    path = folders()[-1] / COMPARED
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        partial.write_text(json.dumps({**_compared(), folder.sha256: str(page.resolve())}, indent=1) + "\n", "utf-8")


def _compared() -> dict[str, str]:
    try:
        content = read_json(folders()[-1] / COMPARED)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def painter_of(config: GenerateConfig) -> Painter:
    """Make the painter of `config.backend`.

    Raises:
        WeightsError: the painter's weights are missing, or are another painter's.
        UsageError: an option does not fit the painter, the machine, or another option.
    """
    choice = choose(config)
    match choice:
        case Choice(name="wan-portrait" | "wan-vace" | "wan-v2v", folder=Folder() as folder):
            require_packages()
            from expportrait_cli.painting.wan.painters import WanPainter

            identity = "".join(choice.identity.values())
            return WanPainter(folder.kind, folder.path, config.wan, config.seed, identity=identity)
        case Choice(name="mini", file=Path() as file):
            from expportrait_cli.painting.mini import MiniPainter, load_mini

            return MiniPainter(load_mini(file).to(best_device()), config.size)
        case _:
            return ProxyPainter()


def _best(named: Path | None) -> Literal["proxy", "mini"] | FolderName:
    if named is not None:
        return kind_of(named)
    if find_spec("diffusers") is None:
        return "proxy"
    if best_device().type == "cuda":
        for name in ("wan-portrait", "wan-vace"):
            path = _fetched(name)
            # An incomplete download is passed over.
            is_whole = path is not None and any((path / sign).is_file() for sign in (FETCHED, MANIFEST))
            if path is not None and is_whole and is_compared(read_folder(path, name)):
                return name

    mini = next((root / MINI for root in folders() if (root / MINI).is_file()), None)
    return "mini" if mini is not None and has_passed(mini) else "proxy"


def _hash_of(config: WanConfig) -> str:
    """Hashes of the LoRAs, with their scales, as one text."""
    rows = []
    for file, scale in config.loras():
        if not Path(file).is_file():
            raise WeightsError(f"{file} does not exist. Check `lora`.")
        rows.append(f"{sha256(Path(file))}:{scale:g}")
    return rows[0].removesuffix(":1") if len(rows) == 1 else ",".join(rows)


def _folder(name: FolderName, named: Path | None) -> Folder:
    path = named or _fetched(name)
    if path is None:
        raise WeightsError(
            f"{name} has no weights here: looked for {FOLDERS[name]} in the weights folders. {HOW[name]}"
        )
    kind = kind_of(path)
    if kind != name:
        raise WeightsError(f"{path} holds weights of {kind}, expected {name}'s. {HOW[name]}")
    return read_folder(path, kind)


def _named(weights: str) -> Path:
    """Find a folder by its path, or by its name in the weights folders."""
    path = next((place for place in (Path(weights), *(root / weights for root in folders())) if place.is_dir()), None)
    if path is None:
        raise WeightsError(f"{weights} is no folder, and none of the weights folders. Check `weights_folder`.")
    return path


def _fetched(name: FolderName) -> Path | None:
    return next((root / FOLDERS[name] for root in folders() if (root / FOLDERS[name]).is_dir()), None)


def paint(
    head_fit: HeadFit,
    meshes: Meshes,
    head: HeadModel,
    config: GenerateConfig,
    *,
    start: int = 0,
    end: int | None = None,
    keep: Path | None = None,
    driver: Tracking | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Paint frames `start` to `end`: the crop at `config.size`, or with paste-back the whole photo at its own size.

    `keep`: folder in which a painter saves what it needs to resume in the middle of a film. `driver`: tracking of the
    clip that the inside of the mouth is read from; if None, the mouth is that of the head model.

    Raises:
        FilmError: a frame is damaged, does not show the photo's face, or has only one colour.
    """
    painter = painter_of(config)
    scene = replace(Scene.of(head_fit, meshes, head, config, driver), detail=painter.detail)
    frames = painter.paint(scene.still, scene.sketches, start=start, count=meshes.frame_count, keep=keep)
    for index, frame in enumerate(islice(frames, None if end is None else end - start), start):
        if frame[::4, ::4].std() < UNIFORM * scene.canvas.photo.std():
            raise FilmError(
                f"Frame {index} of the film is one colour. This is a fault of the painter or of its weights; run "
                "`expportrait weights verify`, or choose another `backend`."
            )
        yield paste(scene.whole, scene.canvas, frame) if config.paste_back else frame


def shown_control(
    head_fit: HeadFit, meshes: Meshes, head: HeadModel, config: GenerateConfig
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the conditions of wan-vace for a film (`control_sheet`), without any weights.

    Raises:
        WeightsError: packages are missing.
    """
    require_packages()
    from expportrait_cli.painting.wan.vace import control_sheet

    scene = Scene.of(head_fit, meshes, head, config)
    return control_sheet(scene.still, scene.sketches, meshes.frame_count, config.wan.control)


def only_helps(config: GenerateConfig) -> bool:
    """Join the processes that were launched for one film; all but the first help it, and return True when it is done.

    Raises:
        UsageError: several processes cannot make this film.
        WeightsError: packages are missing.
    """
    require_packages()
    from expportrait_cli.painting.wan import together
    from expportrait_cli.painting.wan.painters import WanPainter

    def load() -> tuple[together.Run, Callable[[], None]]:
        painter = painter_of(config)
        assert isinstance(painter, WanPainter)
        return painter.transformer()

    if together.gather_processes():
        together.help_first(load, best_device())
        return True
    together.first()
    choice = choose(config)
    together.check(choice.name, choice.folder and choice.folder.path, config.wan)
    return False


def paste(
    photo: UInt8[np.ndarray, "H W 3"], canvas: Canvas, frame: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Paste a canvas frame into the photo; where nothing changed, the photo's own pixels stay."""
    if frame.shape == photo.shape:
        return frame
    changed = cv2.absdiff(frame, canvas.photo).max(2) > 2
    if not changed.any():
        return photo.copy()
    changed = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
    scale = np.array(photo.shape[1::-1]) / frame.shape[1::-1]
    spans = [np.flatnonzero(changed.any(axis)) for axis in (0, 1)]
    # Only the box around the changes is resized: most of a large photo is background.
    first = np.maximum([int(span[0] * k) - SEAM_PX for span, k in zip(spans, scale, strict=True)], 0)
    last = np.minimum(
        [int((span[-1] + 1) * k) + SEAM_PX for span, k in zip(spans, scale, strict=True)], photo.shape[1::-1]
    )
    box = np.s_[first[1] : last[1], first[0] : last[0]]
    # Pixel centres, like `cv2.resize`.
    place = np.c_[np.diag(1 / scale), (first + 0.5) / scale - 0.5]
    size, border = tuple(int(n) for n in last - first), cv2.BORDER_REPLICATE
    weight, large = (
        cv2.warpAffine(picture, place, size, flags=kind | cv2.WARP_INVERSE_MAP, borderMode=border)
        for picture, kind in ((changed, cv2.INTER_LINEAR), (frame, cv2.INTER_CUBIC))
    )
    weight = cv2.GaussianBlur(weight, (0, 0), 2)
    out = photo.copy()
    out[box] = cv2.blendLinear(np.ascontiguousarray(photo[box]), large, 1 - weight, weight)
    return out


def has_passed(path: Path) -> bool:
    """True if these weights of `mini` passed the check against the proxy (`expportrait train gate`).

    Raises:
        WeightsError: the file is no `mini` network.
    """
    return bool(network_file.read_header(path, KIND)["made_by"].get("gate", {}).get("passed"))
