"""Data sets (`data prepare`): videos cut into clips, judged, tracked and fitted, and read back for training.

What is learned from them belongs into `train`.
"""
