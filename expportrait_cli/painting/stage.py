"""The painter that was asked for, or the best that is installed, and the film that it paints."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import UInt8

from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.files import sha256
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import GenerateConfig, WanConfig
from expportrait_cli.errors import FilmError, UsageError, WeightsError
from expportrait_cli.head import HeadModel
from expportrait_cli.painting.mini import KIND
from expportrait_cli.painting.scene import Canvas, Painter, ProxyPainter, Scene
from expportrait_cli.painting.wan import require_packages
from expportrait_cli.weights.catalogue import FETCHED, folders, weights_file
from expportrait_cli.weights.folders import MANIFEST, Folder, FolderName, kind_of, read_folder

FOLDERS: dict[FolderName, str] = {
    "wan-portrait": "wan-portrait",
    "wan-vace": "wan-vace-1.3b",
    "wan-v2v": "wan-t2v-1.3b",
}
"""Where the weights of each painter lie in the folder of weights, unless the user names another place."""
MINI = "mini.safetensors"
UNIFORM = 0.05
"""Contrast of a frame, as a share of the photo's, below which nothing was painted."""
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
    """Weights of the small painter."""
    lora: str = ""
    """Hash of what is worked into them."""

    @property
    def identity(self) -> dict[str, str]:
        """What the film depends on beside the settings: the painter, and the hashes of its weights."""
        weights = self.folder.sha256 if self.folder is not None else sha256(self.file) if self.file is not None else ""
        return {"painter": self.name, "weights": weights, "lora": self.lora}

    @property
    def licences(self) -> list[dict[str, str]]:
        """Weights that the tool did not bring along, as the run record lists them."""
        return [self.folder.row()] if self.folder is not None else []


def choose(config: GenerateConfig) -> Choice:
    """The painter of `config.backend`; `auto` is the best one that is there.

    The large ones are only chosen where they can run: with a GPU, and with weights that are there already.

    Raises:
        WeightsError: its weights are missing, or are no weights of it.
        UsageError: it has no weights to name.
    """
    named = Path(config.wan.weights) if config.wan.weights else None
    name = _best(named) if config.backend == "auto" else config.backend
    if name == "proxy" or name == "mini":
        if config.wan != WanConfig():
            raise UsageError(
                f"Options of Wan transformers were given, and {name} paints this film. Name a `backend` that is one, "
                "or leave them out."
            )
        return Choice(name, file=weights_file(MINI) if name == "mini" else None)
    return Choice(name, _folder(name, named), lora=_hash_of(config.wan.lora))


def painter_of(config: GenerateConfig) -> Painter:
    """Make the painter of `config.backend`.

    Raises:
        WeightsError: its weights are missing, or are no weights of it.
        UsageError: its options do not fit it, the machine, or each other.
    """
    choice = choose(config)
    match choice:
        case Choice(name="wan-portrait" | "wan-vace" | "wan-v2v", folder=Folder() as folder):
            require_packages()
            from expportrait_cli.painting.wan.painters import WanPainter

            identity = folder.sha256 + choice.lora
            return WanPainter(folder.kind, folder.path, config.wan, config.seed, identity=identity)
        case Choice(name="mini", file=Path() as file):
            from expportrait_cli.painting.mini import MiniPainter, load_mini

            return MiniPainter(load_mini(file), config.size)
        case _:
            return ProxyPainter()


def _best(named: Path | None) -> Literal["proxy", "mini"] | FolderName:
    if named is not None:
        return kind_of(named)
    if find_spec("diffusers") is None:
        return "proxy"
    if torch.cuda.is_available():
        for name in ("wan-portrait", "wan-vace"):
            path = _fetched(name)
            # A download that was cut short is no reason to stop.
            if path is not None and any((path / sign).is_file() for sign in (FETCHED, MANIFEST)):
                return name
    pass

    mini = next((root / MINI for root in folders() if (root / MINI).is_file()), None)
    return "mini" if mini is not None and has_passed(mini) else "proxy"


def _hash_of(lora: str) -> str:
    if not lora:
        return ""
    if not Path(lora).is_file():
        raise WeightsError(f"{lora} does not exist. Check `lora`.")
    return sha256(Path(lora))


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

    In the folder `keep` the painter leaves what it needs to go on in the middle of the film. With `driver` its clip
    says what is between the lips; without, the head model does.

    Raises:
        FilmError: a frame is torn, another picture, or one colour.
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


def only_helps(config: GenerateConfig) -> bool:
    """Meet the processes that were launched for one film; true if this one has helped the first to make it.

    Raises:
        UsageError: the film is not one that several processes can make.
        WeightsError: packages are missing.
    """
    require_packages()
    from expportrait_cli.painting.wan import together
    from expportrait_cli.painting.wan.painters import WanPainter
    from expportrait_cli.runtime import best_device

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
    """Put a canvas frame into the photo: what did not change keeps the photo's own pixels."""
    if frame.shape == photo.shape:
        return frame
    height, width = photo.shape[:2]
    changed = cv2.absdiff(frame, canvas.photo).max(2) > 2
    changed = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
    weight = cv2.GaussianBlur(cv2.resize(changed, (width, height), interpolation=cv2.INTER_LINEAR), (0, 0), 2)[
        ..., None
    ]
    large = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.rint(photo * (1 - weight) + large * weight).astype(np.uint8)


def has_passed(path: Path) -> bool:
    """Whether these weights were found better than the proxy (`expportrait train gate`).

    Raises:
        WeightsError: the file is no such network.
    """
    return bool(network_file.read_header(path, KIND)["made_by"].get("gate", {}).get("passed"))
