"""Photos, films and sound: reading, writing, joining; the only place that starts ffmpeg.

Pixels in, pixels out; what they show is not known here.
"""
