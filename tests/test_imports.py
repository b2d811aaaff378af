"""What `--help` must not load, and the layers, which keep it so."""

import subprocess
import sys

from support.imports import HEAVY


def test_importing_the_command_line_loads_nothing_heavy():
    code = "import sys, expportrait_cli.cli.app; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_help_of_every_command_loads_nothing_heavy():
    for command in ("generate", "track", "fit", "transfer", "render-normals", "eval", "batch", "doctor", "weights"):
        code = (
            "import sys; from expportrait_cli.cli.app import run;"
            f"assert run([{command!r}, '--help']) == 0; print('\\nMODULES', *sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "Usage: expportrait" in done.stdout
        assert not set(HEAVY) & set(done.stdout.partition("MODULES")[2].split())
