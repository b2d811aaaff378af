"""The personalised head (paper 3.1): identity, static offset, dynamic offsets, from trackings and their pictures.

The solver from landmarks to parameters is in `solve`; this package contains losses, masks and descents of the mesh.
"""

from expportrait_cli.fitting.stage import fit as fit
from expportrait_cli.fitting.stage import shares_identity as shares_identity
