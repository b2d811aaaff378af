"""A handful of interruptions; `make fuzz` makes many."""

import subprocess
import sys

import pytest
from support.places import TESTS


@pytest.mark.slow
def test_interrupted_commands_lose_nothing():
    # In a process of its own: the tool is forked from it, and a test's has threads.
    words = ["-n", "4", "--seed", "1", "--only", "transfer", "--only", "render-normals"]
    done = subprocess.run([sys.executable, TESTS / "fuzz" / "interrupt.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
