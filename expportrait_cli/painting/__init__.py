"""Painters: from the photo and a posed head to the frames of the film (paper 3.3).

A new painter is a class in a module here, and a line in `stage`; `proxy` is the textured mesh, `wan` the transformers.
"""

from expportrait_cli.painting.stage import paint as paint
