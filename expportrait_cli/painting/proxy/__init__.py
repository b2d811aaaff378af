"""The textured proxy: the photo carried by the mesh, layer by layer."""
