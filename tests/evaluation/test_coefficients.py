"""Deep3DFaceRecon and SMIRK: crops, and networks in form alone whose numbers follow from the picture."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from support.scored_films import clip, moved, portrait, score

from expportrait_cli.errors import WeightsError
from expportrait_cli.evaluation import coefficients
from expportrait_cli.evaluation.coefficients import POINTS, TEMPLATE, Deep3D, Smirk, around_landmarks, at_template

SIDE = 224
SMIRK = {"expression_params": 50, "cam": 3, "pose_params": 3, "jaw_params": 3}


def network(path: Path, outputs: dict[str, int], *, side: int = SIDE) -> dict[str, np.ndarray]:
    """Write a network whose every number is a fixed weighted sum of the mean colour; return the weights by output."""
    random = np.random.default_rng(7)
    matrices = {name: random.normal(size=(3, count)).astype(np.float32) for name, count in outputs.items()}
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0)]
    nodes += [helper.make_node("MatMul", ["m", f"w_{name}"], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes,
        "coefficients",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count]) for name, count in outputs.items()],
        [numpy_helper.from_array(matrix, f"w_{name}") for name, matrix in matrices.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return matrices


def landmarks(five: np.ndarray) -> np.ndarray:
    """478 points of which some are the five that the crop looks at; the corners of an eye lie around its middle."""
    points = np.full((478, 2), 150.0)
    for (first, *rest), place in zip(POINTS, five, strict=True):
        points[[first, *rest]] = place + (np.array([[-9.0, 1.0], [9.0, -1.0]]) if rest else 0.0)
    return points


def spots(size: tuple[int, int], places: np.ndarray) -> np.ndarray:
    """Soft red spots, of pixel centres at +0.5, on black."""
    x, y = (np.arange(n) + 0.5 for n in size)
    grey = sum(np.exp(-((x - u) ** 2 + (y[:, None] - v) ** 2) / 18) for u, v in places)
    return np.stack([np.round(255 * grey), np.zeros_like(grey), np.zeros_like(grey)], -1).astype(np.uint8)


def brightest(image: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Centre of the red within 9 px of a place."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weights = image[..., 0] * (np.hypot(x - near[0], y - near[1]) < 9)
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize(("unit_px", "centre"), [(150.0, (300.0, 260.0)), (70.0, (90.0, 400.0))])
def test_deep3d_s_crop_puts_the_template_where_it_belongs(unit_px, centre):
    # The template seen from the front: y points down in a picture.
    offsets = TEMPLATE[:, :2] * [1, -1]
    five = np.array(centre) + unit_px * offsets
    crop = at_template(spots((640, 480), five), landmarks(five))
    assert crop.shape == (SIDE, SIDE, 3)
    for place in 112 + 102 * offsets:
        # Sizes and edges are whole pixels, and the published crop lies half a pixel off: 1 px in all.
        assert np.abs(brightest(crop, place) - place).max() < 1.3


@pytest.mark.parametrize(("unit_px", "centre"), [(170.0, (250.0, 200.0)), (21.3, (60.0, 330.0)), (90.0, (15.0, 390.0))])
def test_deep3d_s_crop_is_cut_from_the_scaled_picture(unit_px, centre):
    noise = np.random.default_rng(3).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    points = landmarks(np.array(centre) + unit_px * TEMPLATE[:, :2] * [1, -1])
    scale = 102 / unit_px
    size = int(500 * scale), int(400 * scale)
    left = int(size[0] / 2 - 112 + (centre[0] - 0.5 - 250) * scale)
    top = int(size[1] / 2 - 112 + (200 - (399.5 - centre[1])) * scale)
    whole = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    expected = np.array(whole.crop((left, top, left + 224, top + 224))).astype(int)
    # PIL's weights are rounded.
    assert np.abs(at_template(noise, points) - expected).max() <= 1


def test_the_place_is_that_of_the_camera_that_saw_the_template():
    random = np.random.default_rng(2)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    where, unit_px = coefficients.place(TEMPLATE @ (130 * turn[:2]).T + [20.0, -7.0])
    assert unit_px == pytest.approx(130) and where == pytest.approx([20, -7])


def test_smirk_s_crop_is_the_box_of_the_landmarks_made_wider():
    low, high = np.array([200.0, 120.0]), np.array([300.0, 260.0])
    points = np.linspace(low, high, 478)
    picture = spots((640, 480), np.stack([low, high]))
    crop = around_landmarks(picture, points)
    side = 1.4 * 120
    for corner in (low, high):
        # The published crop takes landmarks for pixel centres: half a pixel apart.
        place = (corner - 0.5 - ((low + high) / 2 - side / 2)) * 223 / side + 0.5
        assert np.abs(brightest(crop, place) - place).max() < 0.3


def test_a_crop_beyond_the_picture_is_black():
    white, far = np.full((200, 200, 3), 255, np.uint8), np.array([10.0, 190.0])
    five = far + 80 * TEMPLATE[:, :2] * [1, -1]
    for crop in (
        at_template(white, landmarks(five)),
        around_landmarks(white, np.linspace(far - 60, far + 60, 478)),
    ):
        assert crop[0, -1].min() == 255 and not crop[0, 0].any() and not crop[-1].any()


def test_networks_see_rgb_between_0_and_1_and_their_numbers_are_taken_from_their_places(tmp_path):
    colour = np.array([200, 120, 30], np.uint8)
    picture = np.full((600, 600, 3), colour)
    five = 300 + 100 * TEMPLATE[:, :2] * [1, -1]
    weights = network(tmp_path / "deep3d.onnx", {"anything": 257})["anything"]
    expression, angles = Deep3D(tmp_path / "deep3d.onnx").read(picture, landmarks(five))
    whole = colour / 255 @ weights
    np.testing.assert_allclose(expression, whole[80:144], atol=3e-4)
    np.testing.assert_allclose(angles, whole[224:227], atol=3e-4)
    named = network(tmp_path / "smirk.onnx", SMIRK)
    expression, turn = Smirk(tmp_path / "smirk.onnx").read(picture, np.linspace(200.0, 400.0, 956).reshape(478, 2))
    np.testing.assert_allclose(expression, colour / 255 @ named["expression_params"], atol=3e-4)
    np.testing.assert_allclose(turn, colour / 255 @ named["pose_params"], atol=3e-4)


@pytest.mark.parametrize(
    ("kind", "outputs", "side", "words"),
    [
        (Deep3D, {"c": 256}, SIDE, r"gives \[\[1, 256\]\], expected Deep3DFaceRecon: coefficients \[1, 257\]"),
        (Deep3D, {"c": 257, "d": 3}, SIDE, r"expected Deep3DFaceRecon: coefficients \[1, 257\]"),
        (Deep3D, {"c": 257}, 256, r"takes tensor\(float\) \[1, 3, 256, 256\], expected Deep3DFaceRecon"),
        (Smirk, {"expression_params": 50}, SIDE, r"expected SMIRK's encoders: .*pose_params \[1, 3\]"),
        (Smirk, {**SMIRK, "expression_params": 55}, SIDE, r"expression_params \[1, 50\]"),
        (Smirk, None, SIDE, "is no ONNX network that could be read"),
    ],
)
def test_another_network_is_refused_in_one_line(kind, outputs, side, words, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"\x80\x04no network")
    if outputs is not None:
        network(path, outputs, side=side)
    with pytest.raises(WeightsError, match=words) as caught:
        kind(path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["self", "cross"])
def test_columns_are_mean_absolute_differences_frame_by_frame(mode, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    deep = network(tmp_path / "deep3d.onnx", {"coefficients": 257})["coefficients"]
    weights = network(tmp_path / "smirk.onnx", SMIRK)
    frames = [moved(portrait(), x, 0) for x in (0, 2, 5)]
    darker = [cv2.convertScaleAbs(frame, alpha=0.8) for frame in frames]
    truth, film = clip(tmp_path / "truth.mkv", frames), clip(tmp_path / "film.mkv", [frames[0], *darker[1:]])
    scores = score(film, truth, None if mode == "self" else truth)
    # The same face in both, so the same crop: every coefficient differs by a fifth of the target's own.
    assert all(scores.rows[0][name] == 0 for name in (*Deep3D.columns, *Smirk.columns))
    found = {name: scores.rows[1][name] for name in (*Deep3D.columns, *Smirk.columns)}
    from expportrait_cli.evaluation.face import LandmarkDetector

    points = [LandmarkDetector().detect(picture) for picture in (darker[1], frames[1])]
    for name, matrix, aligned in (
        ("aed_deep3d_mean", deep[:, 80:144], at_template),
        ("apd_deep3d_mean_rad", deep[:, 224:227], at_template),
        ("aed_smirk_mean", weights["expression_params"], around_landmarks),
        ("apd_smirk_mean_rad", weights["pose_params"], around_landmarks),
    ):
        colours = [
            aligned(picture, seen).mean((0, 1)) / 255
            for picture, seen in zip((darker[1], frames[1]), points, strict=True)
        ]
        expected = np.abs((colours[0] - colours[1]) @ matrix).mean()
        assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-5) and expected > 0.01
    assert scores.counts["aed_smirk_mean"] == (2 if mode == "self" else 3)
    assert scores.to_json()["versions"]["deep3d.onnx"].endswith("licence MIT")
