"""The files between stages: what each holds, and how it is written and read.

No numerics, and nothing that knows how an artifact is made.
"""
