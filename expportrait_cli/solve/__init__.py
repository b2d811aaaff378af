"""Gauss-Newton solver for a head model's identity, expression and pose from landmarks.

Shared by tracking, fitting and evaluation; dense offsets are fitted in `fitting`.
"""
