from expportrait_cli.tracking.stage import track as track
