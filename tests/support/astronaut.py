"""Fixtures: the head model, and the astronaut that scikit-image ships, tracked and fitted once a session.

A test module asks for them by `pytest_plugins = ("astronaut",)`.
"""

from pathlib import Path

import pytest
import skimage.data
from PIL import Image

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig, FitDescent, TrackConfig
from expportrait_cli.fitting import fit
from expportrait_cli.head import HeadModel, LandmarkModel, landmark_model, load_head
from expportrait_cli.solve.solver import Solver
from expportrait_cli.tracking import track
from support.performers import quiet

QUICK = FitConfig(quality="draft", rounds=1, descent=FitDescent(outline_steps=1))
"""A fit of a photo in a third of the time, for tests to which its outline does not matter."""


@pytest.fixture(scope="session")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="session")
def model(head) -> LandmarkModel:
    return landmark_model(head)


@pytest.fixture(scope="session")
def solver(model) -> Solver:
    return Solver(model, focal_px=1300.0, centre_px=CROP_SIZE / 2)


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()).save(path)
    return path


@pytest.fixture(scope="session")
def photo_tracking(photo, head) -> Tracking:
    return track(photo, head, TrackConfig(), quiet)


@pytest.fixture(scope="session")
def fitted(photo_tracking, head) -> HeadFit:
    return fit([photo_tracking], head, FitConfig(), quiet)
