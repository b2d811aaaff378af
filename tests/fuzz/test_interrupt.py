"""A handful of interruptions; `make fuzz` makes many."""

import pytest
from fuzz.interrupt import fuzz


@pytest.mark.slow
def test_interrupted_commands_lose_nothing(tmp_path):
    assert fuzz(tmp_path, 4, 1, ["transfer", "render-normals"]) == 0
