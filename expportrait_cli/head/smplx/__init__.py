"""SMPL-X as a head model."""
