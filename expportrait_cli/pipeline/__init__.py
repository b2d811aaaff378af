"""One film, from the command to the record: which stages run, from what, and what is already there.

`steps` runs the stages, `film` makes a film of them, `commands` is the Python interface. No numerics.
"""
