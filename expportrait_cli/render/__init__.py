"""From vertices to normals, depth and masks: the rasteriser contract, its backends, files of normal maps.

Colours of the film belong into `painting`.
"""

from .stage import render_normals as render_normals
