"""Adapter of Sapiens, published networks that estimate normals."""

import re
import warnings
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from expportrait_cli.detect.estimate import Estimate, assemble, resized
from expportrait_cli.errors import WeightsError, one_line
from expportrait_cli.runtime import best_device

HEADS = {1024: 16, 1280: 16, 1536: 24, 1920: 32}
"""Attention heads by width of the network (0.3B, 0.6B, 1B and 2B), because no tensor's shape contains their number."""
ROWS, COLUMNS, PATCH = 64, 48, 16
STAGES = 3
"""Number of transposed convolutions of the decoder, and of its 1 x 1 convolutions."""
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
        """Self-attention, then the feed-forward network; each normalises its input and is added to it."""
        apart = self.attn["qkv"](self.ln1(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = apart.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.attn["proj"](seen.transpose(1, 2).flatten(2))
        return tokens + self.ffn["layers"](self.ln2(tokens))


class _Backbone(nn.Module):
    """A vision transformer without class token."""

    def __init__(self, width: int, depth: int, hidden: int) -> None:
        super().__init__()
        # As in training: patches start 2 px outside the picture, and its last 2 rows and columns are in no patch.
        self.patch_embed = nn.ModuleDict({"projection": nn.Conv2d(3, width, PATCH, PATCH, padding=2)})
        self.pos_embed = nn.Parameter(torch.zeros(1, ROWS * COLUMNS, width))
        self.layers = nn.Sequential(*(_Layer(width, hidden) for _ in range(depth)))
        self.ln1 = nn.LayerNorm(width, EPS)

    def forward(self, picture: Float[Tensor, "B 3 1024 768"]) -> Float[Tensor, "B C 64 48"]:
        """Compute features of the patches of a picture."""
        tokens = self.patch_embed["projection"](picture).flatten(2).transpose(1, 2) + self.pos_embed
        return self.ln1(self.layers(tokens)).transpose(1, 2).unflatten(2, (ROWS, COLUMNS))


class _Decoder(nn.Module):
    """Three transposed convolutions that double the resolution, then three 1 x 1 convolutions."""

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
        """Decode features into vectors."""
        return self.conv_seg(self.conv_layers(self.deconv_layers(features)))


class SapiensNormals(nn.Module):
    """The whole network. Its vectors are not normalised; `sapiens.frame` prepares its input."""

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
        raise _refusal(path, f"no safetensors, or is damaged ({one_line(error)})", "a state dict") from error
    net.load_state_dict(state, assign=True)
    return net.eval().requires_grad_(False)


def _built(path: Path, found: Shapes) -> SapiensNormals:
    """Build a network without data from the shapes in a file; raises `WeightsError` unless all of them fit."""
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


HEIGHT, WIDTH = 1024, 768
BAND = (HEIGHT - WIDTH) // 2
"""Rows added above and below a square crop."""
MEAN, STD = (123.5, 116.5, 103.5), (58.5, 57.0, 57.5)
"""Mean and standard deviation of RGB (0..255) of the network's input; facebookresearch/sapiens,
lite/demo/vis_normal.py."""
AXES = np.eye(3, dtype=np.float32)
"""Axes of Sapiens' normals (see `Axes.matrix`): x right, y up, z to the viewer, as here. They are documented nowhere;
published measurements found that flipping y and z gives OpenCV's axes."""
HOW = "Take the file that ends in _torchscript.pt2: `expportrait weights list`."


class Sapiens:
    """Estimator with Sapiens' normals. It has neither depth nor matte; off the person its vectors are meaningless."""

    name = "sapiens"
    licence = "CC-BY-NC-4.0"

    def __init__(self, path: Path) -> None:
        self._net = _Net(path)

    def raw(self, crop: UInt8[np.ndarray, "S S 3"]) -> Float32[np.ndarray, "S S 3"]:
        """Raw vectors of the network at the crop's size, in its own axes and not normalised."""
        vectors = self._net(crop, "normals [1, 3, H, W]", 3)
        whole = cv2.resize(vectors.permute(1, 2, 0).numpy(), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
        return resized(np.ascontiguousarray(whole[BAND : BAND + WIDTH]), crop.shape[0])

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"]) -> Estimate:
        """Estimate the normals of a square RGB crop."""
        return assemble(self.raw(crop), AXES)


class _Net:
    """The network from a TorchScript file or a state dict, on the best device."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._device = best_device()
        is_state = path.suffix == ".safetensors"
        if is_state:
            self._module = load_normals(path).to(self._device)
        else:
            self._module = load_program(path, self._device, advice=HOW)

    def __call__(self, crop: UInt8[np.ndarray, "S S 3"], expected: str, channels: int) -> Float32[Tensor, "C H W"]:
        """Run on a crop (see `frame`); raises WeightsError unless there are `channels` (text: `expected`)."""
        with torch.inference_mode():
            answer = self._module(frame(crop).to(self._device))
        if not isinstance(answer, Tensor) or answer.ndim != 4 or answer.shape[:2] != (1, channels):
            given = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
            raise WeightsError(f"{self._path} gives {given}, expected {expected}. Run `expportrait weights list`.")
        return answer[0].float().cpu()


def frame(crop: UInt8[np.ndarray, "S S 3"]) -> Float32[Tensor, "1 3 1024 768"]:
    """Scale a crop to the width of the network's input, and replicate its border rows above and below."""
    square = resized(crop.astype(np.float32), WIDTH)
    picture = cv2.copyMakeBorder(square, BAND, BAND, 0, 0, cv2.BORDER_REPLICATE)
    normalised = (picture - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)[None]))


REFUSED = re.compile(rb"\b(save|from_file)\b|\bops\b(?!\.prim\b)")
"""Names in a program that are refused: PyTorch's operators that access files, and all operators of other libraries."""


def load_program(path: Path, device: torch.device, *, advice: str) -> torch.jit.ScriptModule:
    """Load a TorchScript archive; `advice`, a sentence that names the file to take instead, ends error messages.

    The archive is a program, the only published form of some networks. TorchScript's interpreter runs it: nothing is
    unpickled or imported by Python, and it can only call operators. Names of operators that access files or belong to
    other libraries are refused before it is loaded, because loading may already run a part of it.

    Raises:
        WeightsError: not such an archive, a damaged one, or one that names operators of `REFUSED`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            programs = [archive.read(name) for name in archive.namelist() if name.endswith(".py")]
    except (zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{path} is damaged or no TorchScript archive. {advice}") from error
    if not programs:
        raise WeightsError(f"{path} holds no TorchScript, but another form of the weights. {advice}")
    if any(REFUSED.search(program) for program in programs):
        raise WeightsError(
            f"{path} contains operations that no network needs and that may be unsafe: it was not loaded. {advice}"
        )
    with warnings.catch_warnings():
        # PyTorch wants torch.export instead, whose files these networks are not published as for every machine.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise WeightsError(f"{path} is damaged: {one_line(error)} {advice}") from error
