"""Rendering of normals, depth and masks: the rasteriser contract, its backends, files of normal maps.

The colours of a film are painted in `painting`.
"""

from .stage import render_normals as render_normals
