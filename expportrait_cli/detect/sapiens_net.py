"""Sapiens' network for normals, built from the shapes of a state dict: such a file holds numbers alone, no program.

Names and layers are those of facebookresearch/sapiens at 617f834 (seg/configs/sapiens_normal, the backbone
VisionTransformer with patch_cfg padding=2 and without class token, and the VitNormalHead).
"""

from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from expportrait_cli.errors import WeightsError

HEADS = {1024: 16, 1280: 16, 1536: 24, 1920: 32}
"""Heads of the attention, which no shape tells, by width: 0.3B, 0.6B, 1B and 2B."""
ROWS, COLUMNS, PATCH = 64, 48, 16
STAGES = 3
"""Transposed convolutions of the decoder, and as many of 1 x 1."""
EPS = 1e-6
FLOATS = ("F32", "F16", "BF16", "F64")

Shapes = dict[str, list[int]]


class _Layer(nn.Module):
    """A layer of the transformer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.heads = HEADS[width]
        self.ln1 = nn.LayerNorm(width, EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.ln2 = nn.LayerNorm(width, EPS)
        inner = nn.Sequential(nn.Linear(width, hidden), nn.GELU())
        self.ffn = nn.ModuleDict({"layers": nn.Sequential(inner, nn.Linear(hidden, width))})

    def forward(self, tokens: Float[Tensor, "B N C"]) -> Float[Tensor, "B N C"]:
        """Attend, then think about it."""
        apart = self.attn["qkv"](self.ln1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attn["proj"](seen.transpose(1, 2).flatten(2))
        return tokens + self.ffn["layers"](self.ln2(tokens))


class _Backbone(nn.Module):
    """A vision transformer without class token."""

    def __init__(self, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        # As it was trained: patches start 2 px before the picture, and its last 2 rows and columns are in none.
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, PATCH, PATCH, padding=2)})
        self.pos_embed = nn.Parameter(torch.zeros(1, ROWS * COLUMNS, width))
        self.layers = nn.Sequential(*(_Layer(width, hidden) for _ in range(depth)))
        self.ln1 = nn.LayerNorm(width, EPS)

    def forward(self, picture: Float[Tensor, "B 3 1024 768"]) -> Float[Tensor, "B C 64 48"]:
        """Turn a picture into features of its patches."""
        tokens = self.patch_embed["projection"](picture).flatten(2).transpose(1, 2) + self.pos_embed
        return self.ln1(self.layers(tokens)).transpose(1, 2).unflatten(2, (ROWS, COLUMNS))


class _Decoder(nn.Module):
    """Three steps of twice the resolution, then three of 1 x 1: not in turns."""

    def __init__(self, width: int, ups: list[int], flats: list[int]) -> None:
        super().__init__()

        def stages(convolutions: list[nn.Module], channels: list[int]) -> nn.Sequential:
            rest = [(nn.InstanceNorm2d(count), nn.SiLU()) for count in channels]
            return nn.Sequential(*(part for c, two in zip(convolutions, rest, strict=True) for part in (c, *two)))

        into = [width, *ups, *flats]
        self.deconv_layers = stages(
            [nn.ConvTranspose2d(into[i], ups[i], 4, 2, 1, bias=False) for i in range(STAGES)], ups
        )
        self.conv_layers = stages([nn.Conv2d(into[STAGES + i], flats[i], 1) for i in range(STAGES)], flats)
        self.conv_seg = nn.Conv2d(into[-1], 3, 1)

    def forward(self, features: Float[Tensor, "B C 64 48"]) -> Float[Tensor, "B 3 512 384"]:
        """Turn features into vectors."""
        return self.conv_seg(self.conv_layers(self.deconv_layers(features)))


class SapiensNormals(nn.Module):
    """The whole network. Its vectors have any length; see `sapiens.frame` for the picture that it takes."""

    def __init__(self, *, width: int, depth: int, hidden: int, ups: list[int], flats: list[int]) -> None:
        super().__init__()
        self.backbone = _Backbone(width, depth, hidden)
        self.decode_head = _Decoder(width, ups, flats)

    def forward(self, picture: Float[Tensor, "B 3 1024 768"]) -> Float[Tensor, "B 3 512 384"]:
        """Estimate normals of a normalised RGB picture."""
        return self.decode_head(self.backbone(picture))


def load_normals(path: Path) -> SapiensNormals:
    """Load a state dict of `SapiensNormals` of any width and depth, as float32 on the CPU.

    Raises:
        WeightsError: no .safetensors file, a damaged one, or one of another network.
    """
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            others = [name for name, part in slices.items() if part.get_dtype() not in FLOATS]
            if others:
                raise _refusal(path, f"{others[0]} as {slices[others[0]].get_dtype()}", "floating point numbers")
            net = _built(path, {name: list(part.get_shape()) for name, part in slices.items()})
            state = {name: file.get_tensor(name).float() for name in slices}
    except SafetensorError as error:
        raise _refusal(path, f"no safetensors, or is damaged ({str(error).splitlines()[0]})", "a state dict") from error
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def _built(path: Path, found: Shapes) -> SapiensNormals:
    """A network without numbers, in the shapes that were found, which must be its own to the last one."""
    first = f"{sorted(found)[0]} and {len(found) - 1} others" if found else "nothing"

    def count(name: str, axis: int) -> int:
        if len(found.get(name, ())) <= axis:
            raise _refusal(path, first, name)
        return found[name][axis]

    width = count("backbone.patch_embed.projection.weight", 0)
    if width not in HEADS:
        raise _refusal(path, f"a network of width {width}", f"one of {', '.join(map(str, HEADS))}")
    places = range(0, 3 * STAGES, 3)
    with torch.device("meta"):
        net = SapiensNormals(
            width=width,
            depth=sum(f"backbone.layers.{index}.ln1.weight" in found for index in range(len(found))),
            hidden=count("backbone.layers.0.ffn.layers.0.0.weight", 0),
            ups=[count(f"decode_head.deconv_layers.{index}.weight", 1) for index in places],
            flats=[count(f"decode_head.conv_layers.{index}.weight", 0) for index in places],
        )
    expected = {name: list(tensor.shape) for name, tensor in net.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise _refusal(
                path, f"{name} as {found.get(name, 'missing')}", f"{expected.get(name, 'none of that name')}"
            )
    return net


def _refusal(path: Path, found: str, expected: str) -> WeightsError:
    return WeightsError(
        f"{path} holds {found}, expected {expected} of Sapiens' first normal network. "
        "Make it from the published .pth as weights/README.md says."
    )
