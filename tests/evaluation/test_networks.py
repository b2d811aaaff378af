"""Metrics that rest on weights of the user's: LPIPS and ArcFace, with made-up weights on both sides of a comparison."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from support.scored_films import clip, moved, portrait, score
from torch import nn

from expportrait_cli.errors import WeightsError
from expportrait_cli.evaluation import lpips
from expportrait_cli.evaluation.estimators import TEMPLATE, ArcFace, arcface_crop
from expportrait_cli.evaluation.face import LandmarkDetector
from expportrait_cli.evaluation.lpips import Lpips
from expportrait_cli.evaluation.onnx_net import first_operators
from expportrait_cli.weights.catalogue import entry

pytestmark = pytest.mark.slow

LAST = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
"""Layers of torchvision's `features` that LPIPS looks behind."""


def backbone(net: lpips.Net) -> nn.Sequential:
    """`features` of torchvision's AlexNet or VGG-16, as their papers describe them, with random weights."""
    torch.manual_seed(3)
    if net == "alex":
        first = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()]
        sizes = ((192, 384), (384, 256), (256, 256))
        rest = [layer for sides in sizes for layer in (nn.Conv2d(*sides, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*first, nn.MaxPool2d(3, 2), *rest)
    layers, inputs = [], 3
    for block, outputs in zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), strict=True):
        for _ in range(block):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def weights(net: lpips.Net, folder: Path) -> tuple[Path, nn.Sequential, list[torch.Tensor]]:
    """A file of weights as README.md has it made, and what is in it."""
    features = backbone(net)
    channels = [m.out_channels for m in (features[index - 1] for index in LAST[net]) if isinstance(m, nn.Conv2d)]
    heads = [torch.rand(1, count, 1, 1) for count in channels]
    tensors = {f"features.{name}": value.contiguous() for name, value in features.state_dict().items()}
    tensors |= {f"lin{level}.model.1.weight": head for level, head in enumerate(heads)}
    path = folder / entry(lpips.WEIGHTS[net]).file
    save_file({**tensors, "classifier.1.bias": torch.zeros(3)}, path)
    return path, features, heads


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.rand(2, 3, 70, 81, generator=torch.Generator().manual_seed(5))
    return noise * 2 - 1, (noise.roll(2, 3) * 1.6 - 0.8)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_formula_of_its_paper(net, tmp_path):
    path, features, heads = weights(net, tmp_path)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total = torch.zeros(2)
    with torch.inference_mode():
        for last, head in zip(LAST[net], heads, strict=True):
            seen = [features[: last + 1]((x - shift[:, None, None]) / scale[:, None, None]) for x in pictures()]
            one, two = (x / torch.linalg.norm(x, dim=1, keepdim=True).clamp_min(1e-10) for x in seen)
            total += ((one - two) ** 2 * head).sum(1).mean((1, 2))
        own = Lpips(net, path)
        torch.testing.assert_close(own(*pictures()), total, rtol=1e-4, atol=1e-5)
        assert own(pictures()[0], pictures()[0]).abs().max() == 0 and own(*pictures()).min() > 0.01


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_what_torchmetrics_measures(net, tmp_path, monkeypatch):
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    path, features, heads = weights(net, tmp_path)
    # Its backbones come from torchvision, which is not needed for this.
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda name, pretrained: features)
    other = theirs._LPIPS(pretrained=False, net=net, pnet_rand=True)
    for lin, head in zip(other.lins, heads, strict=True):
        lin.model[1].weight.data = head
    with torch.inference_mode():
        expected = other(*pictures()).flatten()
        torch.testing.assert_close(Lpips(net, path)(*pictures()), expected, rtol=1e-3, atol=1e-3)


def test_a_file_that_lacks_a_tensor_or_is_none_is_refused(tmp_path):
    path, _, _ = weights("alex", tmp_path)
    with pytest.raises(WeightsError, match=r"features\.0\.weight has the shape \(64, 3, 11, 11\), expected \(64, 3, 3"):
        Lpips("vgg", path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="is missing"):
        Lpips("alex", path)
    path.write_bytes(b"\x80\x04pickled")
    with pytest.raises(WeightsError, match="no safetensors"):
        Lpips("alex", path)


def network(path: Path, *, side: int = 112, scales_itself: bool = False) -> Path:
    """An ArcFace in form alone: its descriptor is the face in 8 x 8 squares."""
    taken = "s" if scales_itself else "x"
    pool = helper.make_node("AveragePool", [taken], ["p"], kernel_shape=[14, 14], strides=[14, 14])
    nodes = [pool, helper.make_node("Flatten", ["p"], ["d"])]
    numbers = {"mean": 127.5, "scale": 1 / 127.5} if scales_itself else {}
    if scales_itself:
        first = [helper.make_node("Sub", ["x", "mean"], ["m"]), helper.make_node("Mul", ["m", "scale"], ["s"])]
        nodes = [*first, *nodes]
    tensors = [helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in numbers.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, side, side])]
    outputs = [helper.make_tensor_value_info("d", TensorProto.FLOAT, ["N", 192])]
    graph = helper.make_graph(nodes, "face", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_a_face_is_aligned_wherever_it_lies():
    picture = portrait()
    points = LandmarkDetector().detect(picture)
    assert points is not None
    turn = cv2.getRotationMatrix2D((150, 140), 25, 0.8)
    turn[:, 2] += [9, -4]
    turned = cv2.warpAffine(picture, turn, (400, 360))
    moved_points = (points - 0.5) @ turn[:, :2].T + turn[:, 2] + 0.5
    one, two = arcface_crop(picture, points), arcface_crop(turned, moved_points)
    assert np.abs(one.astype(float) - two).mean() < 4
    # The eyes lie where the network was trained to have them: a dark spot, in a brighter face.
    grey = cv2.GaussianBlur(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
    for x, y in TEMPLATE[:2].round().astype(int):
        assert grey[y - 2 : y + 3, x - 2 : x + 3].min() < np.median(grey) - 40


def test_a_network_that_scales_its_pictures_itself_is_given_levels(tmp_path):
    """As InsightFace's loader does it: the same network with and without the scaling says the same of a face."""
    plain, own = network(tmp_path / "a.onnx"), network(tmp_path / "b.onnx", scales_itself=True)
    assert first_operators(plain, 8) == ["AveragePool", "Flatten"]
    assert first_operators(own, 8) == ["Sub", "Mul", "AveragePool", "Flatten"] and first_operators(own, 1) == ["Sub"]
    picture = portrait()
    points = LandmarkDetector().detect(picture)
    assert points is not None
    one, two = (ArcFace(path).describe(picture, points) for path in (plain, own))
    assert np.abs(one - two).max() < 1e-5 and np.abs(one).max() > 0.05


def test_a_network_of_another_form_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"3, 128, 128\], expected an ArcFace network: .* \[1, 3, 112, 112\]"):
        ArcFace(network(tmp_path / "a.onnx", side=128))
    (tmp_path / "b.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="no ONNX network"):
        ArcFace(tmp_path / "b.onnx")


@pytest.fixture
def truth(tmp_path) -> Path:
    return clip(tmp_path / "truth.mkv", [moved(portrait(), x, 0) for x in (0, 2, 5)])


def test_columns_without_weights_say_what_is_missing(truth, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scores = score(truth, truth)
    for name in (
        "lpips_alex",
        "lpips_vgg",
        "csim_arcface",
        "csim_arcface_target",
        "aed_deep3d_mean",
        "apd_smirk_mean_rad",
    ):
        assert scores.means[name] is None and str(tmp_path / "cache") in scores.missing[name]
    assert not scores.windows.size
    assert scores.to_json()["versions"]["lpips_vgg.safetensors"] is None


def test_columns_with_weights_are_measured(truth, tmp_path, monkeypatch):
    weights("alex", tmp_path)
    network(tmp_path / "arcface.onnx")
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    same = score(truth, truth)
    assert same.means["lpips_alex"] == 0 and same.counts["lpips_alex"] == 1
    # The face only moves, and is aligned.
    assert same.rows[0]["csim_arcface"] == pytest.approx(1) and same.means["csim_arcface"] > 0.98
    assert same.means["csim_arcface_target"] == same.means["csim_arcface"]
    version = same.to_json()["versions"]["lpips_alex.safetensors"]
    assert version.startswith("sha256 ") and version.endswith("licence BSD-2-Clause")
    soft = clip(tmp_path / "soft.mkv", [cv2.GaussianBlur(moved(portrait(), x, 0), (0, 0), 4) for x in (0, 2, 5)])
    other = score(soft, truth)
    assert other.means["lpips_alex"] > 1e-3 and other.means["lpips_vgg"] is None
    assert "lpips_vgg" in other.missing
