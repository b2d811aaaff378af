"""The `expportrait` command: its subcommands, and the one place where errors become exit codes."""

import io
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from expportrait_cli.cli import batch, evaluate, generate, options, stages, train, ui, weights
from expportrait_cli.cli.boundary import command_line, output, report, say_error, start_logging
from expportrait_cli.cli.command import App, ListingCommand
from expportrait_cli.errors import INTERRUPTED, WeightsError
from expportrait_cli.runtime import deferral, settle_threads
from expportrait_cli.version import __version__

BROKEN_PIPE = 128 + signal.SIGPIPE
TERMINATED = 128 + signal.SIGTERM

CODES = {
    0: "done",
    1: "a fault of the tool, with a traceback, or a film that failed its own check",
    2: "wrong usage: options or settings that do not fit",
    3: "an input or output that cannot be used",
    4: "weights that are missing or wrong",
    5: "out of memory",
    130: "interrupted (Ctrl-C); 143 by SIGTERM, 129 by SIGHUP, 141 when nobody reads the output",
}
"""Meaning of each exit code."""

FIRST = """\
expportrait makes the person in a photo perform a clip. To start with:

  expportrait generate photo.png clip.mp4              a film; intermediate results are kept beside it
  expportrait generate photo.png clip.mp4 --dry-run    only what that would do, and how long it would take
  expportrait doctor                                   what is installed here, and what is missing

`expportrait --help` lists all commands, `expportrait COMMAND --help` their options.
"""

app = App(
    name="expportrait",
    # \b keeps click from wrapping the lines of the table anew.
    epilog="\b\nExit codes:\n" + "\n".join(f"  {code:<5}{words}" for code, words in CODES.items()),
    help="Make the person in a photo perform a driving clip, through a 3D head that can be opened and edited.",
    # Plain help: drawing boxes would triple the time that --help takes.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> bool:
    if value:
        typer.echo(f"expportrait {__version__}")
        raise typer.Exit()
    return value


@app.callback()
def start(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    device: options.Device = None,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Make the person in a photo perform a driving clip, through a 3D head that can be opened and edited."""
    settle_threads()


app.command("generate")(generate.generate)
app.command("compare-recipes")(generate.compare_recipes)
app.command("track")(stages.track)
app.command("fit")(stages.fit)
app.command("transfer")(stages.transfer)
app.command("render-normals")(stages.render_normals)
app.command("export")(stages.export)
app.command("eval")(evaluate.evaluate)
app.command("batch", cls=ListingCommand)(batch.batch)
app.command("ui")(ui.ui)
app.add_typer(train.data_app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(weights.app, name="weights")


@app.command()
def doctor(*, as_json: options.Json = False) -> None:
    """List what is installed, which parts are used and why; exit code 4 if something necessary is missing."""
    import json

    from expportrait_cli.pipeline.doctor import examine

    checks = examine()
    if as_json:
        typer.echo(json.dumps([check.row() for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'ok' if check.ok else 'MISSING':<8} {check.name:<22} {check.found}")
    bad = [check.name for check in checks if not check.ok]
    if bad:
        raise WeightsError(
            f"Missing or wrong: {', '.join(bad)}. Install the tool again, or see `expportrait weights list`."
        )


def _end(number: int, _: FrameType | None) -> None:
    # An exception, so that partial files are removed and ffmpeg is stopped. It is lost if raised inside a callback of
    # the garbage collector: therefore the display checks again at its next step.
    command_line.ended_by = number
    if not deferral.is_active:
        command_line.check()


def open_streams() -> None:
    """Open stdin, stdout and stderr if they are closed, and let the latter two write file names that are not UTF-8.

    A file that is opened later would otherwise get the descriptor of a stream, and be written to. A shell that runs a
    script without a stderr has already opened the script there, for reading: that counts as closed.
    """
    for number, probe in enumerate((os.fstat, _write_nothing, _write_nothing)):
        try:
            probe(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    # A descriptor of its own: while native libraries are silenced, descriptor 2 is /dev/null.
    sys.stderr = os.fdopen(os.dup(2), "w", 1, sys.stderr.encoding if sys.stderr else None)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")


def _write_nothing(number: int) -> None:
    os.write(number, b"")


def main() -> None:
    """Run the command line and exit with one of `CODES`."""
    open_streams()
    deferral.at_end = command_line.check
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # What was started with nohup goes on when the terminal is closed.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; without a command, print how to begin."""
    start_logging()
    command_line.app, command_line.ended_by = app, None
    code = 1
    try:
        code = _run(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else code
        raise
    finally:
        output.tell("end", exit_code=code)
    return code


def _run(arguments: list[str]) -> int:
    if not arguments:
        typer.echo(FIRST, nl=False)
        return 0
    try:
        code = app(args=arguments, prog_name="expportrait", standalone_mode=False)
        sys.stdout.flush()
    except typer.Abort:
        return _interrupted()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return _closed_pipe()
    except SystemExit as end:
        # Typer exits with code 1 at a closed pipe, which here means a fault of the tool.
        if isinstance(end.__context__, BrokenPipeError):
            return _closed_pipe()
        raise
    except Exception as error:
        return _failed(error)
    if code == INTERRUPTED:
        return _interrupted()
    if command_line.ended_by is not None:
        # A library took the signal for itself, as Gradio does, and the command came to its end.
        return _ended(command_line.ended_by)
    return code if isinstance(code, int) else 0


def _ended(number: int) -> int:
    return _interrupted() if number == signal.SIGINT else 128 + number


def _failed(error: Exception) -> int:
    # The exception of a signal may leave a native library as any other error.
    if command_line.ended_by is not None:
        return _ended(command_line.ended_by)
    # A `UserError` is printed as one line, any other error with its traceback.
    return report(error)


def _closed_pipe() -> int:
    # The reader of stdout has gone. Without this, Python would report it again when it closes stdout.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _interrupted() -> int:
    say_error("interrupted. Run the same command again to go on where it stopped.")
    return INTERRUPTED
