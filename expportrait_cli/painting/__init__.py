"""Painters: they make the frames of the film from the photo and the posed head (paper 3.3).

`proxy` is the textured mesh, `wan` the video transformers. A new painter is a class here, and a case in `stage`.
"""

from expportrait_cli.painting.stage import paint as paint
