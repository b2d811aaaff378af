"""Detection of unreliable landmarks: the texture under them is compared with neighbouring frames of the shot."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8
from scipy.sparse import csr_matrix
from scipy.spatial import Delaunay

from expportrait_cli.artifacts.types import DISTRUSTED
from expportrait_cli.detect.crop import Crop, crop_image, crop_points
from expportrait_cli.detect.mesh import extent
from expportrait_cli.head.facemesh import CHIN, EYE_RINGS, FOREHEAD, IRIS, LIPS, OUTER_EYES, LandmarkModel

FINE, SIDE = 64, 32
"""Sides of the face texture, px: FINE for the sharpness, SIDE for the texture that is kept."""
VIEW, AROUND = 128, 1.2
"""Side of the crop that the texture is sampled from: VIEW in px, AROUND in face sizes."""
RIM = 7
"""Side of the erosion kernel, px, that removes the blurred border of the `FINE` texture."""
GREY = 4.0
"""Contrast of a practically uniform face, levels of 255."""


@dataclass(frozen=True)
class Skin:
    """Face texture of one frame: the picture warped by the landmarks to the frontal average face."""

    texture: UInt8[np.ndarray, "S S 3"]
    sharpness: float
    """Strength of the finest detail over the contrast, see `Unroller.sharpness`."""


class Unroller:
    """Makes face textures by landmarks. 1 ms."""

    def __init__(self, model: LandmarkModel) -> None:
        """Triangulate the average face in frontal view."""
        self._count = len(model.template) - len(IRIS)
        points = model.template[: self._count, :2]
        low, high = points.min(0), points.max(0)
        axes = [np.linspace(low[axis], high[axis], FINE) for axis in (0, 1)]
        grid = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
        mesh = Delaunay(points)
        simplex = mesh.find_simplex(grid)
        inside = np.flatnonzero(simplex >= 0)
        frame = mesh.transform[simplex[inside]]
        two = np.einsum("nij,nj->ni", frame[:, :2], grid[inside] - frame[:, 2])
        weights = np.c_[two, 1 - two.sum(1)]
        entries = (weights.ravel(), (np.repeat(inside, 3), mesh.simplices[simplex[inside]].ravel()))
        self._from_landmarks = csr_matrix(entries, (FINE * FINE, self._count))
        # Without the eyes: a blink changes them more than a hand beside the nose changes the face.
        eyes, half = np.zeros((FINE, FINE), np.uint8), len(EYE_RINGS) // 2
        for ring in (EYE_RINGS[:half], EYE_RINGS[half:]):
            cells = np.rint((points[ring] - low) / (high - low) * (FINE - 1)).astype(np.int32)
            cv2.fillConvexPoly(eyes, cv2.convexHull(cells), (1.0,))
        self.inside: Bool[np.ndarray, "64 64"] = (simplex >= 0).reshape(FINE, FINE) & (eyes == 0)
        kernel = np.ones((RIM, RIM), np.uint8)
        lips = (points[LIPS] - low) / (high - low) * (SIDE - 1)
        pixels = np.moveaxis(np.mgrid[:SIDE, :SIDE], 0, -1)[..., ::-1]
        around = (pixels >= lips.min(0) - 1) & (pixels <= lips.max(0) + 1)
        self.mouth: Bool[np.ndarray, "32 32"] = around.all(-1)
        """Mask of the lips and one pixel around them in the kept texture."""
        self._within = cv2.erode(self.inside.astype(np.uint8), kernel, borderValue=(0.0,)) > 0

    def __call__(self, image: UInt8[np.ndarray, "H W 3"], landmarks: Float32[np.ndarray, "478 2"]) -> Skin:
        """Make the texture of the face in an image.

        Raises:
            ValueError: the landmarks lie outside the image.
        """
        centre, size = extent(landmarks)
        side = max(16.0, AROUND * size)
        crop = Crop(float(centre[0] - side / 2), float(centre[1] - side / 2), side)
        if side >= 2 * VIEW:
            # At whole pixels shrinking takes half the time.
            crop = Crop(*map(float, np.rint(crop)))
        points = crop_points(landmarks, crop, VIEW)[: self._count]
        at = (self._from_landmarks @ points - 0.5).astype(np.float32).reshape(FINE, FINE, 2)
        view = crop_image(image, crop, VIEW)
        fine = cv2.remap(view, at[..., 0], at[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return Skin(self.kept(fine), self.sharpness(fine))

    def kept(self, fine: UInt8[np.ndarray, "64 64 3"]) -> UInt8[np.ndarray, "32 32 3"]:
        """Shrink a texture; black outside the face and in the eyes."""
        fine = np.where(self.inside[..., None], fine, 0).astype(np.uint8)
        return cv2.resize(fine, (SIDE, SIDE), interpolation=cv2.INTER_AREA)

    def sharpness(self, fine: UInt8[np.ndarray, "64 64 3"]) -> float:
        """Standard deviation of the finest detail, over that of the texture."""
        grey = cv2.cvtColor(fine, cv2.COLOR_RGB2GRAY).astype(np.float32)
        detail = cv2.Laplacian(grey, cv2.CV_32F)[self._within]
        return float(detail.std() / (grey[self._within].std() + GREY))


SAMPLES = 17
"""Approximate number of frames of a window that a frame is compared with."""
NARROWEST = 0.44
"""Least distance of the outer eye corners in a frontal face, as a share of the height from chin to hairline."""
NEAR = 3
"""Number of frames on each side that landmarks are compared with."""
FEW = 8
"""Fewest frames of a shot in which unreliable ones can be detected."""
WINDOW_S = 1.0
"""Length of the window on each side of a frame, s."""
SCALES = np.array([0.1, 0.3, 0.05, 0.03])
CAPS = np.array([0.4, 1.5, 0.5, 0.1])
WEIGHTS, OFFSET = np.array([7.4, 2.3, 2.8, 4.4]), -6.1
"""Logistic regression of "the landmarks are off" on the logarithms of 1 + cue / scale. Fitted to 22 clips of people who
talk, grimace, wink and turn, and to the same with hands and boxes over the face, blur, flashes and foreign frames."""
CERTAIN, STRONG = 3.5, 1.0
"""Score above which a run of frames is distrusted: by itself (CERTAIN), and together with a `JUMP` (STRONG)."""
WEAK = -1.5
"""Score above which neighbouring frames belong to one run: a hand moves in and out over several frames."""
GONE = 0.48
"""Share of the mouth's usual picture below which it is covered: talk, smiles and tongues leave 0.57 and more, nine of
ten flat hands less than 0.48."""
JUMP = 0.08
"""Loss of correlation with the nearest frames above which the picture jumps: expressions and turns are slower than
objects in front of a face."""


def doubts(
    landmarks: Float32[np.ndarray, "T 478 2"],
    skins: Sequence[Skin | None],
    shots: Int64[np.ndarray, " T"],
    rate: Fraction,
    mouth: Bool[np.ndarray, "S S"],
) -> Float32[np.ndarray, " T"]:
    """Probability (0..1) that the landmarks of each frame are wrong; from `DISTRUSTED` on they are not used.

    Frames without a face (`skins` None) and frames of shots that are too short get 0. `mouth`: mask of the mouth in the
    textures.
    """
    doubt = np.zeros(len(landmarks), np.float32)
    seen = np.array([skin is not None for skin in skins])
    for shot in np.unique(shots):
        rows = np.flatnonzero(seen & (shots == shot))
        if len(rows) < FEW:
            continue
        own = [skin for row in rows.tolist() if (skin := skins[row]) is not None]
        textures, sharpness = np.stack([s.texture for s in own]), np.array([s.sharpness for s in own])
        window = max(FEW, round(WINDOW_S * float(rate)))
        inside = textures.any((0, 3))
        features = np.stack([_features(texture, inside) for texture in textures])
        found = cues(landmarks[rows], textures[:, inside], features, sharpness, window)
        scores = np.log1p(np.clip(found, 0, CAPS) / SCALES) @ WEIGHTS + OFFSET
        # A flat hand has the skin's colour, moves with the face, and may hide only the mouth.
        covered = presence(features[:, mouth[inside]], window) < GONE
        scores[covered] = np.maximum(scores[covered], CERTAIN + 1)
        chance = 1 / (1 + np.exp(-scores))
        bad = _spoilt(scores, found[:, 2])
        # Where most frames are unusual, the median is not the face.
        bad &= bad.mean() < 0.5
        doubt[rows] = np.where(bad, np.maximum(chance, DISTRUSTED), np.minimum(chance, 0.98 * DISTRUSTED))
    return doubt


def _spoilt(scores: Float64[np.ndarray, " T"], jumps: Float64[np.ndarray, " T"]) -> Bool[np.ndarray, " T"]:
    """Mask of runs of frames above `WEAK` whose largest score is high enough; runs bridge single other frames."""
    weak = (scores > WEAK).astype(np.uint8)
    runs, labels = cv2.connectedComponents(cv2.morphologyEx(weak[:, None], cv2.MORPH_CLOSE, np.ones((3, 1), np.uint8)))
    bad = np.zeros(len(scores), bool)
    for run in range(1, runs):
        rows = np.flatnonzero(labels[:, 0] == run)
        top = scores[rows].max()
        jump = jumps[max(0, rows[0] - 1) : rows[-1] + 2].max()
        if top > CERTAIN or (top > STRONG and jump > JUMP):
            bad[rows] = True
    return bad


def cues(
    landmarks: Float32[np.ndarray, "T 478 2"],
    skins: UInt8[np.ndarray, "T N 3"],
    features: Float32[np.ndarray, "T N"],
    sharpness: Float64[np.ndarray, " T"],
    window: int,
) -> Float64[np.ndarray, "T 4"]:
    """Measure how each frame of a shot differs from the median of `window` frames on each side.

    Share of the skin that has another colour; loss of sharpness, as a logarithm; loss of correlation of the features'
    picture with the nearest frames; distance of the landmarks' shape from the nearest frames', in inter-ocular
    distances of a face that looks ahead.
    """
    count = len(landmarks)
    eyes, height = (
        np.linalg.norm(landmarks[:, a] - landmarks[:, b], axis=1) for a, b in (OUTER_EYES, (FOREHEAD, CHIN))
    )
    # Near profile the distance of the eyes is too small as a unit: every motion would be a jump.
    size = np.maximum(eyes, NARROWEST * height)
    shapes = (landmarks - landmarks.mean(1, keepdims=True)) / size[:, None, None]
    skins = skins.astype(np.float32)
    step, every = max(1, window // 4), max(1, 2 * window // SAMPLES)
    found = np.zeros((count, 4))
    for begin in range(0, count, step):
        rows = np.arange(begin, min(begin + step, count))
        near = np.arange(max(0, begin - window), min(count, begin + window + 1), every)
        usual = np.median(skins[near], axis=0)
        spread = np.median(np.abs(skins[near] - usual), axis=0)
        found[rows, 0] = [_other_colour(skin, usual, spread) for skin in skins[rows]]
        found[rows, 1] = np.log(np.median(sharpness[near]) / np.maximum(sharpness[rows], 1e-6))
    for t in range(count):
        beside = [s for s in range(max(0, t - NEAR), min(count, t + NEAR + 1)) if s != t]
        usual = np.median(features[beside], axis=0)
        found[t, 2] = 1 - features[t] @ usual / max(float(np.linalg.norm(usual)), 1e-6)
        found[t, 3] = np.linalg.norm(shapes[t] - np.median(shapes[beside], axis=0), axis=-1).mean()
    return found


def presence(pictures: Float32[np.ndarray, "T N"], window: int) -> Float64[np.ndarray, " T"]:
    """Projection of each frame's features on their median in the window: 1 equal, 0 unrelated, below 0 inverted."""
    pictures = pictures - pictures.mean(1, keepdims=True)
    shown = np.ones(len(pictures))
    for t, picture in enumerate(pictures):
        usual = np.median(pictures[max(0, t - window) : t + window + 1], axis=0)
        shown[t] = picture @ usual / max(float(usual @ usual), 1e-6)
    return shown


def _features(texture, inside):
    """Band-passed grey texture inside the face, without light and grain, as a unit vector."""
    grey = cv2.cvtColor(texture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    band = (cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 3.0))[inside]
    band -= band.mean()
    return band / max(float(np.linalg.norm(band)), 1e-3)


def _other_colour(skin, usual, spread):
    """Share (0..1) of the texture whose colour differs from `usual` by more than light and exposure explain."""
    gain = float(np.clip(skin.std(0).mean() / max(float(usual.std(0).mean()), 1.0), 0.7, 1.4))
    change = (skin - np.median(skin, axis=0)) / gain - (usual - np.median(usual, axis=0))
    return float((np.abs(change) > 2 * (8 + 3 * spread)).any(1).mean())
