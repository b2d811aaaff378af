"""Expression transfer (paper 3.2): from the driver's motion to the person's head.

Contains the identity-adaptive network; its training is in `train.transfer`.
"""

from expportrait_cli.retargeting.stage import Beyond as Beyond
from expportrait_cli.retargeting.stage import posed_frames as posed_frames
from expportrait_cli.retargeting.stage import transfer as transfer
