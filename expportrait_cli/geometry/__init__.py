"""Cameras, rotations, meshes: pure functions on arrays and tensors.

Nothing here knows a head, a file or a network.
"""
