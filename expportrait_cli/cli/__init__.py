"""The command line: options, progress on stderr, errors as exit codes.

It has no numerics, and nothing that callers from Python need: that is in `pipeline.commands`.
"""
