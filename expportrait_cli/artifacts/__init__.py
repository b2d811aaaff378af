"""The files between stages: their content, and how they are written and read.

No numerics; independent of the stages that make the artifacts.
"""
