"""Meshes for other programs: glTF, OBJ, PLY.

From vertices to files; which artifact they come from is `pipeline.export`'s business.
"""

from expportrait_cli.export.gltf import write_glb as write_glb
from expportrait_cli.export.morphs import compress as compress
from expportrait_cli.export.shape import exported_poses as exported_poses
from expportrait_cli.export.shape import write_surface as write_surface
