"""The command line: options, progress on stderr, errors as exit codes.

No numerics, and nothing that a caller from Python would miss: that is in `pipeline.commands`.
"""
