"""SMPL-X as a head model: reading of its file, cutting of the head, and search for regions and landmarks."""
