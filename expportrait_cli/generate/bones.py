"""Rigid parts of a posed head, for what the mesh does not carry."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from expportrait_cli.geometry.rotations import from_turns, rodrigues
from expportrait_cli.head.model import JAW, NECK


@dataclass(frozen=True)
class Bones:
    """Rotation and translation [3, 4] from canonical points to the camera."""

    head: Float[np.ndarray, "3 4"]
    jaw: Float[np.ndarray, "3 4"]
    torso: Float[np.ndarray, "3 4"]

    @classmethod
    def of(
        cls,
        joints: Float[np.ndarray, "6 3"],
        *,
        rotation: Float[np.ndarray, " 3"],
        translation: Float[np.ndarray, " 3"],
        jaw: Float[np.ndarray, " 3"],
        torso_rotation: Float[np.ndarray, " 3"],
        torso_translation: Float[np.ndarray, " 3"],
    ) -> "Bones":
        """From one frame of curves; the torso hangs at the neck joint."""
        turn, torso, hinge = from_turns(rotation), from_turns(torso_rotation), rodrigues(jaw)
        pivot = joints[JAW]
        return cls(
            head=np.c_[turn, translation],
            jaw=np.c_[turn @ hinge, turn @ (pivot - hinge @ pivot) + translation],
            torso=np.c_[torso, torso_translation - torso @ joints[NECK]],
        )
