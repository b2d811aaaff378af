"""Scores of a head that was fitted to one photo, and of its normal maps, in later frames of the same person.

Later frames, which were not used in the fit, serve as ground truth. Pure functions on arrays; pictures, mattes and
normal maps are those of the square crop, `S` px wide.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped, UInt8

from expportrait_cli.detect.crop import Sides
from expportrait_cli.detect.matte import Gaussian, lab_colours

OUTLINE_TURNS_DEG = ((15, 30), (30, 45), (45, 60))
DETAIL_TURNS_DEG = ((5, 15), (15, 30), (30, 60))
RAYS_DEG = np.arange(-10.0, 86.0, 5.0)
"""Directions of the rays: angles from the horizontal at the back of the head up towards its top."""
CENTRE_M = np.array([0.0, 0.03, 0.0])
"""Origin of the rays, in the head frame."""
REACH_PX, STEP_PX, BORDER_PX = 400, 0.5, 2.0
INSIDE, FACING = 0.95, 0.3
"""Least matte, and least cosine of the normal to the viewer, of pixels whose shading is compared."""
HIGH_PASS_MM = {"skin": 4.0, "forehead": 4.0, "hair": 4.0, "clothes": 12.0}
"""Standard deviation of the Gaussian of the high-pass filter, mm: smoother variation is lighting, not detail."""
SURROUNDED, LEAST_PX = 0.9, 300
"""Least share of the Gaussian inside the region, and fewest pixels that are compared."""
SHIFT_PX, AGREEMENT = 4, ("r", "r_registered", "gain", "explained")
"""Largest shift of the picture in registration, px; and names of the values of `agreement`."""
EAR_PX, APART = 60, 1.5
"""Fewest pixels of an ear that are measured, and least Mahalanobis distance between colours of skin and of hair."""

Plane = Float32[np.ndarray, "S S"]
Mask = Bool[np.ndarray, "S S"]


@dataclass(frozen=True)
class Frame:
    """A later frame, and the rendered head in it."""

    row: int
    """Number of the frame in the clip."""
    turn_deg: float
    """Rotation about the vertical axis since the first frame."""
    picture: UInt8[np.ndarray, "S S 3"]
    log_luminance: Plane
    """Log intensity of the picture; NaN where it is clipped."""
    matte: Plane
    normals: Float32[np.ndarray, "S S 3"]
    """x right, y up, z to the viewer; shorter than one at the blended outline."""
    covered: Plane
    """Share of the pixel that the head covers."""
    vertices: Int64[np.ndarray, "S S"]
    """Vertex that each pixel shows, -1 for background."""
    rotation: Float[np.ndarray, "3 3"]
    """R_cam_head."""
    translation: Float[np.ndarray, " 3"]
    """Origin of the head frame in the camera, m."""
    focal_px: float
    chin_px: Float[np.ndarray, " 2"]
    relief_drawn: Plane
    """Height of the head's static detail at each pixel, mm; NaN where the photo does not show the surface."""
    relief_read: Plane
    """Height of detail read from this picture, mm, in the way in which the photo's was read."""
    box: Sides
    """Left, top, right and bottom of the source picture in the crop, px: outside of it the crop repeats its edge."""

    @property
    def mm_per_px(self) -> float:
        """Size of a pixel at the distance of the head."""
        return 1000 * float(self.translation[2]) / self.focal_px

    def project(self, point: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 2"]:
        """Pixel of a point of the head frame."""
        seen = self.rotation @ point + self.translation
        return seen[:2] / seen[2] * self.focal_px + self.covered.shape[0] / 2


def outline(frame: Frame) -> dict[str, Any]:
    """Overlap of rendered head and matte above the chin, and mean distance, mm, between their outlines behind the ear.

    Distances are positive where the head is too large, along rays from the skull's centre. Rays on which the matte
    reaches the picture's border are left out; where only the head does, it ends there. NaN if all rays are left out.
    """
    upright = frame.project(np.array([0, 0.12, 0])) - frame.project(np.array([0, -0.05, 0]))
    up = upright / np.linalg.norm(upright)
    y, x = np.mgrid[: len(frame.matte), : len(frame.matte)] + 0.5
    left, top, right, bottom = frame.box
    judged = (x - frame.chin_px[0]) * up[0] + (y - frame.chin_px[1]) * up[1] > 0
    judged &= (x > left) & (x < right) & (y > top) & (y < bottom)
    drawn, person = (frame.covered > 0.5) & judged, (frame.matte > 0.5) & judged
    across = np.array([-up[1], up[0]])
    centre = frame.project(CENTRE_M)
    back = -np.sign((frame.project(np.array([0, 0, 0.12])) - centre) @ across) * across
    angles = np.radians(RAYS_DEG)[:, None]
    directions = np.cos(angles) * back + np.sin(angles) * up
    reach, _ = rays(frame.covered, centre, directions, frame.box)
    wanted, is_known = rays(frame.matte, centre, directions, frame.box)
    away = np.where(is_known, reach - wanted, np.nan) * frame.mm_per_px
    known = away[is_known]
    return {
        "iou": float((drawn & person).sum() / max((drawn | person).sum(), 1)),
        "signed_mm": mean(known),
        "mm": mean(np.abs(known)),
        "p90_mm": float(np.percentile(np.abs(known), 90)) if len(known) else np.nan,
        "max_mm": float(np.abs(known).max()) if len(known) else np.nan,
        "rays_mm": away.tolist(),
    }


def rays(
    mask: Plane, centre: Float[np.ndarray, " 2"], directions: Float[np.ndarray, "N 2"], box: Sides
) -> tuple[Float[np.ndarray, " N"], Bool[np.ndarray, " N"]]:
    """Distance, px, at which each ray leaves a mask for the last time, and True if that is inside the picture."""
    steps = np.arange(0, REACH_PX, STEP_PX)
    places = centre + directions[:, None] * steps[:, None]
    x, y = places[..., 0], places[..., 1]
    values = cv2.remap(mask, (x - 0.5).astype(np.float32), (y - 0.5).astype(np.float32), cv2.INTER_LINEAR)
    # The outer half pixel of a picture has no neighbour for the interpolation.
    outside = (x < box[0] + 0.5) | (x > box[2] - 0.5) | (y < box[1] + 0.5) | (y > box[3] - 0.5)
    border = np.where(outside.any(1), outside.argmax(1), len(steps))
    values[np.arange(len(steps)) >= border[:, None]] = 0
    inside = values > 0.5
    last = np.where(inside.any(1), len(steps) - 1 - inside[:, ::-1].argmax(1), 0)
    after = np.minimum(last + 1, len(steps) - 1)
    first, second = np.take_along_axis(values, np.c_[last, after], 1).T.astype(np.float64)
    share = np.where(first > 0.5, (first - 0.5) / np.maximum(first - second, 1e-6), 0.0)
    is_known = last * STEP_PX < (border - 1) * STEP_PX - BORDER_PX
    return np.where(is_known, last + np.clip(share, 0, 1), border - 1) * STEP_PX, is_known


def high_passed(values: Plane, inside: Mask, sigma_px: float) -> tuple[Plane, Mask]:
    """Subtract a Gaussian blur over a region; return the difference, and where it is valid.

    Near the border the Gaussian covers one side only, so that smooth slopes would remain.
    """
    weight = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma_px)
    low = cv2.GaussianBlur(np.where(inside, values, 0).astype(np.float32), (0, 0), sigma_px)
    return values - low / np.maximum(weight, 1e-3), inside & (weight > SURROUNDED)


def agreement(made: Plane, shown: Plane, inside: Mask) -> dict[str, float]:
    """Compare detail of the head with that of the picture; both are high-passed.

    r: correlation. r_registered: the same with the picture moved by up to `SHIFT_PX`, the best of all shifts, which
    raises unrelated detail to about 0.1. gain: strength of the head's detail along the picture's, 1 is right.
    explained: 1 - mean |picture - head| / mean |picture|, negative if the head has detail that the picture lacks.
    """
    if inside.sum() < LEAST_PX:
        return dict.fromkeys(AGREEMENT, np.nan)
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    made, shown, inside = made[box], shown[box], inside[box]
    found = weighted_agreement(made, shown, inside)
    found["r_registered"] = _registered(made, shown, inside)
    return {name: found[name] for name in AGREEMENT}


def weighted_agreement(
    made: Float[np.ndarray, "*B"], shown: Float[np.ndarray, "*B"], weight: Shaped[np.ndarray, "*B"]
) -> dict[str, float]:
    """Correlation, gain and explained share as in `agreement`, of weighted values."""
    used = weight > 0
    w, a, b = (values[used].astype(np.float64) for values in (weight, made, shown))
    if not used.any():
        return dict.fromkeys(("r", "gain", "explained"), np.nan)
    a_own, b_own = a - np.average(a, weights=w), b - np.average(b, weights=w)
    both = np.sqrt((w * a_own * a_own).sum() * (w * b_own * b_own).sum())
    return {
        "r": float((w * a_own * b_own).sum() / max(both, 1e-12)),
        "gain": float((w * a * b).sum() / max((w * b * b).sum(), 1e-12)),
        "explained": float(1 - (w * np.abs(b - a)).sum() / max((w * np.abs(b)).sum(), 1e-12)),
    }


def _registered(made: np.ndarray, shown: np.ndarray, inside: np.ndarray) -> float:
    """The largest correlation of all shifts, each over the pixels that are inside in both."""
    weight = inside.astype(np.float64)
    a, b = (np.where(inside, each, 0).astype(np.float64) for each in (made, shown))
    (height, width), best = made.shape, -1.0
    for dy, dx in np.ndindex(2 * SHIFT_PX + 1, 2 * SHIFT_PX + 1):
        y, x = dy - SHIFT_PX, dx - SHIFT_PX
        here = slice(max(0, -y), min(height, height - y)), slice(max(0, -x), min(width, width - x))
        there = slice(max(0, y), min(height, height + y)), slice(max(0, x), min(width, width + x))
        v, w, p, q = weight[here], weight[there], a[here], b[there]
        sums = ((v, w), (p, w), (v, q), (p * p, w), (v, q * q), (p, q))
        n, sp, sq, spp, sqq, spq = (np.einsum("ij,ij->", *each) for each in sums)
        spread = (spp - sp * sp / max(n, 1)) * (sqq - sq * sq / max(n, 1))
        if n >= LEAST_PX / 2 and spread > 0:
            best = max(best, (spq - sp * sq / n) / np.sqrt(spread))
    return float(best)


@dataclass(frozen=True)
class Colours:
    """Colours of skin and hair in a photo, as Gaussians in Lab."""

    skin: Gaussian
    hair: Gaussian

    @classmethod
    def of(cls, picture: UInt8[np.ndarray, "S S 3"], skin: Mask, hair: Mask) -> "Colours | None":
        """Fit both Gaussians; None if there are too few pixels, or if the colours are too similar."""
        if min(skin.sum(), hair.sum()) < LEAST_PX:
            return None
        lab = lab_colours(picture)
        found = cls(Gaussian.of(lab[skin]), Gaussian.of(lab[hair]))
        return found if found.skin.distance(found.hair) >= APART else None

    def is_skin(self, picture: UInt8[np.ndarray, "S S 3"]) -> Mask:
        """Pixels that are more likely skin than hair."""
        lab = lab_colours(picture)
        return self.skin.score(lab) > self.hair.score(lab)


@dataclass(frozen=True)
class Ear:
    """One ear of the fitted head."""

    vertices: Bool[np.ndarray, " V"]
    is_bare: bool
    """True if the ear is bare, false if hair covers it."""


def ear_agreement(frame: Frame, ears: Sequence[Ear], colours: Colours) -> float:
    """Share of the ears' pixels with the expected colour: skin if bare, hair if covered; NaN without pixels."""
    is_skin, hits, count = colours.is_skin(frame.picture), 0, 0
    for ear in ears:
        shown = (frame.vertices >= 0) & ear.vertices[frame.vertices] & (frame.covered > 0.99)
        if shown.sum() >= EAR_PX:
            hits += (is_skin[shown] == ear.is_bare).sum()
            count += shown.sum()
    return float(hits / count) if count else np.nan


def change_deg(before: Float32[np.ndarray, "S S 3"], after: Float32[np.ndarray, "S S 3"]) -> float:
    """Mean angle between the normals of two maps, over pixels that the surface covers in both; NaN without any."""
    lengths = np.minimum(*(np.linalg.norm(each, axis=-1) for each in (before, after)))
    both = lengths > 0.99
    chord = np.linalg.norm(before[both].astype(np.float64) - after[both], axis=-1)
    return mean(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))


def bend_change_deg(
    bends: Sequence[Float32[np.ndarray, "S S 3"]], places: Sequence[Float32[np.ndarray, "P 2"]]
) -> float:
    """Mean angle, degrees, between the effects of detail (`bends`) of two frames at the same surface points (px)."""
    if not len(places[0]):
        return np.nan
    before, after = (
        cv2.remap(bend, place[:, :1] - np.float32(0.5), place[:, 1:] - np.float32(0.5), cv2.INTER_LINEAR)
        for bend, place in zip(bends, places, strict=True)
    )
    chord = np.linalg.norm(before.astype(np.float64) - after, axis=-1)
    return mean(np.degrees(2 * np.arcsin(np.clip(chord / 2, 0, 1))))


@dataclass(frozen=True)
class Person:
    """Properties of the person and the fitted head that all frames share."""

    regions: Mapping[str, Bool[np.ndarray, " V"]]
    """Vertices of each region of `HIGH_PASS_MM`."""
    ears: Sequence[Ear]
    colours: Colours | None
    log_shade: Callable[[Float32[np.ndarray, "S S 3"]], Plane]
    """Log shading of a normal map under the clip's lighting."""


def detail(frame: Frame, person: Person) -> dict[str, dict[str, float]]:
    """Agreement of the shading of the head's normals with the picture's log luminance, by region."""
    return _by_region(frame, person, person.log_shade(frame.normals), frame.log_luminance)


def relief(frame: Frame, person: Person) -> dict[str, dict[str, float]]:
    """`agreement` of the photo's static detail, carried along with the head, with this frame's own, by region."""
    return _by_region(frame, person, frame.relief_drawn, frame.relief_read)


def _by_region(frame: Frame, person: Person, made: Plane, shown: Plane) -> dict[str, dict[str, float]]:
    seen = (frame.matte > INSIDE) & (frame.covered > 0.99) & (frame.normals[..., 2] > FACING) & (frame.vertices >= 0)
    seen &= np.isfinite(made) & np.isfinite(shown)
    is_skin = person.colours.is_skin(frame.picture) if person.colours is not None else None
    found = {}
    for name, vertices in person.regions.items():
        inside = seen & vertices[frame.vertices]
        # The colours of clothes are not in the model.
        if is_skin is not None and name != "clothes":
            inside &= is_skin == (name in ("skin", "forehead"))
        sides = (high_passed(each, inside, HIGH_PASS_MM[name] / frame.mm_per_px) for each in (made, shown))
        (drawn, trusted), (wanted, _) = sides
        found[name] = agreement(drawn, wanted, trusted)
    return found


COMPARISONS = {"detail": detail, "relief": relief}


def measure(frames: Sequence[Frame], person: Person) -> dict[str, Any]:
    """Scores of a clip, over all frames and by rotation, and those of each frame; NaN if not measured.

    A mean counts each frame once; `max_mm` is the largest of all.
    """
    rows = []
    for frame in frames:
        row = {"frame": frame.row, "turn_deg": frame.turn_deg}
        row |= {name: compare(frame, person) for name, compare in COMPARISONS.items()}
        if frame.turn_deg >= OUTLINE_TURNS_DEG[0][0]:
            row["outline"] = outline(frame)
        if person.colours is not None:
            row["ears"] = ear_agreement(frame, person.ears, person.colours)
        rows.append(row)
    return {
        "outline": {span(*turns): _outlines(rows, *turns) for turns in ((0, 180), *OUTLINE_TURNS_DEG)},
        **{
            name: {span(*turns): _details(rows, name, *turns) for turns in ((0, 180), *DETAIL_TURNS_DEG)}
            for name in COMPARISONS
        },
        "ears": mean([row["ears"] for row in rows if "ears" in row]),
        "frames": rows,
    }


def span(low: int, high: int) -> str:
    """Name of a range of rotations, degrees."""
    return "all" if high == 180 else f"{low}-{high}"


def _outlines(rows: Sequence[dict[str, Any]], low: int, high: int) -> dict[str, float]:
    found = [row["outline"] for row in rows if "outline" in row and low <= row["turn_deg"] < high]
    means = {name: mean([each[name] for each in found]) for name in ("iou", "signed_mm", "mm", "p90_mm")}
    largest = [each["max_mm"] for each in found if np.isfinite(each["max_mm"])]
    return {**means, "max_mm": max(largest, default=np.nan), "frames": len(found)}


def _details(rows: Sequence[dict[str, Any]], name: str, low: int, high: int) -> dict[str, dict[str, float]]:
    found = [row[name] for row in rows if low <= row["turn_deg"] < high]
    return {
        region: {score: mean([each[region][score] for each in found]) for score in AGREEMENT} for region in HIGH_PASS_MM
    }


def mean(values: Sequence[int | float] | np.ndarray) -> float:
    """Mean of the finite values; NaN without any."""
    known = np.asarray(values, np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else np.nan
