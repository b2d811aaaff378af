"""Parts that all commands share: common options, settings from a preset or a file, and help in groups."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from expportrait_cli.artifacts.texts import read_json, read_toml
from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import output
from expportrait_cli.config import SECTIONS, FitConfig, Stretch, TrackConfig, TransferConfig
from expportrait_cli.errors import InputError, UsageError

log = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, Any]] = {
    "draft": {"quality": "draft", "size": 256, "backend": "proxy"},
    "fine": {"quality": "high", "size": 768},
    "paper": {"absolute": True},
    "small-gpu": {"offload": "group", "quantize": "int8"},
}
"""Options by the name of a preset: draft for a quick look, fine for most detail of the head, paper for the paper's
protocol, small-gpu for a Wan transformer in little memory."""
PATHS = frozenset(
    (
        *("reference", "driving", "source_option", "driving_option", "source", "head", "driver", "trackings"),
        *("driver_head", "meshes", "films", "target", "suite", "report", "jobs", "folder", "out"),
        *("curves", "network", "weights_folder", "lora"),
    )
)
"""Parameters that are paths: in a settings file they are relative to its folder."""
OWN = frozenset(("config", "preset", "help", "progress"))
"""Options that a settings file cannot set."""


def _take_preset(ctx: options.Context, name: str | None) -> str | None:
    if name is None or ctx.resilient_parsing:
        return name
    path = _own_preset(name)
    if name not in PRESETS and not path.is_file():
        close = get_close_matches(name, PRESETS, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"`preset={name[:60]}`: expected {', '.join(PRESETS)}, or a file {path}.{hint}")
    if name in PRESETS:
        known = {*_parameters(ctx), *(ctx.command.columns() if isinstance(ctx.command, ListCommand) else ())}
        known -= ctx.meta.get(COLUMNS, {}).keys()
        chosen = {key: value for key, value in PRESETS[name].items() if key in known}
        if not chosen:
            raise UsageError(f"`preset={name}` sets no option of this command, only {', '.join(PRESETS[name])}.")
        found = _settings(ctx, chosen, f"preset {name}", path)
    else:
        found = _settings(ctx, _read(path), str(path), path)
    # A settings file overrides a preset, whichever was named first.
    ctx.default_map = {**found, **(ctx.default_map or {})}
    return name


def _own_preset(name: str) -> Path:
    from platformdirs import user_config_path

    return user_config_path("expportrait") / f"{Path(name).name}.toml"


def _take_config(ctx: options.Context, path: Path | None) -> Path | None:
    if path is not None and not ctx.resilient_parsing:
        found = _settings(ctx, _read(path), str(path), path)
        ctx.default_map = {**(ctx.default_map or {}), **found}
        if path.suffix.lower() == ".json":
            ctx.meta[RECORDED] = (path, found)
    return path


def _read(path: Path) -> Mapping[str, Any]:
    """Read settings by name, from TOML, or from JSON such as the record of an earlier film."""
    options.existing(path)
    if path.suffix.lower() not in (".toml", ".json"):
        raise UsageError(f"{path}: expected a settings file (.toml) or the record of an earlier film (.json).")
    try:
        found = read_json(path) if path.suffix.lower() == ".json" else read_toml(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read as {path.suffix[1:].upper()}: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} has no settings, such as `size = 256`.")
    return dict(_of_record(path, found)) if isinstance(found.get("settings"), dict) else found


def _parameters(ctx: options.Context) -> dict[str, Any]:
    """Parameters of the command by name, and by the names of their options."""
    every = ctx.command.params
    found = {option.lstrip("-").replace("-", "_"): each for each in every for option in each.opts}
    # `reference` is also an option of another parameter, --reference: names of parameters have priority.
    found |= {str(each.name): each for each in every}
    return {name: parameter for name, parameter in found.items() if name not in OWN}


def _settings(ctx: options.Context, found: Mapping[str, Any], place: str, path: Path) -> dict[str, Any]:
    """Check settings, and convert them to values of the command's parameters.

    Raises:
        UsageError: a name is no option of the command, or a value has the wrong type.
    """
    known, more = _parameters(ctx), ctx.command.columns() if isinstance(ctx.command, ListCommand) else ()
    chosen: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name not in known and name in more:
            ctx.meta.setdefault(COLUMNS, {})[name] = value
            continue
        if name not in known:
            close = get_close_matches(name, [*known, *more], 1)
            hint = f" Did you mean {close[0]}?" if close else f" `{ctx.command_path} --help` lists the options."
            raise UsageError(f"{place}: unknown setting {str(key)[:60]}.{hint}")
        parameter = known[name]
        chosen[str(parameter.name)] = _value(parameter, value, f"{place}: {key}", path.parent)
    return chosen


RECORDED = "expportrait.recorded"
"""Key, in the `meta` of the context, of a film's record and the values of parameters that it gave."""
OF_INPUT = {
    "reference": ("face", "reference_start", "reference_end", "reference_max_frames", "same_person"),
    "driving": ("driving_face", "start", "end", "max_frames", "neutral_frame", "curves", "same_person"),
}
"""Parameters that say something about one photo or clip, and nothing about another."""


def _drop_settings_of_other_inputs(ctx: options.Context) -> None:
    """Set parameters that a record gave to their defaults if they belong to an input that the user replaced."""
    (path, found), defaults = ctx.meta[RECORDED], dict(ctx.default_map or {})
    for role, names in OF_INPUT.items():
        alias = {"reference": "source_option", "driving": "driving_option"}[role]
        given, then = ctx.params.get(alias) or ctx.params.get(role), found.get(role)
        if then is None or given is None or Path(str(given)).absolute() == Path(str(then)).absolute():
            continue
        dropped = [name for name in names if name in found and ctx.params.get(name) == ctx.lookup_default(name)]
        for parameter in ctx.command.params:
            if parameter.name in dropped:
                del defaults[parameter.name]
                ctx.default_map = defaults
                value, source = parameter.consume_value(ctx, {})
                ctx.params[parameter.name] = parameter.process_value(ctx, value)
                ctx.set_parameter_source(parameter.name, source)
        if dropped:
            text = ", ".join(f"--{name.replace('_', '-')}" for name in dropped)
            log.warning("%s: its %s belong to %s, and are not used for %s.", path, text, then, given)


COLUMNS = "expportrait.columns"
"""Key, in the `meta` of the context, of settings for all rows of a list of jobs."""


class ListCommand(TyperCommand):
    """A command on a list of jobs: its settings file may also have settings for all rows."""

    def columns(self) -> list[str]:
        """Names of the columns that a list may have."""
        from expportrait_cli.pipeline.joblist import columns

        return columns()


def _value(parameter: Any, value: Any, place: str, folder: Path) -> Any:
    is_flag = bool(getattr(parameter, "is_flag", False))
    if is_flag or isinstance(value, bool):
        if not (is_flag and isinstance(value, bool)):
            raise UsageError(f"{place} is {str(value)[:60]!r}, expected {'true or false' if is_flag else 'a value'}.")
        return value
    several = value if isinstance(value, list) else [value]
    if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in several):
        raise UsageError(f"{place} is {str(value)[:60]!r}, expected a text or a number.")
    texts = [_beside(folder, str(parameter.name), str(each)) for each in several]
    # An option that may be repeated takes a list, even for one value.
    return texts if isinstance(value, list) or getattr(parameter, "multiple", False) else texts[0]


def _beside(folder: Path, name: str, value: str) -> str:
    """Make a path relative to the folder of the settings file; a plain name may be that of fetched weights."""
    is_fetched = name == "weights_folder" and len(Path(value).parts) == 1 and not (folder / value).is_dir()
    return str(folder / value) if name in PATHS and value and not is_fetched else value


def _of_record(path: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield photo and clip of an earlier film, and its settings that are not defaults, from its run record.

    Raises:
        UsageError: there is no option for one of the settings, or it is of another version of the tool.
    """
    settings = dict(record["settings"])
    for role, row in dict(record.get("inputs") or {}).items():
        if role in ("reference", "driving", "curves") and isinstance(row, dict):
            yield role, str(Path(str(row.get("path"))).absolute())
    for name, cls in SECTIONS.items():
        yield from _changed(path, cls, dict(settings.pop(name, {})), "reference_")
    yield from _changed(path, Stretch, dict(settings.pop("driving_stretch", {})), "")
    for name, plain in (("driving_face", TrackConfig.face), ("head_model", ""), ("grid", False)):
        if settings.get(name, plain) != plain:
            yield name, settings[name]


NO_OPTION: dict[Any, tuple[str, ...]] = {
    FitConfig: ("iterations", "supervision", "recenter", "detail", "rounds"),
    TransferConfig: ("folds", "turn_limit_deg"),
}
"""Settings for which `generate` has no option, by their class."""


def _changed(path: Path, cls: Any, values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the recorded settings of a class that are not defaults, by the names of their options."""
    known = {field.name: field for field in fields(cls)}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{path} has the setting {name}, of another version of the tool. Use a .toml file.")
        field = known[name]
        default = field.default if field.default is not MISSING else field.default_factory()  # pyright: ignore
        if is_dataclass(default) and name in ("stretch", "wan"):
            yield from _changed(path, type(default), value, prefix)
        elif _plain(value) == _plain(default) or name == "several":
            continue
        elif is_dataclass(default) or name in NO_OPTION.get(cls, ()):
            raise UsageError(f"{path} was made with {name} = {value}, for which `generate` has no option.")
        elif name == "same_person":
            yield name, value == "yes"
        elif name == "lora":
            yield name, [str(Path(file).absolute()) for file in value.split(",")]
        else:
            # A plain name may be that of fetched weights, which is no path.
            is_path = name in PATHS or (name == "weights" and (len(Path(value).parts) > 1 or Path(value).is_dir()))
            text = str(Path(value).absolute()) if is_path else value
            option = "weights_folder" if name == "weights" else name
            yield (prefix if cls is Stretch else "") + option, text


def _plain(value: Any) -> str:
    return json.dumps(value, default=vars, sort_keys=True)


def _report_progress(value: str | None) -> str | None:
    if value is not None:
        output.report_as(value)
    return value


_early = partial(typer.Option, is_eager=True, show_default=False)
"""An option that is processed before the others, since it may set their values."""


def _shared(
    *,
    preset: Annotated[
        str | None,
        _early(
            callback=_take_preset,
            metavar="NAME",
            help=f"Predefined options: {', '.join(PRESETS)}, or a NAME.toml in your configuration folder.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        _early(
            callback=_take_config,
            metavar="FILE",
            help="Options from a .toml file, or from the record of a film (OUT.json). Other options override it.",
        ),
    ] = None,
    progress: Annotated[
        str | None,
        _early(
            callback=_report_progress,
            metavar="json|json:FD",
            help="Write progress, log and exit code as JSON, one object per line, to stderr or a file descriptor.",
            rich_help_panel=options.RUN,
        ),
    ] = None,
    device: options.Device = None,
    quiet: options.Quiet = False,
    log_level: options.LogLevel = None,
) -> None:
    """Signature of the options that all commands share; their callbacks do the work."""


def shared(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `_shared` to a command's function."""
    own = signature(function)
    more = [parameter for name, parameter in signature(_shared).parameters.items() if name not in own.parameters]

    @wraps(function)
    def call(**values: Any) -> None:
        function(**{name: value for name, value in values.items() if name in own.parameters})

    call.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # pyright: ignore
    call.__annotations__ = {**function.__annotations__, **{each.name: each.annotation for each in more}}
    return call


class Command(TyperCommand):
    """A command whose help lists its options in the groups that their `rich_help_panel` names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; settings of a record that belong to a replaced input are dropped, with a warning."""
        rest = super().parse_args(ctx, args)
        if RECORDED in ctx.meta:
            _drop_settings_of_other_inputs(ctx)
        return rest

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, in the order of their first options; the shared options come last."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        last: list[tuple[str, str]] = []
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            panel = getattr(parameter, "rich_help_panel", None)
            if panel == options.RUN or parameter.name == "help":
                last.append(record)
            else:
                first = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(panel or first, []).append(record)
        for title, rows in {**groups, options.RUN: last}.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class ListingCommand(ListCommand, Command):
    """A `ListCommand` with help in groups."""


class App(typer.Typer):
    """A group of commands, each with the options of `_shared`."""

    def command(self, name: str | None = None, **details: Any) -> Callable[..., Any]:
        """Register a function as a command; the function itself is not changed."""
        register = super().command(name, **{"cls": Command, **details})

        def registered(function: Callable[..., None]) -> Callable[..., None]:
            register(shared(function))
            return function

        return registered
