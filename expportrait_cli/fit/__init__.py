from expportrait_cli.fit.stage import fit as fit
