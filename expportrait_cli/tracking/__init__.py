"""A photo or a clip to its tracking: observe with the detectors, solve, steady.

The detectors themselves are in `detect`.
"""

from expportrait_cli.tracking.stage import Pretracked as Pretracked
from expportrait_cli.tracking.stage import track as track
from expportrait_cli.tracking.stage import with_parameters as with_parameters
