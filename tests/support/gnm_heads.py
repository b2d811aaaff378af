"""A file of GNM Head v3's format that is made from the default head."""

import numpy as np

from expportrait_cli.geometry.rotations import rodrigues
from expportrait_cli.head import HeadModel
from expportrait_cli.head.model import HEAD, JAW, NECK

SHIFT = np.array([0.01, 1.5, -0.1])
"""Where the file has its origin."""
ANGLE_RAD = 0.3


def arrays_of(anny: HeadModel) -> dict[str, np.ndarray]:
    """Eyes are the units of each lid; the lower face is its jaw, as a step along a rotation, and the mouth's units."""
    count = len(anny.template)
    template, bones = anny.template.double().numpy(), anny.skinning[:count].double().numpy()
    units = anny.expression_basis.double().numpy()
    hinge = rodrigues(np.array([ANGLE_RAD, 0.0, 0.0])) - np.eye(3)
    jaw = bones[:, JAW, None] * ((template - anny.joint_template[JAW].numpy()) @ hinge.T)
    names = [name for name in anny.expression_names if name.startswith("mouth")]
    shown = [("left_eye_region_000", units[..., anny.expression_names.index("eyeBlinkLeft")])]
    shown += [("right_eye_region_000", units[..., anny.expression_names.index("eyeBlinkRight")])]
    shown += [("lower_face_region_000", jaw)]
    shown += [(f"lower_face_region_{k:03}", units[..., anny.expression_names.index(n)]) for k, n in enumerate(names, 1)]
    parts = {name: anny.part(name)[:count].double().numpy() for name in anny.part_names}
    cavity = np.flatnonzero(parts["mouth_cavity"])
    tongue, lips = np.zeros(count), (np.abs(units[..., anny.expression_names.index("mouthPucker")]).sum(1) > 0.004)
    tongue[cavity[::2]] = 1
    groups = {
        **{"skin": parts["skin"], "left_eye": parts["eye_left"], "right_eye": parts["eye_right"]},
        **{"upper_teeth_and_gums": parts["teeth_upper"], "lower_teeth_and_gums": parts["teeth_lower"]},
        **{"tongue": tongue, "mouth_sock": parts["mouth_cavity"]},
        **{"upper_lip": lips * 1.0, "lower_lip": lips * 1.0},
    }
    order = [NECK, HEAD, 4, 5]
    skinning = np.stack([bones[:, 0] + bones[:, 1], bones[:, HEAD] + bones[:, JAW], bones[:, 4], bones[:, 5]])
    return {
        "version": np.array("3.0"),
        "variant": np.array("head"),
        "template_vertex_positions": (template + SHIFT).astype(np.float32),
        "vertex_identity_basis": anny.identity_basis.permute(2, 0, 1).numpy()[:20],
        "expression_basis": np.stack([step for _, step in shown]).astype(np.float32),
        "expression_names": np.array([name for name, _ in shown]),
        "joint_names": np.array(["neck", "head", "left_eye", "right_eye"]),
        "template_joint_positions": (anny.joint_template[order].numpy() + SHIFT).astype(np.float32),
        "joint_identity_basis": anny.joint_basis[order].permute(2, 0, 1).numpy()[:20],
        "skinning_weights": skinning.astype(np.float32),
        "triangles": anny.faces.numpy().astype(np.int32),
        "vertex_group_names": np.array(list(groups)),
        "vertex_groups": np.stack(list(groups.values())).astype(np.float32),
    }
