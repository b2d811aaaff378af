from expportrait_cli.transfer.stage import Beyond as Beyond
from expportrait_cli.transfer.stage import posed_frames as posed_frames
from expportrait_cli.transfer.stage import transfer as transfer
