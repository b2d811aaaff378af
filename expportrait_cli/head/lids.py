"""What a blink moves."""

import numpy as np
import torch
from jaxtyping import Float32

from expportrait_cli.head.model import HeadModel, dense


def lid_travel(head: HeadModel) -> Float32[np.ndarray, "2 V"]:
    """How far a blink moves the skin of the left and of the right eye, m; zero for a head without that expression."""
    travel = torch.zeros(2, len(head.parts))
    for side, name in enumerate(("eyeBlinkLeft", "eyeBlinkRight")):
        if name in head.expression_names:
            moved = dense(head, head.expression_basis[..., head.expression_names.index(name)])
            travel[side] = moved.norm(dim=-1) * head.part("skin")
    return travel.numpy()
