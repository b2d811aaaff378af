"""A prepared dataset on disk: `dataset.json`, and a folder for each clip."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import InputError
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)

KIND, VERSION = "dataset", 1
FILE, CLIPS = "dataset.json", "clips"
NAME = re.compile(r"[\w+.-]*[\w+-][\w+.-]*")
"""Allowed name of a clip's folder: it cannot be a path to outside of the dataset."""
VIDEO, TRACKING, HEAD = "clip.mp4", "track.npz", "head.npz"


@dataclass(frozen=True)
class Clip:
    """One clip to train on."""

    name: str
    person: str
    """Name of the person; clips of one person are all trained on, or all held out."""
    video: Path
    """The clip: square, `CROP_SIZE` px, without sound."""
    tracking: Path
    """`Tracking` of the video. The path inside it is that of the machine it was made on: use `video` instead."""
    head: Path
    """`HeadFit` with the dynamic offsets of every frame."""


@dataclass(frozen=True)
class Row:
    """Row of `dataset.json`: a clip, or a rejected part of a video."""

    name: str
    person: str
    source: str
    """Path of the video, relative to the folder of videos."""
    source_sha256: str
    first_frame: int
    frames: int
    rate: str
    status: Literal["accepted", "rejected"]
    reason: str
    """Reason of a rejection, with the measured value and the limit; else empty."""
    head_model: str
    figures: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Warnings of the stages for this clip."""


@dataclass(frozen=True)
class Dataset:
    """The accepted clips of a prepared dataset."""

    folder: Path
    head_model: str
    clips: tuple[Clip, ...]

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Read the accepted clips of a dataset.

        Raises:
            InputError: the folder is no dataset, is damaged, of a newer tool, or of several head models, or no clip was
                accepted.
        """
        content = read(folder)
        rows = [row for row in content["clips"] if row["status"] == "accepted"]
        if not rows:
            raise InputError(f"{folder} has no accepted clip. {folder / 'index.html'} lists why; prepare more videos.")
        models = sorted({row["head_model"] for row in rows})
        if len(models) > 1:
            raise InputError(
                f"{folder} mixes the head models {' and '.join(models)}. Prepare the videos again with one of them."
            )
        if not content["complete"]:
            log.warning("%s is not complete: run `expportrait data prepare` again to go on.", folder)
        clips = tuple(clip_of(folder, row["name"], row["person"]) for row in rows)
        for path in (path for clip in clips for path in (clip.video, clip.tracking, clip.head)):
            if not path.is_file():
                raise InputError(f"{path} is missing. Run `expportrait data prepare` again: it makes what is missing.")
        return cls(folder, models[0], clips)


def clip_of(folder: Path, name: str, person: str) -> Clip:
    """Return a clip with the paths of its files."""
    place = folder / CLIPS / name
    return Clip(name, person, place / VIDEO, place / TRACKING, place / HEAD)


def read(folder: Path) -> dict[str, Any]:
    """Read and check `dataset.json`.

    Raises:
        InputError: the file is missing, damaged, or of another kind or version.
    """
    path = folder / FILE
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no prepared set: it has no {FILE}. Make one: `expportrait data prepare FOLDER -o {folder}`."
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}). Run `expportrait data prepare` again.") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise InputError(f"{path} is not a set of this tool. Name the folder that `expportrait data prepare` wrote.")
    found = content.get("version")
    if found != VERSION:
        is_newer = isinstance(found, int) and found > VERSION
        remedy = "Update the tool." if is_newer else "Prepare the videos again."
        raise InputError(f"{path} is version {found}, this tool reads version {VERSION}. {remedy}")
    rows = content.get("clips")
    if not (isinstance(content.get("complete"), bool) and isinstance(rows, list) and all(map(_is_row, rows))):
        raise InputError(f"{path} is damaged. Run `expportrait data prepare` again.")
    return content


def _is_row(row: Any) -> bool:
    """True if a row has the keys that are read; the row of a video that cannot be read has an empty name."""
    texts = ("name", "person", "status", "head_model")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in texts)
        and (NAME.fullmatch(row["name"]) is not None or (not row["name"] and row["status"] == "rejected"))
    )


def write(
    folder: Path, rows: Sequence[Row], *, source: Path, head_model: str, settings: Mapping[str, Any], complete: bool
) -> None:
    """Write `dataset.json`, in full or not at all."""
    content = {
        "kind": KIND,
        "version": VERSION,
        "tool": f"expportrait {__version__}",
        "folder": str(source.resolve()),
        "head_model": head_model,
        "settings": dict(settings),
        "complete": complete,
    }
    # One row per line, for readability and for `grep`.
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    text = f'{json.dumps(content, indent=1)[:-2]},\n "clips": [\n{lines}\n]}}\n'
    with atomic_path(folder / FILE) as partial:
        partial.write_text(text, "utf-8")
