"""The columns of an evaluation: definition, estimator and source of each metric."""

from dataclasses import dataclass, replace
from typing import Literal

FACEMESH = "MediaPipe FaceMesh, static mode, on a crop of each frame"
PIXELS = "none (pixels in 0..1, mean over the three channels)"
LUMA = "none (luma of BT.601, 0..255)"
DLIB = "dlib ResNet face recognition v1, five-point alignment"
TRACKER = f"expportrait's own head model (anny), solved frame by frame from the landmarks of {FACEMESH}"
OWN = "expportrait; a scale of its own, not to be compared with AED and APD by Deep3DFaceRecon, DECA or SMIRK"
REGIONS = {
    "frame": "the whole frame",
    "head": "an upright ellipse around the target's landmarks (0.85 x 0.95 of their box as half axes, raised by 0.12)",
    "face": "the convex hull of the target's landmarks inside the face oval",
}
SPARSE_EVERY = 8
"""FLIP and LPIPS measure one of so many frames: each takes 0.1 to 0.4 s, with VGG some seconds without a GPU."""
LOOKS = 16
"""Frames, evenly spread, on which the target's similarity to the reference is measured; each takes 0.1 s. In films with
fewer than twice as many frames, all are measured."""

WINDOW, LEAST_WINDOWS = 16, 16
"""Frames of a window of FVD's network, and fewest windows, of films and of targets, for an FVD."""
CLASSES = 400
"""Number of features of FVD's network for a window."""

Mode = Literal["self", "cross"]
"""self: the target is the ground truth, pixel by pixel. cross: the target is the driver, of another person or place."""
Better = Literal["higher", "lower", "like the target's", "near 0"]


@dataclass(frozen=True)
class Column:
    """One metric, with all that is needed to compare it with that of a paper."""

    name: str
    unit: str
    better: Better
    estimator: str
    """Network or program that measures the face, or "none" for arithmetic on pixels."""
    definition: str
    source: str = "expportrait"
    """Source of the definition."""
    better_in_self: Better | None = None
    """Direction that is better in self mode, if it differs."""

    def better_in(self, mode: Mode) -> Better:
        """Direction of better values in this mode."""
        return self.better_in_self or self.better if mode == "self" else self.better


def _pixel_columns(region: str, where: str) -> list[Column]:
    wang = "Wang et al. 2004; as skimage structural_similarity(gaussian_weights=True, use_sample_covariance=False)"
    return [
        Column(
            f"psnr_{region}",
            "dB",
            "higher",
            PIXELS,
            f"10 log10(1 / MSE) over {where}, at most 99; mean of the frames' dB",
            "ITU-T J.340, on RGB",
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


def _with_target(column: Column) -> tuple[Column, Column]:
    """Return a measure of similarity to the reference, and the column of the same measure for the target itself."""
    reached = (
        f"{column.name} of the target, which shows the same person: what moving costs the truth itself, so that a film "
        f"nearer to the reference than this moves less; of every nth frame from frame 1, n = (frames - 1) / {LOOKS} "
        "rounded down, at least 1"
    )
    name, better = f"{column.name}_target", "like the target's"
    return replace(column, better_in_self=better), replace(column, name=name, better=better, definition=reached)


def _coefficient_columns(estimator: str, source: str, numbers: dict[str, str]) -> list[Column]:
    return [
        Column(
            name,
            "radians" if name.endswith("_rad") else "1",
            "lower",
            estimator,
            f"mean absolute difference of {what}; against a driver it includes how the two faces differ",
            source,
        )
        for name, what in numbers.items()
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
        "ms_ssim",
        "1",
        "higher",
        PIXELS,
        "product over five scales of contrast times structure (at the last of SSIM) to the powers .0448, .2856, .3001, "
        ".2363, .1333, window as ssim_g11, halved by 2x2 means, over the whole frame; negative factors count as 0",
        "Wang, Simoncelli, Bovik 2003; as pytorch_msssim.ms_ssim(data_range=1)",
    ),
    Column(
        "flip",
        "1",
        "lower",
        "flip-evaluator (NVIDIA), LDR, 67 pixels per degree",
        f"mean of the FLIP error map over the whole frame, 0 equal, 1 worst; every {SPARSE_EVERY}th frame from frame 1",
        "Andersson et al., FLIP: A Difference Evaluator for Alternating Images, 2020",
    ),
    *(
        Column(
            f"lpips_{net}",
            "1",
            "lower",
            f"LPIPS 0.1 on {backbone}, from the file of weights under versions",
            f"sum over five layers of the weighted squared difference of unit features, pictures in -1..1 at full "
            f"size; every {SPARSE_EVERY}th frame from frame 1",
            "Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, 2018",
        )
        for net, backbone in (("alex", "AlexNet"), ("vgg", "VGG-16"))
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
        "aed_own",
        "1",
        "lower",
        TRACKER,
        "mean absolute difference of the 40 expression coefficients and of the jaw's opening over its full range (1 is "
        "a face unit at full strength); against the truth both films share the target's identity and focal length, "
        "against a driver each has its own",
        OWN,
    ),
    Column(
        "apd_own_deg",
        "degrees",
        "lower",
        TRACKER,
        "mean over three angles of the absolute difference of pitch, yaw and roll (turn from the frontal pose = "
        "Rz(roll) Ry(yaw) Rx(pitch), camera frame): a turn of 5 degrees about one axis counts 5/3",
        OWN,
    ),
    Column(
        "aed_motion_own",
        "1",
        "lower",
        TRACKER,
        "aed_own of the coefficients less their medians over the film's, and over the target's, own frames: what "
        "moves, whatever the two faces are like at rest",
        OWN,
    ),
    Column(
        "apd_motion_own_deg",
        "degrees",
        "lower",
        TRACKER,
        "apd_own_deg of the angles less their medians over the film's, and over the target's, own frames: a film "
        "driven by changes of pose keeps the photo's own and has none",
        OWN,
    ),
    Column(
        "gaze_own_deg",
        "degrees",
        "lower",
        TRACKER,
        "mean absolute difference of pitch and yaw of both eyes, relative to the head: four angles",
        OWN,
    ),
    *_coefficient_columns(
        "Deep3DFaceRecon from the file of weights under versions, crop of its own by five points from FaceMesh",
        "Deng et al., Accurate 3D Face Reconstruction with Weakly-Supervised Learning, 2019; AED and APD as GOHA",
        {"aed_deep3d_mean": "the 64 expression coefficients", "apd_deep3d_mean_rad": "the angles about x, y and z"},
    ),
    *_coefficient_columns(
        "SMIRK's encoders from the file of weights under versions, crop around FaceMesh's landmarks, 1.4 times as wide",
        "Retsinas et al., 3D Facial Expressions through Analysis-by-Neural-Synthesis, 2024",
        {
            "aed_smirk_mean": "the 50 expression coefficients, without jaw and eyelids",
            "apd_smirk_mean_rad": "the three numbers of the head's turn, an axis times an angle",
        },
    ),
    *_with_target(
        Column(
            "identity_dlib",
            "distance",
            "lower",
            DLIB,
            "Euclidean distance of the 128-d descriptors of output and reference; dlib calls below 0.6 the same person",
            "dlib, dlib_face_recognition_resnet_model_v1",
        )
    ),
    *_with_target(
        Column(
            "csim_arcface",
            "1",
            "higher",
            "the ArcFace network under versions, five-point alignment from FaceMesh's irises, nose and mouth corners",
            "cosine of the descriptors of output and reference, both aligned by their own landmarks",
            "Deng et al., ArcFace: Additive Angular Margin Loss for Deep Face Recognition, 2019",
        )
    ),
    Column(
        "flicker",
        "levels of 255",
        "near 0",
        LUMA,
        "mean over pixels of the second difference |y(t) - 2 y(t-1) + y(t-2)| of luma, the output's minus the "
        "target's: above 0 the film flickers more, below 0 it moves less; nothing is warped, so that motion counts",
    ),
    Column(
        "landmark_jitter",
        "% IOD",
        "near 0",
        FACEMESH,
        "jitter_lmk minus jitter_lmk_target: above 0 the film's face shakes more, below 0 it moves less",
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
FVD = Column(
    "fvd_i3d",
    "1",
    "lower",
    "I3D for Kinetics-400 from the file of weights under versions: 400 numbers before the softmax",
    f"Frechet distance of Gaussians fitted to all windows of a suite's films and of its targets: {WINDOW} frames one "
    "after the other, no two windows share one, a clip's rest is left out; the middle square at 224 px, in -1..1. n "
    "windows give a covariance of rank n - 1 at most, of 400: with fewer than some thousand the figure is too high, so "
    f"compare it only over the same windows; none below {LEAST_WINDOWS}",
    "Unterthiner et al., Towards Accurate Generative Models of Video, 2018; weights as StyleGAN-V's",
)
"""The only column that is measured for all films of a suite together."""
SUITE_COLUMNS = (*COLUMNS, FVD)
WIDTH = max(len(column.name) for column in SUITE_COLUMNS)
"""Width of the name column in a text table, characters."""
TRUTH = [column.name for column in COLUMNS if column.name.startswith(("psnr", "ssim", "l1"))]
IDENTITIES = {"identity_dlib": "identity_dlib_target", "csim_arcface": "csim_arcface_target"}
"""Columns of the similarity to the reference of the film, with those of the target."""
TRUTH += ["ms_ssim", "flip", "lpips_alex", "lpips_vgg", "lmk_nme", *IDENTITIES.values()]
"""Columns that need a target of the same person in the same place."""
TRACKED = ["aed_own", "apd_own_deg", "aed_motion_own", "apd_motion_own_deg", "gaze_own_deg"]
