from expportrait_cli.generate.stage import generate as generate
