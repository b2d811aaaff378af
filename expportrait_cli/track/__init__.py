from expportrait_cli.track.stage import track as track
