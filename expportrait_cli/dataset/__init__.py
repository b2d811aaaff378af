"""A folder of videos made into a set for training."""
