"""Provenance of a result: versions, weights, networks, licences, figures of quality, and the run record."""

import hashlib
import json
import logging
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash, write_json
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import FitConfig, Stretch
from expportrait_cli.detect.estimator import available, sapiens_file
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.version import __version__
from expportrait_cli.weights.catalogue import Weight, catalogue, entry, locate

log = logging.getLogger(__name__)

DOUBTFUL = 4.0
"""Mean landmark error, percent of the inter-ocular distance, above which a misfit is warned of. Real faces within 50
degrees of the camera stay below 2.5; seen from the side they reach 8."""


def check_source(path: Path, artifact: HeadFit | Tracking) -> None:
    """Raise InputError unless the photo or clip of an artifact still exists and is unchanged."""
    source = Path(artifact.source)
    if not source.is_file() or content_hash(source) != artifact.source_hash:
        raise InputError(f"{path} was made from {source}, which is gone or has changed. Make it again.")


def warn_of_misfit(source: Path, tracking: Tracking) -> None:
    """Warn if the head does not fit the landmarks: a face seen from the side, or not a person's."""
    error = float(tracking.error.mean())
    if error > DOUBTFUL:
        misfit = f"{error:.1f} % of the distance between the eyes, expected below {DOUBTFUL:.0f}"
        log.warning("%s: the head fits the face badly (%s). Choose a person's face from the front.", source, misfit)


def tracking_quality(tracking: Tracking) -> dict[str, Any]:
    """Figures of a tracking's quality: frames by state, and the landmark error."""
    return {
        "frames": len(tracking.error),
        "frames_interpolated": int((tracking.state == 1).sum()),
        "frames_held": int((tracking.state == 2).sum()),
        "frames_not_trusted": int(tracking.distrusted.sum()),
        "landmark_error_percent_iod": round(float(tracking.error.mean()), 3),
    }


def fit_quality(head_fit: HeadFit) -> dict[str, Any]:
    """Figures of a fit's quality: overlap with the matte, and the error that folds explain."""
    quality: dict[str, Any] = {"silhouette_iou": round(float(head_fit.silhouette_iou), 4)}
    if len(head_fit.dynamic_offset):
        quality["frames"] = len(head_fit.dynamic_offset)
    compared = np.isfinite(head_fit.dynamic_loss).all(1)
    if compared.any():
        without, with_folds = head_fit.dynamic_loss[compared].mean(0).clip(1e-9)
        quality["folds_explain_percent"] = round(float(100 * (1 - with_folds / without)), 1)
    return quality


PACKAGES = ("torch", "warp-lang", "mediapipe", "numpy", "opencv-contrib-python", "imageio-ffmpeg", "pillow")
SYNTHETIC = "AI-generated: synthetic portrait film, made from a photo by"


def synthetic_tags() -> dict[str, str]:
    """Metadata of every film that the tool writes, which declare it as AI-generated."""
    maker = f"expportrait {__version__}"
    return {"comment": f"{SYNTHETIC} {maker}", "description": f"{SYNTHETIC} {maker}", "artist": maker}


def versions() -> dict[str, str]:
    """Versions of Python, the tool and the packages that a result depends on."""
    found = {"python": platform.python_version(), "expportrait-cli": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def licences(stages: tuple[str, ...]) -> list[dict[str, str]]:
    """Name, licence, source and hash of the weights that stages use."""
    return [
        {"name": weight.name, "licence": weight.licence, "source": weight.source, "sha256": weight.sha256}
        for weight in catalogue()
        if set(weight.needed_by) & set(stages)
    ]


def network_of(config: FitConfig) -> list[dict[str, str]]:
    """The network whose normals a fit with these settings uses on this machine, as rows of `licences`; often none.

    Its sha256 is computed from the file, not the published one, so that it differs for another file.
    """
    if config.quality == "draft" or config.supervision in ("shading", "none"):
        return []
    name = available()[0] if config.supervision == "auto" else config.supervision
    weight = {"david": entry("david"), "sapiens": sapiens_file()}.get(name)
    path = locate(weight) if weight is not None else None
    if weight is None or path is None:
        return []
    return [
        {
            "name": weight.name,
            "licence": weight.licence,
            "source": weight.source,
            "sha256": _digest(path, path.stat().st_size, path.stat().st_mtime_ns),
        },
    ]


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Hash a large file; once per process, as long as its size and time do not change."""
    return content_hash(path)


def networks_behind(head: Path) -> list[dict[str, str]]:
    """Networks that took part in a .head.npz, as its header names them.

    Headers of earlier versions have none, whatever the head was made with.
    """
    made_by = npz.read_header(head)["made_by"]
    rows = made_by.get("networks") if isinstance(made_by, dict) else None
    return [
        {str(key): str(value) for key, value in row.items()}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and {"name", "licence"} <= row.keys()
    ]


CHECKSUM = "checksum"


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write a run record as JSON, in full or not at all, with a checksum of its content."""
    write_json(path, {**content, CHECKSUM: _checksum(content)})


def read_record(path: Path) -> dict[str, Any]:
    """Read a run record; empty if it is missing or damaged."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    # Earlier versions of the tool wrote no checksum.
    expected = content.pop(CHECKSUM, None)
    return content if expected in (None, _checksum(content)) else {}


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


Use = Literal["yes", "no", "unknown"]
INPUTS = "the rights in it, and the consent of the person it shows, are yours to clear"


@dataclass(frozen=True)
class Terms:
    """The terms of one licence."""

    commercial: Use
    """Permission for commercial use."""
    attribution: str
    """Names and notices that must be given."""


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
    "BFM 2009 non-commercial": Terms("no", "for research alone; read the licence"),
    "FLAME non-commercial": Terms("no", "for research alone; read the licence, flame.is.tue.mpg.de"),
    "several": Terms("unknown", "read the licence of each"),
}
STRANGE = Terms("unknown", "read the licence")
UNSTATED = "unstated"
Kind = Literal["weights", "estimator", "data", "input"]
ORDER: tuple[Kind, ...] = ("weights", "estimator", "data", "input")
VERDICTS: dict[Use, str] = {
    "yes": "all {what} may be used commercially",
    "no": "not for commercial use: some {what} exclude it",
    "unknown": "unknown whether the {what} may be used commercially",
}


@dataclass(frozen=True)
class Part:
    """Weights, training data or an input of a film, or of its scores."""

    name: str
    kind: Kind
    """`weights` made the film; an `estimator` is weights that measured it; `data` are what weights were trained on."""
    licence: str
    commercial: Use
    attribution: str
    source: str


@dataclass(frozen=True)
class LicenceMap:
    """Licences of all parts of a film or of its scores, and the conclusion for commercial use."""

    parts: tuple[Part, ...]

    @property
    def commercial(self) -> Use:
        """Whether the weights permit commercial use: no if one excludes it, unknown if one does not state it.

        Training data do not count, since it is disputed whether their licence extends to weights; nor do inputs, which
        are the user's responsibility, nor estimators, which only measured the film.
        """
        return self._verdict("weights") or "unknown"

    @property
    def commercial_scores(self) -> Use | None:
        """Whether the estimators permit commercial use, as `commercial`; None without scores."""
        return self._verdict("estimator")

    def _verdict(self, kind: Kind) -> Use | None:
        uses = {part.commercial for part in self.parts if part.kind == kind}
        if not uses:
            return None
        return "no" if "no" in uses else "unknown" if "unknown" in uses else "yes"

    def to_json(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return {
            "commercial_use_of_the_weights": self.commercial,
            "commercial_use_of_the_estimators": self.commercial_scores,
            "parts": [asdict(part) for part in self.parts],
        }

    def lines(self) -> list[str]:
        """Format as text: the conclusions for the film and for its scores, if any, and a line per part."""
        scores = self.commercial_scores
        is_about_film = scores is None or any(part.kind == "weights" for part in self.parts)
        verdicts = [VERDICTS[self.commercial].format(what="weights behind this film")] if is_about_film else []
        verdicts += [VERDICTS[scores].format(what="estimators behind the scores")] if scores is not None else []
        rows = [
            f"{part.kind:<9} {part.name:<28} {part.licence:<22} commercial: {part.commercial:<8} {part.attribution}"
            for part in self.parts
        ]
        return [*(f"licences: {verdict}" for verdict in verdicts), *rows]


def licence_map(record: Mapping[str, Any]) -> LicenceMap:
    """Collect the licences of a run record: its weights, their training data, and the inputs."""
    parts: list[Part] = []
    for row in _rows(record.get("weights")):
        name, licence = str(row.get("name", "unnamed")), str(row.get("licence") or UNSTATED)
        parts += _with_data(_part(name, "weights", licence, str(row.get("source", ""))))
    inputs = record.get("inputs")
    for role, row in inputs.items() if isinstance(inputs, dict) else ():
        source = Path(str(row.get("path", ""))).name if isinstance(row, dict) else ""
        parts.append(Part(str(role), "input", UNSTATED, "unknown", INPUTS, source))
    return _map(parts)


def with_estimators(found: LicenceMap | None, weights: Iterable[Weight]) -> LicenceMap:
    """Add the estimators of the scores to the licences of films; `found` None: nothing is known of the film."""
    parts = list(found.parts) if found is not None else []
    for weight in weights:
        parts += _with_data(_part(weight.name, "estimator", weight.licence, weight.source))
    return _map(parts)


def of_film(film: Path) -> LicenceMap | None:
    """Licences of a film, from the run record beside it; None without one, or if it is another film's."""
    record = read_record(film.with_suffix(".json"))
    if record.get("sha256") != content_hash(film):
        return None
    return licence_map(record)


def stretch_behind(film: Path, target: Path) -> Stretch:
    """Range of the target that a film of this tool shows, from its run record; the whole clip without one."""
    record = _of_driver(film, target)
    try:
        return Stretch(**record["settings"]["driving_stretch"])
    except (KeyError, TypeError, UsageError):
        return Stretch()


def shows_another(film: Path, target: Path) -> bool:
    """True if, by its run record, the target drove the film and shows another person than the film."""
    quality = _of_driver(film, target).get("quality")
    return isinstance(quality, dict) and quality.get("same_person") is False


def _of_driver(film: Path, target: Path) -> dict[str, Any]:
    """Run record of a film; empty without one, if it is another film's, or if the target did not drive the film."""
    record = read_record(film.with_suffix(".json"))
    try:
        is_driver = record["inputs"]["driving"]["sha256"] == content_hash(target)
    except (KeyError, TypeError):
        return {}
    return record if is_driver and record.get("sha256") == content_hash(film) else {}


def together(maps: Iterable[LicenceMap]) -> LicenceMap:
    """Licences of the weights and data of several films, without their inputs."""
    parts = [part for found in maps for part in found.parts if part.kind != "input"]
    return _map(sorted(parts, key=lambda part: part.name))


def _map(parts: Iterable[Part]) -> LicenceMap:
    """Sort parts by kind; of parts of the same kind and name, the last one is kept."""
    unique = {(part.kind, part.name): part for part in parts}
    return LicenceMap(tuple(sorted(unique.values(), key=lambda part: ORDER.index(part.kind))))


def _with_data(part: Part) -> list[Part]:
    """Return weights with their training data, as in the catalogue, or an entry that these are not stated."""
    known = next((weight.data for weight in catalogue() if weight.name == part.name), ())
    data = known or ((f"what {part.name} was trained on", UNSTATED),)
    return [part, *(_part(what, "data", licence, f"behind {part.name}") for what, licence in data)]


def _part(name: str, kind: Kind, licence: str, source: str) -> Part:
    terms = TERMS.get(licence, STRANGE)
    return Part(name, kind, licence, terms.commercial, terms.attribution, source)


def _rows(found: Any) -> list[dict[str, Any]]:
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
