"""Writers of meshes for other programs: glTF, OBJ, PLY.

Their inputs are vertices; artifacts are read in `pipeline.export`.
"""

from expportrait_cli.export.gltf import write_glb as write_glb
from expportrait_cli.export.morphs import compress as compress
from expportrait_cli.export.shape import exported_poses as exported_poses
from expportrait_cli.export.shape import write_surface as write_surface
