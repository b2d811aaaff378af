"""Weight files: catalogue, folders, download and verification.

The networks themselves are in the packages that use them.
"""
