"""Pages that are made from the code: the commands from their help, the file formats from the dataclasses."""

import ast
import inspect
from dataclasses import fields, is_dataclass
from typing import Any

import mkdocs_gen_files
import typer

from expportrait_cli.artifacts import meshes, types
from expportrait_cli.cli.app import app
from expportrait_cli.evaluation.columns import SUITE_COLUMNS


def commands(command: Any, path: str) -> list[tuple[str, Any]]:
    """Every command that does something itself, with its whole name, in the order of the help."""
    if hasattr(command, "commands"):
        return [pair for name, sub in command.commands.items() for pair in commands(sub, f"{path} {name}")]
    return [(path, command)]


def command_page() -> str:
    """Make the page with the help of every command."""
    lines = ["# Commands", "", "Made from the command line's own help: `expportrait COMMAND --help` says the same.", ""]
    for path, command in commands(typer.main.get_command(app), "expportrait"):
        with command.context_class(command, info_name=path, terminal_width=100, max_content_width=100) as context:
            lines += [f"## {path.removeprefix('expportrait ')}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)


def described(kind: Any) -> dict[str, str]:
    """Sentence under each attribute of a class, by the attribute's name."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for here, below in zip(body.body, body.body[1:], strict=False):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and is_text:
            texts[here.target.id] = inspect.cleandoc(str(below.value.value)).replace("\n", " ")
    return texts


def table(kind: Any) -> list[str]:
    """One row for each array of an artifact: name, type, shape, meaning."""
    assert is_dataclass(kind)
    texts = described(kind)
    rows = ["| name | type | shape | meaning |", "|---|---|---|---|"]
    for field in fields(kind):
        dtypes = getattr(field.type, "dtypes", None)
        dtype = " or ".join(dtypes) if dtypes else getattr(field.type, "__name__", str(field.type))
        shape = getattr(field.type, "dim_str", "").strip()
        rows.append(f"| `{field.name}` | {dtype} | {shape and f'[{shape}]'} | {texts.get(field.name, '')} |")
    return [*rows, ""]


FORMATS = (
    ("Tracking: `.track.npz`", types.Tracking),
    ("Head: `.head.npz`", types.HeadFit),
    ("Curves, in meshes and as CSV", types.Curves),
    ("Relief, in heads and meshes", types.Relief),
    ("Meshes: `.meshes.npz`, once opened", meshes.Meshes),
)


def format_page() -> str:
    """Every array of every artifact."""
    lines = ["# File formats", "", inspect.cleandoc(types.__doc__ or ""), ""]
    lines += [
        "All are NumPy `.npz` archives without pickles: `numpy.load(path, allow_pickle=False)` reads them. The",
        "member `header` is JSON: kind, version, and what made the file. A file of an older version is refused with",
        "the command that makes it again.",
        "",
    ]
    for title, kind in FORMATS:
        lines += [f"## {title}", "", inspect.cleandoc(kind.__doc__ or ""), "", *table(kind)]
    with mkdocs_gen_files.open("formats-films.md", "r") as other:
        lines.append(other.read())
    return "\n".join(lines)


def metric_page() -> str:
    """Every column of the scores."""
    lines = [
        "# Metrics",
        "",
        "Made from the scores' own columns. IOD is the distance between the outer eye corners.",
        "",
        "| column | unit | better | estimator | definition |",
        "|---|---|---|---|---|",
    ]
    for column in SUITE_COLUMNS:
        lines.append(
            f"| `{column.name}` | {column.unit} | {column.better} | {column.estimator} | {column.definition} |"
        )
    return "\n".join(lines)


for name, text in {"commands.md": command_page(), "formats.md": format_page(), "metrics.md": metric_page()}.items():
    with mkdocs_gen_files.open(name, "w") as page:
        page.write(text)
