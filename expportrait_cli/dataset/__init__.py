"""Datasets (`data prepare`): videos are cut into clips, checked, tracked and fitted, and read for training.

The trainings themselves are in `train`.
"""
