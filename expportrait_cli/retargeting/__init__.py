from expportrait_cli.retargeting.stage import Beyond as Beyond
from expportrait_cli.retargeting.stage import posed_frames as posed_frames
from expportrait_cli.retargeting.stage import transfer as transfer
