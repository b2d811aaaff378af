"""The Python interface: what it exports, that importing it is light, and that settings are documented for the help."""

import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest

import expportrait_cli
from expportrait_cli import config
from expportrait_cli.cli.boundary import as_options, command_line
from expportrait_cli.cli.options import _documented

SNAPSHOT = {
    "evaluate": "(film, target, out, *, reference=None, page=None, stretch=None, stage)",
    "fit": "(trackings, out, config=None, *, driver=None, known=None, stage)",
    "generate": "(reference, driving, out, *, track=None, fit=None, transfer=None, paint=None, head_model=None, "
    "stretch=None, stage)",
    "load": "(path)",
    "render_normals": "(meshes, out, config=None, *, view='', orbit='', depth=False, mask=False, preview=False, stage)",
    "save": "(artifact, path)",
    "track": "(source, out, config=None, *, head_model='anny', parameters=None, stage)",
    "transfer": "(head, driving, out, config=None, *, curves=None, driver_head=None, stage)",
}


def plain(function) -> str:
    """Names and defaults alone; the default of `stage` is a function."""
    parts, keyword_only = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
            keyword_only = True
        has_default = parameter.default is not parameter.empty and not callable(parameter.default)
        parts.append(f"{name}={parameter.default!r}" if has_default else name)
    return f"({', '.join(parts)})"


def test_the_interface_is_what_it_was():
    assert sorted(expportrait_cli.__all__) == sorted(SNAPSHOT)
    assert {name: plain(getattr(expportrait_cli, name)) for name in SNAPSHOT} == SNAPSHOT
    assert expportrait_cli.__version__ == "0.2.0"


@pytest.mark.slow
def test_functions_stay_functions_when_their_stages_are_imported():
    code = (
        "import expportrait_cli.pipeline.film, expportrait_cli.tracking.stage\n"
        "from expportrait_cli import evaluate, fit, generate, load, render_normals, save, track, transfer\n"
        "print(all(map(callable, (evaluate, fit, generate, load, render_normals, save, track, transfer))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_importing_the_package_is_light():
    code = "import sys, expportrait_cli; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_every_setting_is_documented_once():
    classes = [cls for cls in vars(config).values() if isinstance(cls, type) and is_dataclass(cls)]
    for cls in classes:
        assert list(_documented(cls.__module__)[cls.__name__]) == [field.name for field in fields(cls)], cls.__name__


def test_messages_name_parameters_and_the_command_line_its_options():
    from expportrait_cli.cli.app import app

    command_line.app = app
    said = as_options("`neutral_frame=99`: give `region`, or `own=False`; run `pip install x`, not `nothing=1`.")
    assert said == "--neutral-frame 99: give --region, or --no-own; run `pip install x`, not `nothing=1`."
    assert as_options("`same_person=no`, `same_person=yes`") == "--different-person, --same-person"
