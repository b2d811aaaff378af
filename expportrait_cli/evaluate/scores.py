"""The columns of an evaluation, and the scores that fill them."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Float64

from expportrait_cli import __version__

Mode = Literal["self", "cross"]
FACEMESH = "MediaPipe FaceMesh, static mode, on a crop of each frame"
PIXELS = "none (pixels in 0..1, mean over the three channels)"
REGIONS = {
    "frame": "the whole frame",
    "head": "an upright ellipse around the target's landmarks (0.85 x 0.95 of their box as half axes, raised by 0.12)",
    "face": "the convex hull of the target's landmarks inside the face oval",
}


@dataclass(frozen=True)
class Column:
    """One metric, with all that is needed to compare it with another paper's."""

    name: str
    unit: str
    better: Literal["higher", "lower", "like the target's"]
    estimator: str
    """What sees the face, or "none" for plain arithmetic on pixels."""
    definition: str
    source: str = ""
    """Where the definition comes from."""


def _pixel_columns(region: str, where: str) -> list[Column]:
    wang = "Wang et al. 2004; as skimage structural_similarity(gaussian_weights=True, use_sample_covariance=False)"
    return [
        Column(
            f"psnr_{region}",
            "dB",
            "higher",
            PIXELS,
            f"10 log10(1 / MSE) over {where}, at most 99; mean of the frames' dB",
        ),
        Column(
            f"ssim_g11_{region}",
            "1",
            "higher",
            PIXELS,
            f"SSIM map, Gaussian 11x11 window of sigma 1.5, data range 1, averaged over {where} less a border of 5 px",
            wang,
        ),
        Column(f"l1_{region}", "1", "lower", PIXELS, f"mean absolute difference over {where}"),
    ]


COLUMNS: tuple[Column, ...] = (
    *(column for region, where in REGIONS.items() for column in _pixel_columns(region, where)),
    *(
        Column(
            f"psnr_{region}_still",
            "dB",
            "higher",
            PIXELS,
            f"psnr_{region} of a film that only repeats the target's first frame: what any film has to beat",
        )
        for region in ("frame", "head")
    ),
    Column(
        "lmk_nme",
        "% IOD",
        "lower",
        FACEMESH,
        "mean distance of the 432 landmarks inside the face oval to the target's, over its outer eye corner distance",
    ),
    Column(
        "lmk_nme_aligned",
        "% IOD",
        "lower",
        FACEMESH,
        "lmk_nme after the best similarity of each frame; against a driver it includes how the two faces differ",
    ),
    Column(
        "lip_gap_error",
        "% IOD",
        "lower",
        FACEMESH,
        "difference of the mouth openings (landmarks 13 and 14), each over its own outer eye corner distance",
    ),
    Column(
        "lid_gap_error",
        "% IOD",
        "lower",
        FACEMESH,
        "difference of the eye openings (landmarks 159-145 and 386-374), each over its own IOD, mean of both eyes",
    ),
    Column(
        "identity_dlib",
        "distance",
        "lower",
        "dlib ResNet face recognition v1, five-point alignment",
        "Euclidean distance of the 128-d descriptors of output and reference; dlib calls below 0.6 the same person",
        "dlib, dlib_face_recognition_resnet_model_v1",
    ),
    Column(
        "jitter_lmk",
        "% IOD",
        "like the target's",
        FACEMESH,
        "mean second difference |p(t) - 2 p(t-1) + p(t-2)| of the output's landmarks inside the oval",
    ),
    Column("jitter_lmk_target", "% IOD", "like the target's", FACEMESH, "jitter_lmk of the target"),
    Column("found", "share", "higher", FACEMESH, "1 where a face was found in the output, else 0"),
    Column("found_target", "share", "higher", FACEMESH, "1 where a face was found in the target, else 0"),
)
NAMES = [column.name for column in COLUMNS]


@dataclass(frozen=True)
class Scores:
    """What a film scored, frame by frame."""

    KIND: ClassVar[str] = "scores"
    VERSION: ClassVar[int] = 1

    mode: Mode
    """self: the target is the truth, pixel by pixel. cross: the target is the driver, another picture."""
    output: str
    target: str
    reference: str
    """The photo that identity is compared with, or the target when its first frame is."""
    values: Float64[np.ndarray, "T C"]
    """One row a frame, one column per entry of `COLUMNS`; NaN where it could not be measured."""
    missing: dict[str, str]
    """Columns that no frame could have, and what they would need."""

    @property
    def first_frame(self) -> int:
        """First frame that the means count: in self mode frame 0 is the reference itself."""
        return 1 if self.mode == "self" else 0

    @property
    def means(self) -> dict[str, float | None]:
        """Mean of each column over the frames in which it could be measured; None without any."""
        return {name: _number(column[np.isfinite(column)].mean()) if n else None for name, column, n in self._scored()}

    @property
    def counts(self) -> dict[str, int]:
        """How many frames each mean is over: frames without a face are in `found`, and in no other mean."""
        return {name: n for name, _, n in self._scored()}

    @property
    def rows(self) -> list[dict[str, float | int | None]]:
        """One dict a frame."""
        return [{"frame": t} | dict(zip(NAMES, map(_number, row), strict=True)) for t, row in enumerate(self.values)]

    def _scored(self) -> list[tuple[str, np.ndarray, int]]:
        columns = self.values[self.first_frame :].T
        return [(name, c, int(np.isfinite(c).sum())) for name, c in zip(NAMES, columns, strict=True)]

    def to_json(self) -> dict[str, Any]:
        """Everything, with the definitions, as plain JSON types."""
        return {
            "kind": self.KIND,
            "version": self.VERSION,
            "made_by": f"expportrait {__version__}",
            "mode": self.mode,
            "output": self.output,
            "target": self.target,
            "reference": self.reference,
            "frames": len(self.values),
            "first_frame_of_means": self.first_frame,
            "means": self.means,
            "counts": self.counts,
            "missing": self.missing,
            "columns": [asdict(column) for column in COLUMNS],
            "rows": self.rows,
        }


def _number(value: float) -> float | None:
    # JSON has no NaN. Six digits are far below what any estimator resolves.
    return round(float(value), 6) if np.isfinite(value) else None


def table(scores: Scores) -> str:
    """The means as lines of text, and below them what is missing."""
    means, counts = scores.means, scores.counts
    measured = [column for column in COLUMNS if means[column.name] is not None]
    total = len(scores.values) - scores.first_frame
    lines = [f"{'metric':<18} {'mean':>9} {'unit':<9} {'better':<18} frames"]
    for column in measured:
        count = f"{counts[column.name]} of {total}"
        lines.append(f"{column.name:<18} {means[column.name]:>9.4f} {column.unit:<9} {column.better:<18} {count}")
    reasons = dict.fromkeys(scores.missing.values())
    for reason in reasons:
        names = [name for name, why in scores.missing.items() if why == reason]
        lines.append(f"not measured: {', '.join(names)} ({reason})")
    return "\n".join(lines)
