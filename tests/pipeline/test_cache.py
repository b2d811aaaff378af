"""What makes an artifact current, and what makes it stale."""

from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from jaxtyping import Float64

from expportrait_cli.artifacts import npz
from expportrait_cli.config import TrackConfig
from expportrait_cli.pipeline import steps


@dataclass(frozen=True)
class Thing:
    KIND: ClassVar[str] = "thing"
    VERSION: ClassVar[int] = 1
    values: Float64[np.ndarray, " N"]


def header(config=None, inputs=None):
    return steps.made_by("track", asdict(config or TrackConfig()), inputs or {"source": "abc"})


def test_the_key_follows_settings_inputs_stage_tool_and_weights(monkeypatch):
    keys = {
        header()["key"],
        header(replace(TrackConfig(), on_missing="hold"))["key"],
        header(inputs={"source": "abd"})["key"],
        steps.made_by("fit", asdict(TrackConfig()), {"source": "abc"})["key"],
    }
    assert len(keys) == 4
    assert header()["key"] in keys
    monkeypatch.setattr(steps, "__version__", "99")
    keys.add(header()["key"])
    monkeypatch.setattr(steps, "catalogue", lambda: ())
    keys.add(header()["key"])
    assert len(keys) == 6


def test_made_once_then_read(tmp_path):
    made = []

    def make():
        made.append(1)
        return Thing(np.arange(3.0))

    path = tmp_path / "a.npz"
    for _ in range(2):
        assert steps.cached(Thing, path, header(), make).artifact.values.tolist() == [0, 1, 2]
    assert len(made) == 1
    steps.cached(Thing, path, header(inputs={"source": "new"}), make)
    assert len(made) == 2


@pytest.mark.parametrize("damage", [b"", b"no zip", None])
def test_a_damaged_artifact_is_made_again(damage, tmp_path, caplog):
    path = tmp_path / "a.npz"
    npz.save(Thing(np.zeros(3)), path, header())
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    assert steps.cached(Thing, path, header(), lambda: Thing(np.ones(3))).artifact.values.tolist() == [1, 1, 1]
    assert npz.load(Thing, path).values.tolist() == [1, 1, 1]
    assert [record.getMessage() for record in caplog.records] == [f"{path} is damaged, and is made again."]
