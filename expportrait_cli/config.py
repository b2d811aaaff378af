"""Settings of every stage. Each default is defined here only; those of trainings are in `train/config.py`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from expportrait_cli.errors import UsageError
from expportrait_cli.runtime import MANY, Between, Checked, Count, Seed, Share

SIZES = (256, 512, 768)
OnMissing = Literal["hold", "interpolate", "fail"]
Supervision = Literal["auto", "none", "shading", "david", "sapiens"]
Recenter = Literal["neutral", "mean"]
Verdict = Literal["auto", "yes", "no"]
Quality = Literal["draft", "standard", "high", "paper"]
Method = Literal["learned", "direct", "none"]
Counts = Literal["absolute", "relative"]
Representation = Literal["full", "static", "base"]
Audio = Literal["driving", "reference", "none"]
EncodeQuality = Literal["fast", "small"]
Backend = Literal["auto", "mini", "proxy", "wan-vace", "wan-v2v", "wan-portrait"]


@dataclass(frozen=True)
class Stretch(Checked):
    """Range of a clip's frames. A time is written as 3.2s or 1:02.5; a frame, counted from 0, as 75f."""

    start: str = ""
    """First frame: a time (3.2s, 1:02.5), or a number counted from 0 (75f); empty for the first frame of the file."""
    end: str = ""
    """First frame that is left out: a time (3.2s, 1:02.5), or a number from 0 (75f); empty for the end of the file."""
    max_frames: Count = 0
    """Largest number of frames to take; 0 for all."""


@dataclass(frozen=True)
class TrackConfig(Checked):
    """Settings of the tracking of a photo or clip."""

    face: str = "largest"
    """Face to follow: largest, left, right, center, or its number from the left, from 0."""
    on_missing: OnMissing = "interpolate"
    """Frames without a face: hold the last pose, interpolate gaps of up to 0.5 s (longer ones are held), or fail."""
    several: Literal["note", "fail"] = "note"
    """Several faces without a choice of one: the largest is taken and a note is printed (note), or the command fails
    (fail)."""
    stretch: Stretch = field(default_factory=Stretch)
    """Range of frames that is tracked."""


@dataclass(frozen=True)
class FitWeights(Checked):
    """Weights of the losses of a fit (paper 3.1.3). Each loss is a mean over vertices and frames."""

    depth_per_mm: float = 0.04
    """Weight of the distance to the network's aligned depth, per mm; normals (unit vectors) have 1."""
    shading: float = 52.5
    """Weight of errors in log intensity: one of 0.05 counts thirty times as much as 5 degrees of a normal."""
    shading_corner: float = 0.02
    """Error in log intensity at which the Huber loss on shading turns from quadratic to linear."""
    fold_mm: float = 1.2
    """Standard deviation of fold heights in the fit to shading, mm; that of log intensity is `shading_corner`."""
    dynamic_per_mm2: float = 0.01
    """Weight of the squared dynamic offset Delta f, per mm^2."""
    temporal_per_mm2: float = 0.015
    """Weight of the squared change of Delta f from frame to frame, per mm^2."""
    rims: float = 0.1
    """Weight of the landmarks of lips and lids, at high quality."""
    static_per_mm2: float = 5e-4
    """Weight of the squared change of the static offset Delta g that the outline causes, per mm^2."""
    static_estimates: float = 0.3
    """Weight of a network's normals and depth for Delta g; the outline, and the folds of a face, have 1."""
    identity: float = 2e-3
    """Weight of the mean squared identity coefficient, in standard deviations."""
    expression: float = 5e-3
    """Weight of the mean squared expression coefficient."""


@dataclass(frozen=True)
class FitDescent(Checked):
    """Smoothness, steps and limits of the offsets that a fit optimises."""

    shading_smoothness: float = 0.7
    """Lambda of the preconditioner I + lambda L for folds fitted to shading, in squared edge lengths of the mesh."""
    shading_rate_m: float = 2e-3
    """Step length, m, of the preconditioned variable of lips and lids, in a fit to shading at high quality."""
    normals_smoothness: float = 20.0
    """Lambda of the preconditioner for folds fitted to a network's normals, in squared edge lengths."""
    normals_rate_m: float = 4e-3
    """Step length, m, for folds fitted to a network's normals."""
    outline_smoothness: float = 30.0
    """Lambda of the preconditioner for the outline, in squared edge lengths."""
    outline_rate_m: float = 2e-3
    """Step length, m, for the outline."""
    outline_steps: Count = 12
    """Descent steps on the outline of a single photo, after the Laplacian fit."""
    fine_shading: tuple[float, ...] = (4.0,)
    """Lambda of the stages on the mesh of high quality in which lips and lids are fitted to landmarks, as multiples of
    `shading_smoothness`. Folds are fitted before, with `shading_smoothness` in squares of this mesh's edges."""
    fine_normals: tuple[float, ...] = (4.0, 1.2, 0.4)
    """Lambda of the stages on the mesh of high quality, as multiples of `normals_smoothness`."""
    fine_steps: Count = 20
    """Steps of each stage on the mesh of high quality."""
    dynamic_limit_m: float = 0.004
    """Largest Delta f, m: folds and bulges of skin are smaller."""
    static_limit_m: float = 0.005
    """Largest part of Delta g in the face that comes from landmarks, m."""


@dataclass(frozen=True)
class FitConfig(Checked):
    """Settings of the fit of the head."""

    quality: Quality = "standard"
    """draft: fit landmarks and outline only; standard: folds too; high: finer folds on a mesh of half the edge length;
    paper: as high, then optimise parameters and offsets together, by rendered normals and depth (needs a network)."""
    supervision: Supervision = "auto"
    """Source of the folds: shading, a network's normals (david, sapiens), or none; auto is the best network that is
    installed, otherwise shading for clips."""
    same_person: Verdict = "auto"
    """The driver shows the person of the photo: yes, no, or auto (yes if a frame of the driver is the photo)."""
    recenter: Recenter = "neutral"
    """Frames of a clip whose mean offset counts as the person's own shape: neutral ones (neutral), or all (mean)."""
    detail: bool = True
    """Read strands of hair, hairline, wrinkles and folds of clothes from the photo, for the normal maps."""
    rounds: Count = 8
    """Rounds of the silhouette fit."""
    iterations: Count = 25
    """Descent steps on the folds, for each window of frames."""
    weights: FitWeights = field(default_factory=FitWeights)
    """Weights of the losses."""
    descent: FitDescent = field(default_factory=FitDescent)
    """Smoothness, steps and limits of the offsets."""


@dataclass(frozen=True)
class TransferConfig(Checked):
    """Settings of the transfer of the driver's performance to the person's head."""

    method: Method = "learned"
    """Motion beyond the head model's expressions: from a network (learned), the driver's own (direct), or none."""
    network: str = ""
    """Weights of a transfer network of your own, from `train transfer`; empty for the head model's."""
    expression: Counts = "absolute"
    """Expression, jaw, gaze: as the driver's own (absolute), or as changes from the neutral frame (relative)."""
    pose: Counts = "relative"
    """Pose of the head: the driver's own (absolute), or its change from the neutral frame (relative)."""
    neutral_frame: str = "auto"
    """Frame in which the driver's face is at rest: auto, none, or its number, from 0, after trimming. A relative
    expression is a change from it; from an absolute one, the expression of this frame is subtracted (none: nothing)."""
    expression_scale: Annotated[float, Between(0, 3)] = 1.0
    """Factor on the expression; 1 is that of the driver."""
    pose_scale: Annotated[float, Between(0, 3)] = 1.0
    """Factor on the head's motion; 1 is that of the driver."""
    region: str = "all"
    """Comma-separated list of what moves: pose, expression, lips, eyes, gaze; or all."""
    smooth: Annotated[float, Between(0, 1000)] = 0.0
    """Standard deviation of the smoothing over time, frames; 0 for none."""
    folds: Annotated[float, Between(0, 1)] = 0.5
    """Share, 0..1, of the folds in the driver's fitted head that is added to what the network predicts; less suits a
    person with smoother skin than the driver's. If the driver is the person, all of them are added."""
    turn_limit_deg: Annotated[float | None, Between(0, 1000)] = 45.0
    """Rotation of the head away from the photo's, degrees, beyond which it is damped; None damps nothing."""
    representation: Representation = "full"
    """Part of the head that is used: all of it (full), all but motion beyond the head model's expressions (static), or
    the head model's mesh alone (base; paper, Fig. 7). Must be the one that a generator was trained on."""


PAPER = TransferConfig(expression="absolute", pose="absolute", neutral_frame="none")
"""The paper's protocol: expression and pose are the driver's own, as tracked."""
CHANGES = TransferConfig(expression="relative", pose="relative")
"""Changes of the driver's expression and pose are added to those of the photo."""


@dataclass(frozen=True)
class RenderConfig(Checked):
    """Settings of rendering normal maps."""

    size: Annotated[int, Between(16, 4096)] = 512
    """Side of the square crop, px: 256, 512 or 768."""
    antialias: bool = True
    """Antialias the silhouette."""
    detail: bool = True
    """Draw the fine static detail of the head: strands of hair, wrinkles, folds of clothes."""


@dataclass(frozen=True)
class WanConfig(Checked):
    """Settings of a Wan transformer: sampling, conditions, precision and memory."""

    weights: str = ""
    """Folder of the transformer, or a name of `weights fetch`; empty for the default weights of the painter."""
    steps: Annotated[int, Between(0, 200)] = 0
    """Steps of the sampler; 0 takes the number that the weights were made for."""
    shift: Annotated[float, Between(0, 100)] = 0.0
    """Shift of the noise levels towards more noise, usually 3 to 16; 0 takes the value the weights were made for."""
    strength: Annotated[float, Between(0, 1)] = 0.0
    """Share of noise, 0..1, that is added to the proxy film; 0 for the default, 0.7 (wan-vace) or 0.35 (wan-v2v)."""
    prompt: str = ""
    """Text prompt, which `weights embed-prompt` has embedded before; empty for the default, a person who is talking."""
    negative_prompt: str = ""
    """Negative text prompt, which `weights embed-prompt` has embedded before; empty for Wan's own."""
    guidance: Annotated[float, Between(0, 20)] = 0.0
    """Scale of classifier-free guidance, away from the negative prompt (wan-portrait: from a film without normals);
    1 is no guidance and twice as fast, 0 takes the value that the weights were made for."""
    control: Literal["proxy", "holes", "depth", "normals"] = "proxy"
    """Film that guides wan-vace: the proxy film, with the parts that the photo does not show in grey levels (proxy) or
    blank (holes); the head's depth (depth); or its normal maps (normals), for a LoRA that was trained on them."""
    keep: bool = True
    """Take the film's pixels from the proxy film wherever wan-vace has nothing to repaint."""
    skip: Annotated[int, Between(0, 10)] = 0
    """Number of steps of the sampler, after each computed one, whose velocity is extrapolated: 1 takes about half the
    time, 0 computes all. The first two and the last are always computed."""
    chain: Annotated[int, Between(0, 5)] = 0
    """Paint in segments that each begin with the last 1 or 5 frames of the one before; 0 for overlapping windows."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the transformer; auto is bf16 on GPUs that have it, otherwise fp16, and fp32 on a CPU."""
    offload: Literal["none", "model", "group"] = "none"
    """Weights moved to main memory while unused: none, idle models (model), or all but a few layers (group)."""
    quantize: Literal["none", "fp8", "int8"] = "none"
    """Precision in which the transformer's weights are stored: unchanged (none), fp8 or int8."""
    lora: str = ""
    """Comma-separated list of .safetensors files of LoRAs to add to the weights, each with :SCALE unless it is 1."""
    cache: Share = 0.0
    """Skip a step's blocks when the first block's output changes less than this share; 0.05 is careful, 0 is never."""
    attention: str = ""
    """Name of diffusers' attention backend: sage, flash, xformers, ...; empty for torch's own."""
    compile: bool = False
    """Compile the transformer's blocks: takes minutes once, then steps are faster."""
    vae: Literal["fp32", "bf16", "tiny"] = "fp32"
    """Autoencoder: Wan's own in that precision, or for previews a tiny decoder (`weights fetch taew2.1`), whose
    pictures are softer."""

    def loras(self) -> list[tuple[str, float]]:
        """Files of `lora`, and the scale of each.

        Raises:
            UsageError: a scale is not a number.
        """
        found = []
        for item in filter(None, self.lora.split(",")):
            file, colon, scale = item.rpartition(":")
            if not colon or scale.endswith(".safetensors"):
                file, scale = item, "1"
            try:
                found.append((file, float(scale)))
            except ValueError:
                raise UsageError(f"`lora={item}`: {scale!r} is no scale. Write FILE.safetensors:0.8.") from None
        return found


@dataclass(frozen=True)
class GenerateConfig(Checked):
    """Settings of the painting of the film."""

    backend: Backend = "auto"
    """Painter of the film; auto is the best one that is installed and was compared with the proxy on this machine."""
    size: Annotated[int, Between(16, 4096)] = 512
    """Short side of the film, px: 256, 512 (which painters are made for) or 768."""
    aspect: str = "1:1"
    """Width to height of the film, such as 9:16 or 16:9. Other shapes than the square show more of the photo, around
    head and shoulders."""
    paste_back: bool = False
    """Show the whole photo in its own size and shape, instead of a part of it."""
    mouth: Literal["driver", "model"] = "driver"
    """Inside of the mouth: that of the driver's clip, in the person's own colours (driver), or that of the head model
    (model). It is always the model's if the driver is the person, or if the clip shows too little."""
    wrinkles: Literal["driver", "none"] = "driver"
    """Folds of forehead, frown and crow's feet: those of the driver's clip shade the person's skin (driver), or only
    the photo's are there (none). None are taken if the driver is the person, and none ever below the eyes, where a
    beard or jewellery would show."""
    audio: Audio = "driving"
    """Sound of the film: that of the driver's clip (driving), that of the reference (reference), or none (none)."""
    encode_quality: EncodeQuality = "fast"
    """Encoding of the film: fast takes half the time; small makes a file a third smaller, of about the same quality."""
    detail: bool = True
    """Give the painter normal maps with fine static detail: strands of hair, wrinkles, folds of clothes."""
    seed: Seed = 0
    """Seed of all random numbers."""
    wan: WanConfig = field(default_factory=WanConfig)
    """Settings of a Wan transformer."""


SECTIONS = {"track": TrackConfig, "fit": FitConfig, "transfer": TransferConfig, "generate": GenerateConfig}
"""Classes of a film's settings, by their names in its run record."""


@dataclass(frozen=True)
class PrepareConfig(Checked):
    """Limits on the parts of a folder's videos that are taken for training."""

    frames: Annotated[int, Between(24, MANY)] = 240
    """Longest clip, frames; a longer shot becomes several clips of equal length."""
    min_s: float = 1.5
    """Shortest clip, s."""
    sample_s: float = 0.25
    """Time between the frames that are examined, s."""
    min_face_px: Annotated[int, Between(16, MANY)] = 120
    """Smallest face that is taken, from the hairline to the chin, px of the source video. Others are too blurred."""
    face_share: Share = 0.9
    """Share of the frames that must show one whole face."""
    rival: float = 0.5
    """Size of a second face, as a share of the first, above which a frame does not count as showing one face."""
    min_sharpness: float = 5.0
    """Least variance of the Laplacian in the face, at the size that it has in a clip."""
    darkest: float = 30.0
    """Least mean grey level of the face, 0..255."""
    brightest: float = 225.0
    """Greatest mean grey level of the face, 0..255."""
    min_contrast: float = 12.0
    """Least standard deviation of the grey levels in the face."""
    min_motion_percent: float = 0.8
    """Least motion of the landmarks against each other, percent of the inter-ocular distance."""
    max_error_percent: float = 4.0
    """Greatest mean landmark error of the tracking, percent of the inter-ocular distance."""
