"""Cameras, rotations, meshes: pure functions on arrays and tensors, independent of head models, files and networks."""
