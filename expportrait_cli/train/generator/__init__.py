"""Training of the paper's generator."""
