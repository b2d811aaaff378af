"""Options that several commands share, and how results are named and printed."""

import ast
import inspect
import json
import logging
import os
import sys
from functools import cache, partial
from itertools import pairwise
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expportrait_cli.artifacts.files import check_file
from expportrait_cli.cli.boundary import output
from expportrait_cli.config import (
    CHANGES,
    PAPER,
    Backend,
    Counts,
    GenerateConfig,
    Stretch,
    TrackConfig,
    TransferConfig,
    Verdict,
    WanConfig,
)
from expportrait_cli.errors import InputError, OutputError, UsageError
from expportrait_cli.runtime import between, choose_device

if TYPE_CHECKING:
    Context = typer.Context
else:
    # The class of the object that typer passes, which it does not export.
    Context = typer.Context.__mro__[1]

RUN, CLIP, PERFORMANCE, PAINTER = "How it runs", "Face and clip", "Performance", "Video transformers"
"""Titles of the groups of options in the help, after the first group."""

LogLevelName = Literal["debug", "info", "warning", "error"]


def be_quiet(quiet: bool) -> bool:
    """Hide progress, and notes of the level `info`; given before or after the command's name."""
    log = logging.getLogger("expportrait_cli")
    if quiet:
        output.quiet = True
        log.setLevel(max(log.level, logging.WARNING))
    return quiet


def set_level(level: LogLevelName | None) -> LogLevelName | None:
    """Set the log level; given before or after the command's name."""
    if level is not None:
        logging.getLogger("expportrait_cli").setLevel(level.upper())
    return level


def set_device(name: str | None) -> str | None:
    """Set the device of the run; given before or after the command's name."""
    if name is not None:
        choose_device(name)
    return name


def setting(config: type, name: str, *declarations: str, **details: Any) -> Any:
    """Make an option from the field `name` of a config class: its docstring is the help, its bounds are checked."""
    if limits := between(config, name):
        details = {"min": limits.low, "max": limits.high, "callback": _number, **details}
    return typer.Option(*declarations, help=_documented(config.__module__)[config.__name__][name], **details)


transfer_setting = partial(setting, TransferConfig, rich_help_panel=PERFORMANCE)
wan_setting = partial(setting, WanConfig, rich_help_panel=PAINTER)


def _number(value: int | float | None) -> int | float | None:
    # NaN passes every comparison with bounds.
    if value is not None and isnan(value):
        raise typer.BadParameter("nan is not a number.")
    return value


@cache
def _documented(module: str) -> dict[str, dict[str, str]]:
    """Docstrings of the fields of a module's config classes, from its source: Python does not keep them."""
    source = inspect.getsource(sys.modules[module])
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {
        node.name: {
            field.target.id: " ".join(ast.literal_eval(text.value).split())
            for field, text in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        }
        for node in classes
    }


Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=be_quiet,
        help="No progress on stderr; warnings and errors remain.",
        rich_help_panel=RUN,
    ),
]
LogLevel = Annotated[
    LogLevelName | None,
    typer.Option(
        callback=set_level, help="Lowest level of log messages on stderr.", show_default=False, rich_help_panel=RUN
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print a JSON summary on stdout instead of the path.", rich_help_panel=RUN)
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=set_device,
        help="Device of the computations: auto, cpu, cuda or cuda:N. Auto is the first GPU that torch finds.",
        show_default=False,
        rich_help_panel=RUN,
    ),
]
Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        metavar="PATH",
        help="Output file, or a folder for one with the default name.",
        show_default=False,
    ),
]
Face = Annotated[str, setting(TrackConfig, "face")]
Start = Annotated[str, setting(Stretch, "start", metavar="MOMENT", show_default=False)]
End = Annotated[str, setting(Stretch, "end", metavar="MOMENT", show_default=False)]
MaxFrames = Annotated[int, setting(Stretch, "max_frames", rich_help_panel=CLIP)]
OnMissing = Annotated[Literal["hold", "interpolate", "fail"], setting(TrackConfig, "on_missing", rich_help_panel=CLIP)]
Shown = Annotated[Literal["full", "static", "base"], transfer_setting("representation", "--representation")]
NeutralFrame = Annotated[str | None, transfer_setting("neutral_frame", show_default=False)]
Expression = Annotated[Counts | None, transfer_setting("expression", show_default=False)]
Pose = Annotated[Counts | None, transfer_setting("pose", show_default=False)]
Absolute = Annotated[
    bool | None,
    typer.Option(
        "--absolute/--relative",
        help="Short for --expression and --pose: both absolute with --neutral-frame none (the paper's protocol), or "
        "both relative.",
        show_default=False,
        rich_help_panel=PERFORMANCE,
    ),
]
SamePerson = Annotated[
    bool | None,
    typer.Option(
        "--same-person/--different-person",
        help="The driver is (is not) the person of the photo. Left out: it is if a frame of the driver is the photo.",
        show_default=False,
        rich_help_panel=CLIP,
    ),
]
ExpressionScale = Annotated[float, transfer_setting("expression_scale")]
PoseScale = Annotated[float, transfer_setting("pose_scale")]
Region = Annotated[str, transfer_setting("region")]
Folds = Annotated[float, transfer_setting("folds")]
Smooth = Annotated[float, transfer_setting("smooth")]
Method = Annotated[Literal["learned", "direct", "none"], transfer_setting("method")]
Network = Annotated[str, transfer_setting("network", metavar="FILE", show_default=False)]
CurvesFile = Annotated[
    Path | None,
    typer.Option(
        "--curves",
        metavar="CSV",
        help="Expression, jaw, gaze and pose, one row a frame: a file that exists is used, a new one is written.",
        rich_help_panel=PERFORMANCE,
    ),
]
Size = Annotated[
    Literal["256", "512", "768"],
    # Choices are texts, and have no bounds.
    setting(GenerateConfig, "size", min=None, max=None, callback=None),
]


def counting(
    absolute: bool | None, expression: Counts | None, pose: Counts | None, neutral_frame: str | None
) -> dict[str, Any]:
    """Settings of `TransferConfig` for absolute or relative motion: `expression`, `pose` and `neutral_frame`."""
    if absolute is not None and (expression or pose):
        flag = "--absolute" if absolute else "--relative"
        raise UsageError(f"{flag} stands for --expression and --pose. Leave it out, or leave these out.")
    meant = TransferConfig() if absolute is None else PAPER if absolute else CHANGES
    return {
        "expression": expression or meant.expression,
        "pose": pose or meant.pose,
        "neutral_frame": neutral_frame or meant.neutral_frame,
    }


def verdict(same: bool | None) -> Verdict:
    """Convert --same-person, --different-person or neither (None) to a value of `FitConfig.same_person`."""
    return "auto" if same is None else "yes" if same else "no"


def existing(path: Path, *, kind: str = "") -> Path:
    """Check that a file exists and is not empty; `kind`: artifact that it must be, e.g. `track`. Returns `path`."""
    check_file(path)
    if kind and path.suffix != ".npz":
        raise InputError(f"{path} is not a .{kind}.npz file. {MAKERS[kind]}")
    if kind:
        from expportrait_cli.artifacts import npz

        npz.check_kind(path, kind)
    return path


MAKERS = {
    "track": "Make one with `expportrait track INPUT`.",
    "head": "Make one with `expportrait fit TRACK`.",
    "meshes": "Make one with `expportrait transfer HEAD TRACK`.",
}
"""Remedy for a missing artifact, by its kind."""


def result(out: str | Path | None, default: str, *, suffixes: tuple[str, ...] = (".npz",)) -> Path:
    """Return the path of a command's result: `out`, or `default` in the folder `out`, or in the current folder.

    Checked before any work: the folder can be written to, and the suffix fits.
    """
    path = Path(out or default)
    if out is not None and (path.is_dir() or os.fspath(out).endswith(("/", os.sep))):
        path /= default
    if not path.name.lower().endswith(suffixes):
        raise UsageError(f"{path}: the result's name must end in {' or '.join(suffixes)}.")
    writable(path.parent)
    return path


def writable(folder: Path) -> None:
    """Check that a folder, or the nearest existing one above it, can be written to, by writing a temporary file.

    Permissions alone are not enough on read-only and virtual file systems.
    """
    import tempfile

    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OutputError(
            f"Nothing can be written to {nearest}: {error.strerror}. Name another folder with -o."
        ) from error


def check_curves(path: Path | None) -> None:
    """Check that a CSV file exists and is not empty, or else can be written."""
    if path is None:
        return
    if path.suffix.lower() != ".csv":
        raise UsageError(f"--curves {path}: the name must end in .csv.")
    if path.exists():
        existing(path)
    else:
        writable(path.parent)


def echo(path: Path, summary: dict[str, Any], *, as_json: bool) -> None:
    """Print the path that was written, or a summary, on stdout."""
    typer.echo(json.dumps({"output": str(path), **summary}) if as_json else str(path))


BackendName = Annotated[Backend, setting(GenerateConfig, "backend", "--backend")]
Weights = Annotated[str, wan_setting("weights", "--weights-folder", metavar="DIR", show_default=False)]
Steps = Annotated[int, wan_setting("steps")]
Guidance = Annotated[float, wan_setting("guidance")]
Shift = Annotated[float, wan_setting("shift")]
Prompt = Annotated[str, wan_setting("prompt", metavar="TEXT", show_default=False)]
NegativePrompt = Annotated[str, wan_setting("negative_prompt", metavar="TEXT", show_default=False)]
Control = Annotated[Literal["proxy", "holes", "depth", "normals"], wan_setting("control")]
Strength = Annotated[float, wan_setting("strength")]
Keep = Annotated[bool, wan_setting("keep", "--keep/--no-keep")]
Skip = Annotated[int, wan_setting("skip")]
Chain = Annotated[int, wan_setting("chain")]
Precision = Annotated[Literal["auto", "fp32", "bf16", "fp16"], wan_setting("dtype", "--dtype")]
Offload = Annotated[Literal["none", "model", "group"], wan_setting("offload")]
Quantize = Annotated[Literal["none", "fp8", "int8"], wan_setting("quantize")]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE[:SCALE]",
        help="LoRA to add: FILE.safetensors, or FILE.safetensors:SCALE (1 if left out); may be repeated.",
        show_default=False,
        rich_help_panel=PAINTER,
    ),
]
Cache = Annotated[float, wan_setting("cache")]
Attention = Annotated[str, wan_setting("attention", metavar="NAME", show_default=False)]
Compile = Annotated[bool, wan_setting("compile", "--compile")]
VaeKind = Annotated[Literal["fp32", "bf16", "tiny"], wan_setting("vae")]


def loras(given: list[str] | None) -> str:
    """Join the values of the repeated option --lora into the list `WanConfig.lora`."""
    for item in given or []:
        if "," in item:
            raise UsageError(f"--lora {item}: repeat the option for each file; names must not have a comma.")
    return ",".join(given or [])


def launched() -> int:
    """Number of processes that a launcher (torchrun, accelerate) started, with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def only_helps(config: GenerateConfig) -> bool:
    """Help the first of several processes that were launched for one film; True if this one is not the first."""
    if launched() == 1:
        return False
    from expportrait_cli.painting.stage import only_helps

    return only_helps(config)


HEAD_MODEL_HELP = "Head model: anny (built in), smplx (from your licensed file, EXPPORTRAIT_SMPLX), gnm (once fetched)"
HeadModelOption = Annotated[Literal["anny", "smplx", "gnm"], typer.Option(help=f"{HEAD_MODEL_HELP}.")]
OwnHeadModel = Annotated[
    Literal["anny", "smplx", "gnm"] | None,
    typer.Option(
        "--head-model",
        help=f"{HEAD_MODEL_HELP}; by default that of given artifacts, else anny.",
        show_default=False,
        rich_help_panel=CLIP,
    ),
]
