"""Photos, films and sound: reading, writing, joining. Only this package starts ffmpeg.

It is independent of the content of pictures.
"""
