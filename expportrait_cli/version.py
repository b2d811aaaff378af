"""Version of the tool, which is stored in the header of every artifact."""

__version__ = "0.2.0"
