"""What networks say, before it is believed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from known_head import KnownHead, Oracle

from expportrait_cli.errors import WeightsError
from expportrait_cli.fit.clip import Clip
from expportrait_cli.fit.evidence import check_axes

pytest_plugins = ("astronaut",)


class Mirrored(Oracle):
    """A network whose x axis points to the left."""

    def __call__(self, crop):
        found = super().__call__(crop)
        return replace(found, normals=found.normals * np.float32([-1, 1, 1]))


@pytest.fixture
def known(head, monkeypatch):
    # The oracle draws its frames itself.
    monkeypatch.setattr(Clip, "crops", lambda self, rows: (np.zeros((2, 2, 3), np.uint8) for _ in rows))
    flat = np.zeros((1, len(head.parts)))
    return KnownHead.make(head, flat, np.zeros((len(head.parts), 3)), seed=0, source=Path())


def test_normals_with_our_axes_are_taken(known):
    check_axes(Oracle(known, noise_deg=6.0), known.clip, 0)


def test_normals_with_other_axes_are_refused(known):
    with pytest.raises(WeightsError, match="other axes"):
        check_axes(Mirrored(known), known.clip, 0)
