"""Table 1 of the paper: what it says of itself and of five others, on clips that it does not name."""

from dataclasses import dataclass

PUBLISHED_NOTE = (
    "published, other clips: Table 1 of the ExpPortrait paper, 20 clips of RAVDESS and 80 of NeRSemble at 512 px. It "
    "does not say which estimators its AED and APD rest on, nor which networks its CSIM and LPIPS: "
    "read them beside each other, never subtract them. The cross AED and APD of two of its rows are identical."
)


@dataclass(frozen=True)
class PublishedRow:
    """One method of Table 1."""

    method: str
    self_scores: tuple[float, ...]
    """As `SELF_COLUMNS`."""
    cross_scores: tuple[float, ...]
    """As `CROSS_COLUMNS`."""


SELF_COLUMNS = ("PSNR", "SSIM", "LPIPS", "L1", "AED", "APD", "CSIM")
CROSS_COLUMNS = ("AED", "APD", "CSIM")
PUBLISHED = (
    PublishedRow(
        "LivePortrait", (23.2897, 0.82985, 0.37339, 0.04619, 0.12924, 0.02144, 0.82972), (0.28641, 0.23048, 0.72869)
    ),
    PublishedRow(
        "AniPortrait", (22.2527, 0.80838, 0.30018, 0.04078, 0.17581, 0.01631, 0.76038), (0.22753, 0.08784, 0.62998)
    ),
    PublishedRow(
        "Follow-Your-Emoji",
        (25.6872, 0.84146, 0.23645, 0.02905, 0.14717, 0.01485, 0.80284),
        (0.22069, 0.02338, 0.68373),
    ),
    PublishedRow(
        "HunyuanPortrait", (22.9453, 0.79333, 0.27573, 0.03962, 0.15593, 0.02329, 0.81150), (0.22753, 0.08784, 0.67451)
    ),
    PublishedRow(
        "X-NeMo", (21.5618, 0.78051, 0.32411, 0.04760, 0.13671, 0.01789, 0.83018), (0.17092, 0.02101, 0.72164)
    ),
    PublishedRow(
        "ExpPortrait", (26.5507, 0.85908, 0.18394, 0.02160, 0.13185, 0.00948, 0.83506), (0.21092, 0.01277, 0.72917)
    ),
)


def published_json() -> dict[str, object]:
    """The rows as plain JSON types."""
    return {
        "note": PUBLISHED_NOTE,
        "rows": [
            {
                "method": row.method,
                "self": dict(zip(SELF_COLUMNS, row.self_scores, strict=True)),
                "cross": dict(zip(CROSS_COLUMNS, row.cross_scores, strict=True)),
            }
            for row in PUBLISHED
        ],
    }


def published_text() -> str:
    """The rows as lines of text."""
    lines = [f"{'published':<18} " + " ".join(f"{name:>8}" for name in SELF_COLUMNS) + "   cross AED   x-APD  x-CSIM"]
    for row in PUBLISHED:
        own = " ".join(f"{value:8.4f}" for value in row.self_scores)
        lines.append(f"{row.method:<18} {own}   " + " ".join(f"{value:9.4f}" for value in row.cross_scores))
    return "\n".join([*lines, PUBLISHED_NOTE])
