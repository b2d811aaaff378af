"""Suites from folders: every clip, or the share of RAVDESS and NeRSemble that this tool reports, by a fixed rule.

The paper takes 20 clips of RAVDESS and 80 of NeRSemble and does not say which. The rules here use nothing but names,
so that everybody who has the sets gets the same lists.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from expportrait_cli.benchmark.suite import Pair, Suite, check
from expportrait_cli.errors import InputError

log = logging.getLogger(__name__)

Layout = Literal["auto", "clips", "ravdess", "nersemble"]
ENDINGS = (".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v")
RAVDESS = re.compile(r"0[12]-01-(?P<emotion>\d\d)-(?P<intensity>\d\d)-(?P<words>\d\d-\d\d)-(?P<actor>\d\d)")
"""Modality (01 with sound, 02 without), channel 01 (speech), emotion, intensity, statement and repetition, actor."""
ACTORS, EMOTIONS = 20, ("03", "04", "05", "06", "07", "08", "02")
"""Happy, sad, angry, fearful, disgusted, surprised, calm: one after the other, actor by actor."""
FRONTAL = "cam_222200037"
"""NeRSemble's camera in front of the face."""
PERSON = re.compile(r"\d{3}")
PEOPLE, PER_PERSON = 20, 4
KINDS = ("EMO", "EXP", "SEN", "FREE")
"""What sequences are called: acted emotions, single expressions, sentences, and what the person likes."""
RULES = {
    "clips": "every clip of the folder, in the order of their names",
    "ravdess": f"speech; the first {ACTORS} actors by number; the k-th has the k-th of the emotions happy, sad, angry, "
    "fearful, disgusted, surprised, calm, again and again; of that: strong before normal intensity, first statement, "
    "first repetition, the film without sound before the one with it",
    "nersemble": f"camera {FRONTAL[4:]}; the first {PEOPLE} people by number with {PER_PERSON} sequences or more; of "
    "each the first EMO, EXP, SEN and FREE sequence by name, and in place of one that is missing the next by name",
}


def suite_of_folder(folder: Path, layout: Layout) -> Suite:
    """Choose clips of a folder for self-reenactment; `auto` knows both sets by their files' names.

    Raises:
        InputError: it holds no clip, or none of that set.
    """
    clips = sorted(
        path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and not _is_hidden(path, folder)
    )
    found = _layout(clips) if layout == "auto" else layout
    match found:
        case "ravdess":
            chosen = _ravdess(clips)
            wanted = ACTORS
        case "nersemble":
            chosen = _nersemble(clips, folder)
            wanted = PEOPLE * PER_PERSON
        case _:
            chosen = [(_name(path, folder), path) for path in clips if path.parent == folder]
            wanted = 0
    if not chosen:
        raise InputError(f"{folder} holds no clip of the layout '{found}'. Give another folder, or --layout clips.")
    if len(chosen) < wanted:
        log.warning("%s has %d of the %d clips that the rule for %s asks for.", folder, len(chosen), wanted, found)
    pairs = tuple(Pair(name, "self", path.relative_to(folder).as_posix()) for name, path in chosen)
    return check(Suite(folder.name or "suite", folder, pairs, rule=f"{found}: {RULES[found]}"), folder)


def _layout(clips: list[Path]) -> Literal["clips", "ravdess", "nersemble"]:
    if any(RAVDESS.fullmatch(path.stem) for path in clips):
        return "ravdess"
    return "nersemble" if any(path.stem == FRONTAL for path in clips) else "clips"


def _ravdess(clips: list[Path]) -> list[tuple[str, Path]]:
    actors: dict[str, list[tuple[re.Match[str], Path]]] = defaultdict(list)
    for path in clips:
        if found := RAVDESS.fullmatch(path.stem):
            actors[found["actor"]].append((found, path))
    chosen = []
    for index, (_, films) in enumerate(sorted(actors.items())[:ACTORS]):
        emotion = EMOTIONS[index % len(EMOTIONS)]
        # Of an actor without that emotion, whatever comes first.
        _, path = min(films, key=lambda film: _ravdess_order(film[0], film[1], emotion))
        chosen.append((path.stem, path))
    return chosen


def _ravdess_order(found: re.Match[str], path: Path, emotion: str) -> tuple[bool, int, str, int, str]:
    return (found["emotion"] != emotion, -int(found["intensity"]), found["words"], -int(path.stem[:2]), str(path))


def _nersemble(clips: Iterable[Path], folder: Path) -> list[tuple[str, Path]]:
    people: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in clips:
        parts = path.relative_to(folder).parent.parts
        person = next((part for part in parts if PERSON.fullmatch(part)), None)
        sequence = next((part for part in reversed(parts) if part.partition("-")[0] in KINDS), None)
        if path.stem == FRONTAL and person and sequence:
            people[person].setdefault(sequence, path)
    enough = [(person, films) for person, films in sorted(people.items()) if len(films) >= PER_PERSON]
    return [(f"{person}_{name}", films[name]) for person, films in enough[:PEOPLE] for name in _four(films)]


def _four(films: Iterable[str]) -> list[str]:
    names = sorted(films)
    first = [next((name for name in names if name.partition("-")[0] == kind), None) for kind in KINDS]
    chosen = [name for name in first if name is not None]
    return sorted([*chosen, *(name for name in names if name not in chosen)][:PER_PERSON])


def _name(path: Path, folder: Path) -> str:
    return "-".join(path.relative_to(folder).with_suffix("").parts)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
