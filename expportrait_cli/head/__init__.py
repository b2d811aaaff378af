"""Parametric head models and their landmarks."""

from typing import Literal

import torch

from expportrait_cli.head.landmarks import LandmarkModel as LandmarkModel
from expportrait_cli.head.landmarks import landmark_model as landmark_model
from expportrait_cli.head.model import BONES as BONES
from expportrait_cli.head.model import HeadModel as HeadModel
from expportrait_cli.head.model import coarse as coarse
from expportrait_cli.head.model import default_torso as default_torso
from expportrait_cli.head.model import dense as dense
from expportrait_cli.head.model import gaze_pieces as gaze_pieces
from expportrait_cli.head.model import joints as joints
from expportrait_cli.head.model import landmarks as landmarks
from expportrait_cli.head.model import pose as pose


def load_head(name: Literal["anny"] = "anny", device: torch.device | str = "cpu") -> HeadModel:
    """Load a head model by its name.

    Raises:
        WeightsError: its file is missing.
    """
    match name:
        case "anny":
            from expportrait_cli.head import anny

            return anny.load(device)
