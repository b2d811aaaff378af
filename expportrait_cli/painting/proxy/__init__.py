"""The textured proxy: the photo's pixels carried by the posed mesh, with mouth, eyes and lids.

Faults of a film's mouth, lids, hair or background are mended here.
"""
