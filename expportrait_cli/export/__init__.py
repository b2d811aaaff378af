from expportrait_cli.export.gltf import write_glb as write_glb
from expportrait_cli.export.morphs import compress as compress
from expportrait_cli.export.poses import poses as poses
from expportrait_cli.export.surface import write_surface as write_surface
