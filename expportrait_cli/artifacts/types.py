"""The files between the stages: one frozen dataclass each.

Letters: `T` frames, `L` landmarks (478), `K` identity and `E` expression dimensions, `V` dense vertices.
"crop px" are pixels of the square crop scaled to `CROP_SIZE`, x right, y down, pixel centres at +0.5.
The camera is the crop's: OpenCV axes (x right, y down, z forward), principal point at the crop's centre.
A `rotation` is the axis-angle of the rotation R from the frontal pose, R_cam_head = R · FRONTAL
(geometry/rotations.py), so that it is small for usual poses, and can be smoothed and edited.
"""

import hashlib
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, Int64, UInt8
from numpy.typing import ArrayLike

CROP_SIZE = 512
DISTRUSTED = 0.5
"""`Tracking.doubt` from which the landmarks of a frame are not used."""
DOUBTFUL = 0.2
"""`Tracking.doubt` from which a frame keeps its landmarks, but is not used as a neutral, key or reference frame."""


def surest(state: UInt8[np.ndarray, " T"], doubt: Float32[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Mask of reliable frames: tracked, with `doubt` below DOUBTFUL; all tracked frames if there is none."""
    seen = state == 0
    sure = seen & (doubt < DOUBTFUL)
    return sure if sure.any() else seen


class Range(NamedTuple):
    """Allowed values of the numbers of an array; arrays without a range may contain any finite numbers."""

    low: ArrayLike
    """Smallest value: one for all numbers, or one for each column."""
    high: ArrayLike
    """Largest value: one for all numbers, or one for each column."""
    has_nan: bool = False
    """True if the array may contain NaN, for values that were not measured."""


RATES = Fraction(1, 1000), Fraction(1000)
"""Lowest and highest frame rate, frames/s."""
TURN, PLACE, PIXEL = Range(-6.2832, 6.2832), Range(-1e3, 1e3), Range(-1e5, 1e5)
"""Ranges of rotations (rad), positions (m) and points in a crop (px)."""
OFFSET, COEFFICIENT, COUNT = Range(-0.5, 0.5), Range(-100, 100), Range(0, 2**31 - 1)
"""Ranges of mesh offsets (m), of expression and identity coefficients, and of indices (32 bits in renderers)."""
FOCAL = Range(1e-3, 1e6)
SIZE = Range(1, 1e6)
CROP = Range((-1e6, -1e6, 1e-3), (1e6, 1e6, 1e6))
POSE = {
    "expression": COEFFICIENT,
    "jaw": TURN,
    "gaze": TURN,
    "rotation": TURN,
    "translation": PLACE,
}


def rate_fault(numerator: int, denominator: int) -> str:
    """Describe what is wrong with a frame rate, as the end of "FILE holds ..."; empty if nothing is."""
    is_sane = numerator > 0 and denominator > 0 and RATES[0] <= Fraction(numerator, denominator) <= RATES[1]
    return "" if is_sane else f"the frame rate {numerator}/{denominator}, expected {RATES[0]} to {RATES[1]} frames/s"


@dataclass(frozen=True)
class Tracking:
    """Tracking of a photo (T = 1, rate 0/1) or a clip: landmarks, and a head model's parameters in every frame."""

    KIND: ClassVar[str] = "track"
    VERSION: ClassVar[int] = 3
    RANGES: ClassVar[dict[str, Range]] = {
        **POSE,
        "first_frame": COUNT,
        "size": SIZE,
        "crop": CROP,
        "focal_px": FOCAL,
        "landmarks": PIXEL,
        "identity": COEFFICIENT,
        "shoulders": PIXEL._replace(has_nan=True),
        "flow": Range((-1e3, -1e3, -1e6, -1e6), (1e3, 1e3, 1e6, 1e6)),
        "shot": COUNT,
        "state": Range(0, 2),
        "error": Range(0, 1e6),
        "doubt": Range(0, 1),
    }

    source: str
    """Absolute path of the photo or clip."""
    source_hash: str
    """SHA-256 of the source file's content."""
    head_model: str
    """Name of the head model that the parameters belong to."""
    size: Int64[np.ndarray, " 2"]
    """Width and height of the upright source, px."""
    rate: Int64[np.ndarray, " 2"]
    """Frame rate as numerator and denominator; 0/1 for a photo."""
    crop: Float32[np.ndarray, " 3"]
    """Square crop in the upright source: left, top, side, px. May reach over the border."""
    focal_px: float
    """Focal length in crop px."""
    landmarks: Float32[np.ndarray, "T 478 2"]
    """FaceMesh landmarks, crop px."""
    identity: Float32[np.ndarray, " K"]
    """Identity coefficients, shared by all frames (standard deviations)."""
    expression: Float32[np.ndarray, "T E"]
    """Expression coefficients psi: 0..1 for units such as a blink, signed for statistical components."""
    jaw: Float32[np.ndarray, "T 3"]
    """Jaw rotation omega, axis-angle in the head frame, rad."""
    gaze: Float32[np.ndarray, "T 4"]
    """Pitch and yaw of the left eye, then of the right (the person's own), rad; positive is up, and to their left."""
    rotation: Float32[np.ndarray, "T 3"]
    """Rotation of the head from the frontal pose, axis-angle in camera axes, rad."""
    translation: Float32[np.ndarray, "T 3"]
    """Origin of the head frame in the camera, m."""
    shoulders: Float32[np.ndarray, "T 2 2"]
    """The person's left and right shoulder joint, crop px; NaN where not detected."""
    flow: Float32[np.ndarray, "T 2 4"]
    """Similarity of hair and forehead (0) and of the torso (1) from the first frame of the shot to this one, crop px:
    x' = a x - b y + c, y' = b x + a y + d, stored as (a, b, c, d). Identity where it could not be measured."""
    shot: Int64[np.ndarray, " T"]
    """Index of the shot that the frame belongs to; a cut starts a new one."""
    state: UInt8[np.ndarray, " T"]
    """0 tracked, 1 interpolated, 2 held."""
    error: Float32[np.ndarray, " T"]
    """Mean inner-face landmark error of the fit, percent of the inter-ocular distance."""
    doubt: Float32[np.ndarray, " T"]
    """Probability, 0..1, that the face is covered, blurred, or another person's; 0 where no face was found. From
    `DISTRUSTED` on the frame is filled like one without a face (`state`)."""
    first_frame: int = 0
    """Frame of the source that row 0 belongs to; the following rows belong to the following frames."""

    def frames(self, rows: ArrayLike) -> "Tracking":
        """Select frames, in the order of `rows`; identity, camera and rate remain the clip's."""
        named = [field.name for field in fields(self) if getattr(field.type, "dim_str", "").startswith("T")]
        return replace(self, **{name: getattr(self, name)[rows] for name in named})

    @property
    def distrusted(self) -> Bool[np.ndarray, " T"]:
        """Mask of frames in which a face was found, but its landmarks were not used (`doubt`)."""
        return (self.state > 0) & (self.doubt >= DISTRUSTED)

    @property
    def source_points(self) -> Float[np.ndarray, "T 478 2"]:
        """The landmarks in px of the source, not of the crop."""
        return self.landmarks * (float(self.crop[2]) / CROP_SIZE) + self.crop[:2]

    @property
    def sure(self) -> Bool[np.ndarray, " T"]:
        """Mask of reliable frames (`surest`)."""
        return surest(self.state, self.doubt)

    def fault(self) -> str:
        """Describe values that contradict each other, as the end of "FILE holds ..."; empty if none do."""
        numerator, denominator = map(int, self.rate)
        if not len(self.state) or self.state.all():
            return "no tracked frame, expected at least one"
        if (numerator, denominator) == (0, 1):
            return "" if len(self.state) == 1 else f"{len(self.state)} frames of a photo, expected one"
        return rate_fault(numerator, denominator)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of source, identity and landmarks, which differs for two faces of one clip."""
        content = self.source_hash.encode() + self.identity.tobytes() + self.landmarks.tobytes()
        return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Relief:
    """Static detail finer than the mesh, as a height map in the photo's crop."""

    RANGES: ClassVar[dict[str, Range]] = {"heights": Range(-0.1, 0.1), "places": PIXEL, "seen": Range(0, 1)}

    heights: Float16[np.ndarray, "R R"]
    """Height over the mesh along its normals, m, in the photo's crop scaled to R px; R = 0 without detail."""
    places: Float32[np.ndarray, "V 2"]
    """Position of each dense vertex in the photo, crop px (x, y)."""
    seen: Float16[np.ndarray, " V"]
    """Visibility of each vertex in the photo, 0..1, by which detail is weighted."""
    cavity: Bool[np.ndarray, " V"]
    """Mask of vertices inside the mouth, behind lips and teeth: normal maps contain no surface there."""

    @property
    def bare(self) -> "Relief":
        """The relief without heights; `cavity` is kept."""
        return replace(self, heights=np.zeros((0, 0), np.float16))

    @classmethod
    def none(cls) -> "Relief":
        """Make an empty relief, for no vertices."""
        vertices = np.zeros((0, 2), np.float32), np.zeros(0, np.float16), np.zeros(0, bool)
        return cls(np.zeros((0, 0), np.float16), *vertices)


@dataclass(frozen=True)
class HeadFit:
    """A person's head fitted to a photo or clip: identity, offsets, and pose and expression of the fitted frame."""

    KIND: ClassVar[str] = "head"
    VERSION: ClassVar[int] = 5
    RANGES: ClassVar[dict[str, Range]] = {
        **POSE,
        "first_frame": COUNT,
        **{f"dynamic_{name}": limits for name, limits in POSE.items()},
        "frame": COUNT,
        "size": SIZE,
        "crop": CROP,
        "focal_px": FOCAL,
        "landmarks": PIXEL,
        "identity": COEFFICIENT,
        "torso_rotation": TURN,
        "static_offset": OFFSET,
        "frame_offset": OFFSET,
        "relief": Relief.RANGES["heights"],
        "relief_seen": Relief.RANGES["seen"],
        "silhouette_iou": Range(0, 1),
        "dynamic_vertices": COUNT,
        "dynamic_offset": OFFSET,
        "dynamic_loss": Range(0, 1e9, has_nan=True),
    }

    source: str
    """Absolute path of the photo, or clip, that textures come from."""
    source_hash: str
    frame: int
    """Row of the source's tracking that was fitted; 0 for a photo."""
    head_model: str
    size: Int64[np.ndarray, " 2"]
    """Width and height of the upright photo, px."""
    crop: Float32[np.ndarray, " 3"]
    """Square crop in the upright photo: left, top, side, px."""
    focal_px: float
    landmarks: Float32[np.ndarray, "478 2"]
    """FaceMesh landmarks of the photo, crop px."""
    identity: Float32[np.ndarray, " K"]
    identity_from: str
    """`Tracking.fingerprint` of the photo or clip that the identity comes from; empty if it comes from several, or was
    refined. A driver with this fingerprint shows the person of the head."""
    expression: Float32[np.ndarray, " E"]
    jaw: Float32[np.ndarray, " 3"]
    gaze: Float32[np.ndarray, " 4"]
    rotation: Float32[np.ndarray, " 3"]
    translation: Float32[np.ndarray, " 3"]
    torso_rotation: Float32[np.ndarray, " 3"]
    """Rotation of the torso about the neck joint, from the frontal pose, axis-angle in camera axes, rad."""
    static_offset: Float32[np.ndarray, "V 3"]
    """Delta g of Eq. 3: canonical offset of hair, clothes and shoulders, m; zero on the face of a single photo, and for
    a clip the common part of its frames' offsets there."""
    frame_offset: Float32[np.ndarray, "V 3"]
    """Delta f of the fitted frame, from landmarks and folds, canonical, m. Eyes and teeth move by it as rigid pieces;
    otherwise zero off the face."""
    relief: Float16[np.ndarray, "R R"]
    """`Relief.heights` of the photo; R = 0 in a draft."""
    relief_seen: Float16[np.ndarray, " V"]
    """`Relief.seen` of each dense vertex."""
    classes: UInt8[np.ndarray, "S S 3"]
    """Share (0..255) of skin, hair and clothes in each pixel of the photo's crop; the rest is background."""
    ears_seen: Bool[np.ndarray, " 2"]
    """True for the person's left, right ear if it is bare in the photo; False if hair or cloth covers it."""
    silhouette_iou: float
    """IoU of the posed head and the matte inside the crop."""
    dynamic_vertices: Int64[np.ndarray, " P"]
    """Indices of the dense vertices that dynamic offsets move."""
    dynamic_offset: Float16[np.ndarray, "T P 3"]
    """Delta f of every frame of the source, canonical, m; T = 0 unless the source is a clip."""
    dynamic_expression: Float32[np.ndarray, "T E"]
    """Expression of every frame to which `dynamic_offset` was fitted, as in `Tracking`."""
    dynamic_jaw: Float32[np.ndarray, "T 3"]
    """Jaw rotation of every frame to which `dynamic_offset` was fitted, as in `Tracking`."""
    dynamic_gaze: Float32[np.ndarray, "T 4"]
    """Gaze of every frame to which `dynamic_offset` was fitted, as in `Tracking`."""
    dynamic_rotation: Float32[np.ndarray, "T 3"]
    """Head rotation of every frame to which `dynamic_offset` was fitted, as in `Tracking`."""
    dynamic_translation: Float32[np.ndarray, "T 3"]
    """Head translation of every frame to which `dynamic_offset` was fitted, as in `Tracking`."""
    dynamic_loss: Float32[np.ndarray, "T 2"]
    """Data loss of each frame without, and with folds; NaN where it was not computed."""
    first_frame: int = 0
    """`Tracking.first_frame` of the source."""

    @property
    def picture(self) -> int:
        """Frame of the source that was fitted, as counted by `media.video.read_frame`."""
        return self.first_frame + self.frame

    def fault(self) -> str:
        """Describe values that contradict each other, like `Tracking.fault`."""
        last = int(self.dynamic_vertices.max(initial=-1))
        vertices = len(self.static_offset)
        return "" if last < vertices else f"'dynamic_vertices' with {last}, expected less than its {vertices} vertices"


@dataclass(frozen=True)
class Curves:
    """Motion of head and torso, one row a frame: the editable part of a transfer."""

    RANGES: ClassVar[dict[str, Range]] = {**POSE, "torso_rotation": TURN, "torso_translation": PLACE}

    expression: Float32[np.ndarray, "T E"]
    jaw: Float32[np.ndarray, "T 3"]
    gaze: Float32[np.ndarray, "T 4"]
    rotation: Float32[np.ndarray, "T 3"]
    """Rotation of the head from the frontal pose, axis-angle in camera axes, rad."""
    translation: Float32[np.ndarray, "T 3"]
    torso_rotation: Float32[np.ndarray, "T 3"]
    """Rotation of the torso from the frontal pose, axis-angle in camera axes, rad."""
    torso_translation: Float32[np.ndarray, "T 3"]
    """Neck joint of the torso in the camera, m."""
