from expportrait_cli.painting.stage import paint as paint
