"""Landmarks to the parameters of a head model."""
