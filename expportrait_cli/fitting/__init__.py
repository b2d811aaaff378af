from expportrait_cli.fitting.stage import fit as fit
