"""A prepared set on disk: `dataset.json` beside one folder a clip."""

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
"""Allowed name of a clip's folder: it cannot be a path that leads out of the dataset."""
VIDEO, TRACKING, HEAD = "clip.mp4", "track.npz", "head.npz"


@dataclass(frozen=True)
class Clip:
    """One clip to train on."""

    name: str
    person: str
    """Clips of one person go to one side of every split."""
    video: Path
    """Square, `CROP_SIZE` px, without sound."""
    tracking: Path
    """`Tracking` of the video. The path inside it is where the set was made: take `video` instead."""
    head: Path
    """`HeadFit` with the dynamic offsets of every frame."""


@dataclass(frozen=True)
class Row:
    """Row of `dataset.json`: a clip, or a part of a video that became none."""

    name: str
    person: str
    source: str
    """Path below the folder of videos."""
    source_sha256: str
    first_frame: int
    frames: int
    rate: str
    status: Literal["accepted", "rejected"]
    reason: str
    """Reason of a rejection: what was measured, and the limit."""
    head_model: str
    figures: dict[str, Any] = field(default_factory=dict)
    histograms: dict[str, list[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Warnings of the stages."""


@dataclass(frozen=True)
class Dataset:
    """A prepared set, for reading."""

    folder: Path
    head_model: str
    clips: tuple[Clip, ...]

    @classmethod
    def open(cls, folder: Path) -> "Dataset":
        """Read what was accepted.

        Raises:
            InputError: no prepared set, damaged, from a newer tool, of several head models, or nothing was accepted.
        """
        content = read(folder)
        rows = [row for row in content["clips"] if row["status"] == "accepted"]
        if not rows:
            raise InputError(f"{folder} holds no accepted clip. {folder / 'index.html'} says why; prepare more videos.")
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
                raise InputError(
                    f"{path} is missing. Run `expportrait data prepare` again: it makes what is not there."
                )
        return cls(folder, models[0], clips)


def clip_of(folder: Path, name: str, person: str) -> Clip:
    """Find the files of a clip."""
    place = folder / CLIPS / name
    return Clip(name, person, place / VIDEO, place / TRACKING, place / HEAD)


def read(folder: Path) -> dict[str, Any]:
    """Read `dataset.json` and check that it is one."""
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
    """Tell whether a row has what is read of it; a video that is no clip has no name."""
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
    # One row a line: a person can read it, and `grep` finds a clip.
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    text = f'{json.dumps(content, indent=1)[:-2]},\n "clips": [\n{lines}\n]}}\n'
    with atomic_path(folder / FILE) as partial:
        partial.write_text(text, "utf-8")
