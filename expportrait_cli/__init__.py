"""Portrait reenactment through a personalised 3D head (ExpPortrait, CVPR 2026)."""

__version__ = "0.1.0"
