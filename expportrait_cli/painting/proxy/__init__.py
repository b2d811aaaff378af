"""The textured proxy: the photo's pixels warped by the posed mesh, with a modelled mouth, eyes and lids.

The modules paint the mouth, the lids, the hair and the background of a film.
"""
