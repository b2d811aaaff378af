"""Modules that the help of a command must not load."""

HEAVY = ("torch", "mediapipe", "cv2", "warp", "numpy", "scipy", "rich.progress", "PIL", "huggingface_hub", "jinja2")
