"""Training of the transfer network."""
