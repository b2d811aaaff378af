"""Where the offset fields live, and how what is common to all frames is told from what moves (paper 3.1.1, 3.1.3)."""

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.spatial import KDTree

from expportrait_cli.head import HeadModel, dense, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS
from expportrait_cli.head.model import HEAD, JAW, NECK

EAR_M = 0.066
EAR_FADE_STEPS = 8
EAR_SHARE = 0.3
"""Ears move as stiff pieces: their detail is beyond what an outline or a network knows."""
FEW, MANY = 4, 16
"""Distinct frames from which, and at which in full, the static field may enter the face."""
DISTINCT_DEG, DISTINCT_EXPRESSION = 8.0, 0.15
NEUTRAL_EXPRESSION, NEUTRAL_JAW_DEG = 0.5, 12.0
"""How far expression and jaw may be from rest for a frame to count as neutral."""
RIM_TOP_M = 0.03
"""Height in the head frame below which skin beside the face is bare on most people."""
EYES_M, MOUTH_M = 0.006, 0.004
"""Distance from the rims of eyes and lips within which pictures speak of lashes, teeth and gloss, not of skin."""


def ear_vertices(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """What stands out beside the head at the height of its origin, which lies between the ears."""
    x, y, z = dense(head, head.template).numpy().T
    return (np.abs(x) > EAR_M) & (np.abs(y) < 0.045) & (z > -0.045) & (z < 0.03)


def _ears(head: HeadModel) -> Float[np.ndarray, " V"]:
    """1 on the ears, falling to 0 over the skin around them: a hard edge would tear."""
    share, faces = ear_vertices(head).astype(float), head.dense_faces.numpy()
    count = np.maximum(np.bincount(faces.ravel(), minlength=len(share)), 1)
    for _ in range(EAR_FADE_STEPS):
        around = np.repeat(share[faces].mean(1), 3)
        share = np.bincount(faces.ravel(), around, len(share)) / count
    return share


def dynamic_mask(head: HeadModel) -> Float32[np.ndarray, " V"]:
    """Where Delta f lives: the face, fading out over its border; exactly 0 elsewhere."""
    return head.facial_mask.numpy().astype(np.float32)


def static_mask(head: HeadModel, share: float) -> Float32[np.ndarray, " V"]:
    """Where Delta g lives: skin, hair and clothes off the face, and the face itself by `share` (0..1)."""
    mask = 1 - (1 - share) * dynamic_mask(head)
    mask = mask * (1 - (1 - EAR_SHARE) * _ears(head))
    return (mask * head.part("skin").numpy()).astype(np.float32)


def plain_skin(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Facial skin that a picture shows plainly: without the rims of eyes and mouth."""
    verts = dense(head, head.template)
    points = landmarks(head, verts).numpy()
    skin = dynamic_mask(head) > 0.5
    for rim, reach in ((EYE_RINGS, EYES_M), (LIPS, MOUTH_M)):
        skin &= KDTree(points[rim]).query(verts.numpy())[0] > reach
    return skin


def bare_rim(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Skin around the face that hair rarely covers and no expression moves: ears, the edge of the jaw, the neck."""
    y = dense(head, head.template)[:, 1].numpy()
    bones = head.skinning[:, [NECK, HEAD, JAW]].sum(-1).numpy()
    return (bones > 0.5) & (dynamic_mask(head) < 0.02) & head.part("skin").numpy() & (y < RIM_TOP_M)


def distinct_frames(rotation: Float[np.ndarray, "T 3"], expression: Float[np.ndarray, "T E"]) -> int:
    """Number of frames that differ from each other in pose or expression, by greedy choice."""
    chosen: list[int] = []
    for t in range(len(rotation)):
        turn = np.degrees(np.linalg.norm(rotation[chosen] - rotation[t], axis=1))
        change = np.linalg.norm(expression[chosen] - expression[t], axis=1)
        if ((turn > DISTINCT_DEG) | (change > DISTINCT_EXPRESSION)).all():
            chosen.append(t)
        if len(chosen) >= MANY:
            break
    return len(chosen)


def face_share(distinct: int) -> float:
    """How far the static field may enter the face: 0 for one photo, whose expression cannot be told from its shape."""
    return float(np.clip((distinct - FEW) / (MANY - FEW), 0, 1))


def neutral_weights(expression: Float[np.ndarray, "T E"], jaw: Float[np.ndarray, "T 3"]) -> Float[np.ndarray, " T"]:
    """Weight of each frame in the mean that counts as the person's own shape; sums to one.

    The plain mean of a clip of smiles is a smile, and would be baked into the neutral face.
    """
    opening = np.linalg.norm(jaw, axis=1) / np.radians(NEUTRAL_JAW_DEG)
    effort = (expression**2).sum(1) / NEUTRAL_EXPRESSION**2 + opening**2
    weights = np.exp(-(effort - effort.min()))
    return weights / weights.sum()


def recentred(
    dynamic: Float32[np.ndarray, "T P C"], weights: Float[np.ndarray, " T"], share: float
) -> tuple[Float32[np.ndarray, "P C"], Float32[np.ndarray, "T P C"]]:
    """Move `share` of the weighted mean of the dynamic offsets to the static one: (what to add, what remains).

    Both are added before skinning, so that the mesh of every frame stays what it was.
    """
    mean = share * np.einsum("t,tpc->pc", weights, dynamic.astype(np.float64))
    return mean.astype(np.float32), (dynamic - mean).astype(np.float32)
