"""Expression transfer (paper 3.2): the driver's performance on the person's head.

The identity-adaptive network is here; its training is in `train.transfer`.
"""

from expportrait_cli.retargeting.stage import Beyond as Beyond
from expportrait_cli.retargeting.stage import posed_frames as posed_frames
from expportrait_cli.retargeting.stage import transfer as transfer
