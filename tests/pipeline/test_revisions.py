"""Results of every stage: when they change, so must the revision in the keys, or old files pass for new ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.david_net import david_file
from support.places import TESTS
from support.stage_results import stage_results

from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.plan import film_key
from expportrait_cli.pipeline.steps import REVISIONS
from expportrait_cli.weights.catalogue import entry

GOLDEN = json.loads((TESTS / "golden" / "stages.json").read_text())
NOT_HELD = {"generator-cache"}
"""Stages whose results depend on weights that the repository does not hold."""
TOLERANCE = {"track": 2e-3, "fit": 2e-2, "transfer": 2e-3, "scan": 0.5}
"""Differences between machines; 0.005 (one grey level) for pictures."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return stage_results(tmp_path_factory.mktemp("stages"))


def test_every_stage_is_held():
    assert set(GOLDEN) == set(REVISIONS) - NOT_HELD


@pytest.mark.slow
@pytest.mark.parametrize("stage", GOLDEN)
def test_results_change_with_the_revision_alone(stage, results):
    held = GOLDEN[stage]
    advice = f"Raise REVISIONS[{stage!r}], if it was meant, and run `python tests/golden/make_stages.py`."
    assert REVISIONS[stage] == held["revision"], f"stages.json is of revision {held['revision']}. {advice}"
    assert len(results[stage]) == len(held["values"]), advice
    worst = float(np.abs(np.array(results[stage]) - held["values"]).max())
    assert worst < TOLERANCE.get(stage, 5e-3), f"{stage} differs by {worst:.4g}. {advice}"


@pytest.mark.parametrize("stage", ["track", "fit", "transfer", "render", "generate"])
def test_a_film_of_an_earlier_revision_is_made_again(stage, monkeypatch):
    job = Job(Path("a.png"), Path("b.mp4"), Path("c.mp4"))
    before = film_key(job, {"reference": "a"}, {"painter": "proxy"})
    assert film_key(job, {"reference": "a"}, {"painter": "proxy"}) == before
    monkeypatch.setitem(REVISIONS, stage, REVISIONS[stage] + 1)
    assert film_key(job, {"reference": "a"}, {"painter": "proxy"}) != before


def test_a_film_is_made_again_when_another_network_reads_normals(monkeypatch, tmp_path):
    job = Job(Path("a.png"), Path("b.mp4"), Path("c.mp4"))
    before = film_key(job, {}, {})
    david_file(tmp_path / entry("david").file)
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert film_key(job, {}, {}) != before
