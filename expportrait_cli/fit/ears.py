"""Ears are carried by the skin around them: an outline, or hair over them, knows nothing of their folds."""

import numpy as np
from jaxtyping import Float
from scipy.sparse.linalg import splu

from expportrait_cli.fit.masks import ear_vertices
from expportrait_cli.fit.silhouette import graph_laplacian
from expportrait_cli.geometry.mesh import grown
from expportrait_cli.head import HeadModel

RIM_STEPS = 6
"""Rings of triangles around an ear that are carried with it."""


def carry_ears(offset: Float[np.ndarray, "V 3"], head: HeadModel) -> Float[np.ndarray, "V 3"]:
    """The static offset with that of the ears spanned between the skin around them, as a soap film is."""
    faces = head.dense_faces.numpy()
    ears = grown(ear_vertices(head) & head.part("skin").numpy(), faces, rings=RIM_STEPS)
    free, known = np.flatnonzero(ears), np.flatnonzero(~ears)
    rows = graph_laplacian(faces, len(offset))[free]
    carried = np.array(offset, np.float64)
    carried[free] = splu(rows[:, free].tocsc()).solve(-rows[:, known] @ carried[known])
    return carried
