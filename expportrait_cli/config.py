"""Every default of every stage, once."""

from dataclasses import dataclass, field
from typing import Literal

SIZES = (256, 512, 768)
OnMissing = Literal["hold", "interpolate", "fail"]
Supervision = Literal["auto", "none", "shading", "david", "sapiens"]
Recenter = Literal["neutral", "mean"]
Quality = Literal["draft", "standard", "high"]
Method = Literal["learned", "direct", "none"]
Audio = Literal["driving", "reference", "none"]
Backend = Literal["auto", "mini", "proxy", "wan-vace", "wan-v2v", "wan-portrait"]


@dataclass(frozen=True)
class TrackConfig:
    """How a photo or clip is tracked."""

    face: str = "largest"
    """largest, left, right, or the index of the face counted from the left."""
    on_missing: OnMissing = "interpolate"
    """What stands in for a frame without a face: a short gap is interpolated, a long one held; or fail."""
    several: Literal["note", "fail"] = "note"
    """Several faces without a choice: take the largest with a note, or refuse."""


@dataclass(frozen=True)
class FitConfig:
    """How the static head is fitted."""

    quality: Quality = "standard"
    """draft: landmarks and outline alone; standard: folds by shading, or by a network that is installed; high: finer
    folds on a mesh of half the edges."""
    supervision: Supervision = "auto"
    """What folds are read from: auto is the best network installed, otherwise shading for clips."""
    recenter: Recenter = "neutral"
    """Which mean over a clip's frames counts as the person's own shape: of its neutral frames, or of all."""
    rounds: int = 8
    """Rounds of the silhouette fit."""
    iterations: int = 25
    """Steps of the folds' descent a window of frames."""


@dataclass(frozen=True)
class FitWeights:
    """What each loss of the fit counts (paper 3.1.3); a mean over vertices and frames each, so that sizes cancel."""

    depth_per_mm: float = 0.04
    """Distance to an aligned depth, against 1 for normals (unit vectors)."""
    shading: float = 52.5
    """Difference in log intensity: thirty times what 5 degrees of a normal count for 0.05, because folds show as a few
    percent."""
    shading_corner: float = 0.02
    """Difference in log intensity above which it counts linearly."""
    dynamic_per_mm2: float = 0.01
    """Square of Delta f."""
    temporal_per_mm2: float = 0.015
    """Square of its change from frame to frame."""
    rims: float = 0.1
    """Distance of the landmarks of lips and lids, at high quality."""
    static_per_mm2: float = 5e-4
    """Square of Delta g's change by the outline."""
    static_estimates: float = 0.3
    """What normals and depth count for Delta g, against 1 for the outline and for the folds of a face."""
    identity: float = 2e-3
    """Mean square of the identity, in standard deviations."""
    expression: float = 5e-3
    """Mean square of the expression coefficients."""


@dataclass(frozen=True)
class FitDescent:
    """How far and how smoothly the fields of the fit move."""

    shading_smoothness: float = 2.0
    """lambda of I + lambda L for folds by shading, in edges squared,"""
    shading_rate_m: float = 2e-3
    """and the length of a step of the preconditioned variable."""
    normals_smoothness: float = 20.0
    """The same for folds by a network's normals."""
    normals_rate_m: float = 4e-3
    outline_smoothness: float = 30.0
    """The same for the outline,"""
    outline_rate_m: float = 2e-3
    outline_steps: int = 12
    """after the Laplacian fit."""
    fine_shading: tuple[float, ...] = (16.0, 4.0)
    fine_normals: tuple[float, ...] = (4.0, 1.2, 0.4)
    """lambda of folds on the mesh of high quality, stage by stage, over that on the plain one: 4 is as smooth, because
    edges are half as long. On real skin shading says nothing true of anything finer;"""
    fine_steps: int = 10
    """steps of each stage."""
    dynamic_limit_m: float = 0.004
    """Largest Delta f: folds and bulges of skin are smaller."""
    static_limit_m: float = 0.005
    """Largest part of Delta g in the face that comes from landmarks."""


@dataclass(frozen=True)
class TransferConfig:
    """How the driver's performance is put onto the person's head."""

    method: Method = "learned"
    """What moves beyond the head model's expressions: what a network expects of this face; the driver's own offsets,
    copied; or nothing."""
    network: str = ""
    """Weights file of that network; empty for the head model's own."""
    absolute: bool = False
    """Take the driver's own expression and pose instead of the change from the neutral frame."""
    neutral_frame: str = "auto"
    """Driver frame that counts as neutral: auto or its index."""
    expression_scale: float = 1.0
    pose_scale: float = 1.0
    region: str = "all"
    """Comma-separated list of pose, expression, lips, eyes, gaze; or all."""
    smooth: float = 0.0
    """Standard deviation of the temporal smoothing, frames."""
    turn_limit_deg: float | None = 45.0
    """Turn of the head, away from the photo's, beyond which it is damped; None leaves every turn as it is."""


@dataclass(frozen=True)
class RenderConfig:
    """How meshes become normal maps."""

    size: int = 512
    antialias: bool = True


@dataclass(frozen=True)
class WanConfig:
    """How a Wan transformer paints, and how it is fitted into the machine."""

    weights: str = ""
    """Folder of the transformer; empty for the one that `weights fetch` made."""
    steps: int = 0
    """Of the sampler; 0 for as many as the weights were made for."""
    guidance: float = 0.0
    """How far it goes beyond where the control leads, 1 is no further and half the work; 0 for as the weights say."""
    control: Literal["proxy", "depth"] = "proxy"
    """What wan-vace is shown: the proxy film with holes, or the head's depth."""
    strength: float = 0.35
    """Share of noise that wan-v2v puts on the proxy film."""
    chain: int = 0
    """Frames that a segment is given from the one before it, instead of windows that overlap; 0 for windows."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    offload: Literal["none", "model", "group"] = "none"
    """What waits in the computer's memory: nothing; the models that do not work just now; all but a few layers."""
    quantize: Literal["none", "fp8", "int8"] = "none"
    """How weights are kept between uses."""
    lora: str = ""
    """File of a LoRA that is worked into the weights."""
    cache: float = 0.0
    """Change of the first block below which a step reuses the others' last result; 0 for never."""
    attention: str = ""
    """Name of diffusers' attention; empty for torch's own."""


@dataclass(frozen=True)
class GenerateConfig:
    """How the film is made."""

    backend: Backend = "auto"
    size: int = 512
    paste_back: bool = False
    audio: Audio = "driving"
    seed: int = 0
    wan: WanConfig = field(default_factory=WanConfig)


@dataclass(frozen=True)
class PrepareConfig:
    """Which stretches of a folder's videos are taken for training."""

    frames: int = 240
    """Longest clip; a longer shot becomes several of equal length."""
    min_s: float = 1.5
    """Shortest clip."""
    sample_s: float = 0.25
    """Time between the frames that are looked at."""
    min_face_px: int = 120
    """Height of the face in the source, from the hairline to the chin. A clip's own face is about 220 px high."""
    face_share: float = 0.9
    """Share of the frames that must show one whole face,"""
    rival: float = 0.5
    """and no second one above this share of its size."""
    min_sharpness: float = 5.0
    """Variance of the Laplacian in the face, brought to the size that it has in a clip."""
    darkest: float = 30.0
    """Mean grey level of the face, 0..255."""
    brightest: float = 225.0
    min_contrast: float = 12.0
    """Standard deviation of the grey levels in the face."""
    min_motion_percent: float = 0.8
    """Motion of the landmarks against each other, percent of the distance between the eyes."""
    max_error_percent: float = 4.0
    """Mean landmark error of the tracking, percent of the same."""


@dataclass(frozen=True)
class TransferTraining:
    """How the transfer network is trained."""

    steps: int = 12000
    people: int = 12
    """In a batch; with so many frames and vertices of each."""
    frames: int = 4
    vertices: int = 256
    rate: float = 2e-3
    """Of AdamW at the start; it falls to a fiftieth along half a cosine."""
    decay: float = 1e-4
    average: float = 0.999
    """Of the exponential mean over the weights that is kept."""
    code_noise: float = 0.05
    """Blur of the identity code, and of the expression, in their own deviations."""
    psi_noise: float = 0.02
    filmed: float = 4.0
    """Times that a filmed person is drawn for one who was made up."""
    held_out: float = 0.1
    """Share of the people that the curve is measured on, and that nothing is learned from."""
    synthetic: int = 300
    """People of the head model who are made up for the purpose, and frames of each."""
    synthetic_frames: int = 20
    report_every: int = 500
    """Steps between two points of the curve; the run can go on from there."""
    seed: int = 0


@dataclass(frozen=True)
class MiniTraining:
    """How the small painter is trained."""

    steps: int = 6000
    photos: int = 8
    """Frames of each clip that are taken as the photo,"""
    lesson_windows: int = 8
    """and windows of the film that it gives."""
    windows: int = 2
    """In a batch,"""
    side: int = 128
    """and how much of them, px."""
    rate: float = 1e-3
    average: float = 0.998
    """Of the running average of the weights that is kept in the end."""
    faults: float = 0.3
    """Share of the windows whose proxy is spoiled further."""
    held_out: float = 0.2
    """Share of the people that judge."""
    half: bool = True
    """Multiply in 16 bits."""
    report_every: int = 250
    seed: int = 0


@dataclass(frozen=True)
class GeneratorTraining:
    """How the paper's generator is trained; rate, batch, epochs and size are the paper's."""

    epochs: int = 30
    steps: int = 0
    """Of the optimiser; 0 for as many as the epochs take."""
    frames: int = 81
    """Longest window of a clip."""
    size: int = 512
    batch: int = 1
    """Windows a step, on each device."""
    rate: float = 1e-4
    """Of AdamW."""
    trunk: float = 1.0
    """Times that, for the weights of the base itself."""
    decay: float = 0.01
    warm_up: int = 200
    """Steps in which the rate rises."""
    average: float = 0.999
    """Of the exponential mean over the weights that is kept; 0 keeps the weights themselves."""
    lora: int = 0
    """Rank of a LoRA that is trained instead of the base's weights; 0 for none."""
    held_out: float = 0.05
    """Share of the people that only judge."""
    seed: int = 0


@dataclass(frozen=True)
class GeneratorTask:
    """What the generator learns in each step (paper Eq. 10), and how often it tells."""

    loss: Literal["velocity", "epsilon"] = "velocity"
    """Error of the velocity, or of the noise that follows from it, as Eq. 10 has it: the same times (1 - sigma)^2."""
    shift: float = 3.0
    """Of the uniform share of noise, towards more of it."""
    hint: bool = False
    """Show the proxy film beside the normals (ours, not the paper's)."""
    hint_photos: int = 2
    """Frames of a clip that are taken as the photo that a proxy film is drawn from; without a hint there are 16."""
    drop_control: float = 0.1
    """Share of the lessons without normals, and then without the proxy film, too,"""
    drop_reference: float = 0.1
    """and without the photo."""
    checkpointing: bool = True
    """Compute twice instead of remembering."""
    report_every: int = 500
    """Steps between two points of the curve; the run can go on from there."""
    sample_every: int = 2000
    """Steps between two films."""
    sample_steps: int = 8
    """Of denoising such a film."""
