"""Trainings, each in its own folder, and the code that they share: scenes of prepared clips, curves, saved states."""
