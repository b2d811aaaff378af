"""Running of the stages: from which inputs, and which results of earlier runs are reused; run records; lists of films.

`steps` runs single stages, `film` makes a film, `commands` is the Python interface. No numerics.
"""
