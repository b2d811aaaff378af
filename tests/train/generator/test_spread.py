"""Training the generator in two processes: whole in each (DDP) and in pieces (FSDP 2), it is the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.places import ROOT, TESTS
from torch import Tensor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Folder of the runs of `spread_run`, made by two processes on the CPU."""
    folder = tmp_path_factory.mktemp("spread")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]),
    }
    done = subprocess.run(
        [*command, str(TESTS / "support" / "spread_run.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def rows(folder: Path, stop: int = 0) -> list[dict[str, Any]]:
    return json.loads((folder / f"rows-{stop}.json").read_text())


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


def assert_same(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    """States of the same tensors, which differ by no more than the order of sums."""
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype, name
        # Adam's first steps are as large where the gradient is rounding alone.
        assert torch.allclose(found[name], tensor, atol=2e-3), name
    assert max(float((found[name] - tensor).abs().mean()) for name, tensor in expected.items()) < 1e-4


@pytest.mark.parametrize("whole, pieces", [("whole", "pieces"), ("lora", "lora-pieces")])
def test_pieces_learn_what_the_whole_learns(whole, pieces, made):
    """And make the same films on the way."""
    assert_same(state(made / whole), state(made / pieces))
    for one, other in zip(rows(made / whole), rows(made / pieces), strict=True):
        # Two blocks and the rest: gathered one at a time.
        assert other.pop("groups", 3) == 3
        assert other == pytest.approx(one, rel=1e-5)


def test_pieces_go_on_where_they_were_stopped(made):
    assert rows(made / "pieces-stopped", 2) == [{"stopped": True}]
    whole, gone_on = ((made / name / "state.safetensors").read_bytes() for name in ("pieces", "pieces-stopped"))
    assert whole == gone_on
    (film, validation, *_), (film_too, validation_too, *_) = rows(made / "pieces"), rows(made / "pieces-stopped")
    assert film == film_too and validation["held_out"] == validation_too["held_out"]


def test_a_run_moves_from_whole_to_pieces(made):
    assert rows(made / "moved", 3)[-1] == {"stopped": True}
    assert_same(state(made / "whole"), state(made / "moved"))


def test_what_learns_is_exact_beside_a_base_in_half_precision(made):
    halved, exact = state(made / "lora-pieces-halved"), state(made / "lora-pieces")
    assert halved.keys() == exact.keys()
    assert {tensor.dtype for name, tensor in halved.items() if "step" not in name} == {torch.float32}
    last = {name: rows(made / name)[2]["held_out"] for name in ("lora-pieces", "lora-pieces-halved")}
    assert last["lora-pieces-halved"] == pytest.approx(last["lora-pieces"], rel=0.02)
    assert last["lora-pieces-halved"] != last["lora-pieces"]


def test_the_old_kind_of_pieces_is_refused(made):
    said = (made / "refused.txt").read_text()
    assert said.startswith("accelerate distributes the model by FSDP 1, expected one device, DDP or FSDP 2. Launch")
