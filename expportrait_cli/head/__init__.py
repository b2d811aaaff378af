"""Parametric head models of several file formats, and FaceMesh's landmarks on them.

A new head model needs one module that builds a `HeadModel` from a file, as `gnm` does; its name in `model.HeadName`;
and a case each in `find_model` and `load_head`. docs/paper.md describes what the module must read from the file.
"""

from pathlib import Path

import torch

from expportrait_cli.head.facemesh import LandmarkModel as LandmarkModel
from expportrait_cli.head.facemesh import landmark_model as landmark_model
from expportrait_cli.head.model import BONES as BONES
from expportrait_cli.head.model import FindLandmarks as FindLandmarks
from expportrait_cli.head.model import HeadModel as HeadModel
from expportrait_cli.head.model import HeadName as HeadName
from expportrait_cli.head.model import HeadPose as HeadPose
from expportrait_cli.head.model import coarse as coarse
from expportrait_cli.head.model import default_torso as default_torso
from expportrait_cli.head.model import dense as dense
from expportrait_cli.head.model import gaze_pieces as gaze_pieces
from expportrait_cli.head.model import joints as joints
from expportrait_cli.head.model import landmarks as landmarks
from expportrait_cli.head.model import pose as pose
from expportrait_cli.weights.catalogue import weights_file


def find_model(name: HeadName) -> Path:
    """Path of the file that a head model is read from.

    Raises:
        WeightsError: the file is missing.
    """
    match name:
        case "anny":
            from expportrait_cli.head import anny

            return weights_file(anny.FILE)
        case "smplx":
            from expportrait_cli.head.smplx.build import find_file

            return find_file()
        case "gnm":
            from expportrait_cli.head import gnm

            return gnm.find_file()


def load_head(
    name: HeadName = "anny", device: torch.device | str = "cpu", *, find_landmarks: FindLandmarks | None = None
) -> HeadModel:
    """Load a head model by its name.

    `find_landmarks` is called for a user's file that has no landmarks in the cache yet (`embed.with_landmarks`).

    Raises:
        WeightsError: its file is missing, or cannot be used.
    """
    match name:
        case "anny":
            from expportrait_cli.head import anny

            return anny.load(device)
        case "smplx":
            from expportrait_cli.head.smplx import build

            return build.load(device, find_landmarks=find_landmarks)
        case "gnm":
            from expportrait_cli.head import gnm

            return gnm.load(device, find_landmarks=find_landmarks)
