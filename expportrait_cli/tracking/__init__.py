"""Tracking of a photo or a clip: detection in every frame, then the head model's parameters from the landmarks.

The detectors themselves are in `detect`.
"""

from expportrait_cli.tracking.stage import Pretracked as Pretracked
from expportrait_cli.tracking.stage import track as track
from expportrait_cli.tracking.stage import with_parameters as with_parameters
