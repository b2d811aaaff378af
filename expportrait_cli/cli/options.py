"""Options that several commands share, and how results are named and printed."""

import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from expportrait_cli.config import Backend, GenerateConfig
from expportrait_cli.errors import InputError, OutputError, UsageError

LogLevelName = Literal["debug", "info", "warning", "error"]


@dataclass
class Output:
    """What `--quiet` asks for; set once, when the command starts."""

    quiet: bool = False


output = Output()


class _Stderr(logging.StreamHandler):
    """Write to whatever stderr is now: a progress display replaces it while it is up."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def start_logging() -> None:
    """Send the package's log to stderr."""
    handler = _Stderr()
    handler.setFormatter(_Lines("%(message)s"))
    log = logging.getLogger("expportrait_cli")
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)
    output.quiet = False


def be_quiet(quiet: bool) -> bool:
    """Hide progress, and notes of the level `info`; given before or after the command's name."""
    log = logging.getLogger("expportrait_cli")
    if quiet:
        output.quiet = True
        log.setLevel(max(log.level, logging.WARNING))
    return quiet


def set_level(level: LogLevelName | None) -> LogLevelName | None:
    """Choose the log's level; given before or after the command's name."""
    if level is not None:
        logging.getLogger("expportrait_cli").setLevel(level.upper())
    return level


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=be_quiet, help="No progress on stderr; warnings and errors remain.")
]
LogLevel = Annotated[
    LogLevelName | None, typer.Option(callback=set_level, help="How much of the log stderr shows.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print a JSON summary on stdout instead of the path.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="A file, or a folder for one with the usual name.", show_default=False
    ),
]
Face = Annotated[
    str, typer.Option(help="Which face: largest, left, right, center, or its number from the left, from 0.")
]
OnMissing = Annotated[
    Literal["hold", "interpolate", "fail"],
    typer.Option(help="Frames without a face: hold the last, interpolate gaps up to 0.5 s (then hold), or fail."),
]
NeutralFrame = Annotated[str, typer.Option(help="Driver frame that counts as neutral: auto or its number from 0.")]
Absolute = Annotated[
    bool,
    typer.Option(
        "--absolute/--relative", help="The driver's own pose and expression, or its change from the neutral frame."
    ),
]
ExpressionScale = Annotated[float, typer.Option(min=0.0, max=3.0, help="Strength of the expression.")]
PoseScale = Annotated[float, typer.Option(min=0.0, max=3.0, help="Strength of the head's motion.")]
Region = Annotated[str, typer.Option(help="List of what moves: pose, expression, lips, eyes, gaze; or all.")]
Smooth = Annotated[float, typer.Option(min=0.0, help="Smoothing over time, standard deviation in frames.")]
Method = Annotated[
    Literal["learned", "direct", "none"],
    typer.Option(help="What moves beyond the expressions: what a network expects of this face, the driver's, nothing."),
]
Network = Annotated[
    str, typer.Option(metavar="FILE", help="Your own transfer network, from `train transfer`.", show_default=False)
]
CurvesFile = Annotated[
    Path | None,
    typer.Option(
        "--curves",
        metavar="CSV",
        help="Expression, jaw, gaze and pose, one row a frame: a file that exists is used, a new one is written.",
    ),
]
Size = Annotated[Literal["256", "512", "768"], typer.Option(help="Side of the square crop, px.")]


def existing(path: Path, *, kind: str = "") -> Path:
    """A file that is there and not empty; `kind` is the artifact that it must be, e.g. `track`."""
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a file.")
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name and the folder.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes). Copy or make it again.")
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


def result(out: Path | None, default: str, *, inputs: tuple[Path, ...], suffixes: tuple[str, ...] = (".npz",)) -> Path:
    """Where a command writes: `out`, or `default` in it when it is a folder, or in the current one.

    Checked before any work: the folder can be written to, the name has a suffix that fits, and no input is overwritten.
    """
    path = Path(default) if out is None else out / default if out.is_dir() else out
    if not path.name.lower().endswith(suffixes):
        raise UsageError(f"{path}: the result's name must end in {' or '.join(suffixes)}.")
    if any(path.exists() and path.samefile(source) for source in inputs if source.exists()):
        raise UsageError(f"{path} is also an input. Name another file with -o.")
    writable(path.parent)
    return path


def writable(folder: Path) -> None:
    """Try to write into a folder, or into the nearest one above it that exists.

    Permissions alone say too little about read-only and virtual file systems.
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
    """A CSV that is there and not empty, or a place where one can be written."""
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
    typer.echo(json.dumps({"output": str(path), **summary}, ensure_ascii=False) if as_json else str(path))


def two(first: Path | None, second: Path | None, source: Path | None, driving: Path | None) -> tuple[Path, Path]:
    """Photo and driver, by position or by option."""
    given = [path for path in (first, second) if path is not None]
    named = [path for path in (source, driving) if path is not None]
    if len(given) + len(named) != 2:
        raise UsageError(
            f"Expected a photo and a driving clip, got {len(given) + len(named)} files. "
            "Write `expportrait generate REF DRIVING`."
        )
    reference = source if source is not None else given.pop(0)
    return reference, driving if driving is not None else given.pop(0)


BackendName = Annotated[
    Backend,
    typer.Option("--backend", help="What paints the film; auto is the best that is installed and can run here."),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights-folder",
        metavar="DIR",
        help="Folder of a Wan transformer; without it the one of `weights fetch`.",
        show_default=False,
        file_okay=False,
        exists=True,
    ),
]
Steps = Annotated[int, typer.Option(min=0, max=200, help="Steps of the sampler; 0: as the weights were made for.")]
Guidance = Annotated[
    float,
    typer.Option(min=0.0, max=20.0, help="How far to go where the control leads; 1 is half the work; 0: as made for."),
]
Control = Annotated[
    Literal["proxy", "depth"], typer.Option(help="What wan-vace sees: the proxy film with holes, or the head's depth.")
]
Strength = Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of noise that wan-v2v puts on the proxy film.")]
Chain = Annotated[
    int,
    typer.Option(min=0, max=5, help="Give each segment the last 1 or 5 frames, instead of windows that overlap (0)."),
]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option("--dtype", help="Precision of the transformer.")
]
Offload = Annotated[
    Literal["none", "model", "group"],
    typer.Option(help="What waits outside the GPU: nothing, the idle model, or all but a few layers."),
]
Quantize = Annotated[Literal["none", "fp8", "int8"], typer.Option(help="Keep weights in 8 bits.")]
Lora = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="LoRA to work into the weights, .safetensors.", show_default=False),
]
Cache = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Skip a step's blocks when the first changes less; 0.05 is careful.")
]
Attention = Annotated[
    str, typer.Option(metavar="NAME", help="Attention of diffusers: sage, flash, xformers, ...", show_default=False)
]


def launched() -> int:
    """Processes that a launcher (torchrun, accelerate) started with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def only_helps(config: GenerateConfig) -> bool:
    """Whether this process was launched beside others for one film, and has done its part: the first makes the film."""
    if launched() == 1:
        return False
    from expportrait_cli.generate.stage import only_helps

    return only_helps(config)


HeadModelOption = Annotated[
    Literal["anny", "smplx"],
    typer.Option(help="3D head: the built-in one, or SMPL-X from your own licensed file (EXPPORTRAIT_SMPLX)."),
]
