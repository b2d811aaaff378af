"""Version of the tool; it is in the header of every artifact."""

__version__ = "0.2.0"
