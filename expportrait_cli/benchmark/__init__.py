"""Benchmarks (`eval --suite`): films of many pairs and methods, made or read, scored and set side by side.

A metric of one film belongs into `evaluation`; here lie the pairs, the means over them, and their page.
"""
