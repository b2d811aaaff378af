"""Code that several trainings share: scenes of prepared clips, curves, the state on disk.

Each training has a folder of its own.
"""
