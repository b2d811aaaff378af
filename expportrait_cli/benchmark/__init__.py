"""Benchmarks (`eval --suite`): films of many pairs and methods are made or read, measured, and compared.

Metrics of one film are in `evaluation`; here are the pairs, the means over them, and their HTML page.
"""
