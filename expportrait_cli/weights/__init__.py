"""Weight files: the catalogue, where they lie, how they are fetched and checked.

What a network computes is where it is used.
"""
