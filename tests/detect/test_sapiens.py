"""Sapiens' normals from a state dict: small networks of random numbers, against PyTorch's own layers one by one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from expportrait_cli.detect import sapiens
from expportrait_cli.detect.sapiens import Sapiens, frame, load_normals
from expportrait_cli.errors import WeightsError

pytestmark = pytest.mark.slow

WIDTH, HEADS, HIDDEN, DEPTH = 32, 4, 48, 2
UPS, FLATS = (12, 10, 8), (9, 7, 6)

State = dict[str, torch.Tensor]


def numbers(*, depth: int = DEPTH) -> State:
    """Random weights under the published names, written out here once more; no layer is near to doing nothing."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(shape, generator=random)

    def pair(name: str, *shape: int, scale: float) -> State:
        return {f"{name}.weight": normal(*shape, scale=scale), f"{name}.bias": normal(shape[0], scale=0.3)}

    def norm(name: str) -> State:
        return {f"{name}.weight": normal(WIDTH, scale=0.3, mean=1), f"{name}.bias": normal(WIDTH, scale=0.3)}

    state = {"backbone.pos_embed": normal(1, 64 * 48, WIDTH, scale=0.5)}
    state |= pair("backbone.patch_embed.projection", WIDTH, 3, 16, 16, scale=0.05) | norm("backbone.ln1")
    for index in range(depth):
        layer = f"backbone.layers.{index}"
        state |= norm(f"{layer}.ln1") | norm(f"{layer}.ln2")
        # Queries and keys that are long enough to prefer some patches to others.
        state |= pair(f"{layer}.attn.qkv", 3 * WIDTH, WIDTH, scale=2 * WIDTH**-0.5)
        state |= pair(f"{layer}.attn.proj", WIDTH, WIDTH, scale=2 * WIDTH**-0.5)
        state |= pair(f"{layer}.ffn.layers.0.0", HIDDEN, WIDTH, scale=WIDTH**-0.5)
        state |= pair(f"{layer}.ffn.layers.1", WIDTH, HIDDEN, scale=HIDDEN**-0.5)
    into = (WIDTH, *UPS, *FLATS)
    for index in range(3):
        weight = normal(into[index], UPS[index], 4, 4, scale=(4 * into[index]) ** -0.5)
        state[f"decode_head.deconv_layers.{3 * index}.weight"] = weight
        state |= pair(f"decode_head.conv_layers.{3 * index}", FLATS[index], into[index + 3], 1, 1, scale=0.4)
    return state | pair("decode_head.conv_seg", 3, FLATS[-1], 1, 1, scale=0.4)


def layer_by_layer(state: State, picture: torch.Tensor) -> torch.Tensor:
    """The network as its source describes it, of PyTorch's own layers."""

    def two(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (WIDTH,), *two(name), eps=1e-6)

    x = F.conv2d(picture, *two("backbone.patch_embed.projection"), stride=16, padding=2)
    assert x.shape[2:] == (64, 48)
    x = x.flatten(2).transpose(1, 2) + state["backbone.pos_embed"]
    for index in range(DEPTH):
        layer = f"backbone.layers.{index}"
        attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        attention.in_proj_weight.data, attention.in_proj_bias.data = two(f"{layer}.attn.qkv")
        attention.out_proj.weight.data, attention.out_proj.bias.data = two(f"{layer}.attn.proj")
        y = norm(x, f"{layer}.ln1")
        # Asked for its weights, it multiplies the matrices itself instead of calling the fused kernel.
        x = x + attention(y, y, y, need_weights=True)[0]
        y = F.gelu(F.linear(norm(x, f"{layer}.ln2"), *two(f"{layer}.ffn.layers.0.0")))
        x = x + F.linear(y, *two(f"{layer}.ffn.layers.1"))
    x = norm(x, "backbone.ln1").transpose(1, 2).reshape(1, WIDTH, 64, 48)
    for index in (0, 3, 6):
        weight = state[f"decode_head.deconv_layers.{index}.weight"]
        x = F.silu(F.instance_norm(F.conv_transpose2d(x, weight, stride=2, padding=1)))
    for index in (0, 3, 6):
        x = F.silu(F.instance_norm(F.conv2d(x, *two(f"decode_head.conv_layers.{index}"))))
    return F.conv2d(x, *two("decode_head.conv_seg"))


@pytest.fixture(scope="module", autouse=True)
def _narrow():
    """Widths that were published would take minutes; how many heads another one has cannot be told from a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sapiens.HEADS, WIDTH, HEADS)
        yield


@pytest.fixture(scope="module")
def state() -> State:
    return numbers()


@pytest.fixture(scope="module")
def file(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sapiens") / "normals.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def crop() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8).repeat(4, 0).repeat(4, 1)


@torch.no_grad()
def test_it_computes_what_its_layers_do(file, state, crop):
    picture = frame(crop)
    found, expected = load_normals(file)(picture), layer_by_layer(state, picture)
    assert found.shape == expected.shape == (1, 3, 512, 384)
    assert expected.std() > 0.3
    # Float32, through two layers and six normalisations, in another order of additions.
    assert (found - expected).abs().max() < 2e-3


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_crop_meets_the_same_arithmetic_as_with_torchscript(file, crop, tmp_path):
    """The network itself as a TorchScript file: everything before and after it is one and the same."""
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.trace(load_normals(file), frame(crop)), tmp_path / "normals.pt2")
    ours, theirs = Sapiens(file)(crop), Sapiens(tmp_path / "normals.pt2")(crop)
    assert np.abs(ours.normals - theirs.normals).max() < 1e-4
    assert np.allclose(ours.confidence, theirs.confidence, atol=1e-4)
    assert (np.linalg.norm(ours.normals, axis=-1)[ours.confidence > 0.1] > 0.999).all()
    assert ours.normals.std() > 0.3 and ours.normals.shape == crop.shape


@torch.no_grad()
def test_numbers_of_half_the_precision_are_read(state, crop, tmp_path):
    save_file({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.safetensors")
    net, picture = load_normals(tmp_path / "half.safetensors"), frame(crop)
    assert {tensor.dtype for tensor in net.state_dict().values()} == {torch.float32}
    rounded = {name: tensor.half().float() for name, tensor in state.items()}
    assert (net(picture) - layer_by_layer(rounded, picture)).abs().max() < 2e-3


def test_depth_comes_from_the_file(tmp_path):
    save_file(numbers(depth=5), tmp_path / "deep.safetensors")
    layers = load_normals(tmp_path / "deep.safetensors").backbone.layers
    assert len(layers) == 5 and {layer.heads for layer in layers} == {HEADS}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("backbone.layers.1.attn.proj.bias"), "backbone.layers.1.attn.proj.bias as missing"),
        (lambda s: s.pop("backbone.layers.0.ln1.weight"), "backbone.layers.0.ln1.weight as missing"),
        (lambda s: s.pop("decode_head.conv_layers.3.weight"), "expected decode_head.conv_layers.3.weight"),
        (lambda s: s.update({"backbone.cls_token": torch.zeros(1, 1, 32)}), "backbone.cls_token as [1, 1, 32]"),
        (lambda s: s.update({"backbone.pos_embed": torch.zeros(1, 4096, 32)}), "[1, 4096, 32], expected [1, 3072, 32]"),
        (
            lambda s: s.update({"decode_head.conv_seg.weight": torch.zeros(1, FLATS[-1], 1, 1)}),
            "[1, 6, 1, 1], expected [3, 6, 1, 1]",
        ),
        (
            lambda s: s.update({"backbone.patch_embed.projection.weight": torch.zeros(768, 3, 16, 16)}),
            "width 768, expected one of 1024, 1280, 1536, 1920",
        ),
        (lambda s: s.update({"backbone.ln1.bias": torch.zeros(32, dtype=torch.int32)}), "backbone.ln1.bias as I32"),
        (lambda s: s.clear(), "holds nothing"),
        (
            lambda s: [s.update({f"state_dict.{name}": s.pop(name)}) for name in list(s)],
            "state_dict.backbone.layers.0.attn.proj.bias and",
        ),
    ],
)
def test_other_state_dicts_are_refused_in_one_line(change, says, state, tmp_path):
    state = dict(state)
    change(state)
    refused(state, says, tmp_path)


def test_later_sapiens_and_other_networks_are_refused(tmp_path):
    refused({"backbone.blocks.0.attn.wq.weight": torch.zeros(8, 8)}, "backbone.blocks.0.attn.wq.weight", tmp_path)
    refused({"weight": torch.zeros(2)}, "weight and 0 others, expected backbone.patch_embed", tmp_path)


def refused(state: State, says: str, folder: Path) -> None:
    path = folder / "other.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with pytest.raises(WeightsError) as caught:
        Sapiens(path)
    line = str(caught.value)
    assert says in line and str(path) in line and "\n" not in line and "weights/README.md" in line


def test_damaged_files_are_refused_in_one_line(file, tmp_path):
    path = tmp_path / "cut.safetensors"
    for content in (b"", b"<html>not found</html>", file.read_bytes()[:1000], file.read_bytes()[:-1]):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="is damaged") as caught:
            Sapiens(path)
        assert "\n" not in str(caught.value)
