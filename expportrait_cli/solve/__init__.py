"""From landmarks to the parameters of a head model, by Gauss-Newton: identity, expression, pose, camera.

Shared by tracking, fitting and evaluation; nothing dense is fitted here.
"""
