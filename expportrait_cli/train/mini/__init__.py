"""Training of the small painter."""
