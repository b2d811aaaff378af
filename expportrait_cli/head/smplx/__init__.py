"""SMPL-X as a head model: read, cut, embedded. A further head model gets a module or folder like this one in `head`."""
