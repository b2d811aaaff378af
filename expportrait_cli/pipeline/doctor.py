"""The examination of this machine by `expportrait doctor`."""

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from expportrait_cli.errors import UsageError, UserError, WeightsError, one_line
from expportrait_cli.head import HeadPose, coarse, dense, joints, load_head, pose
from expportrait_cli.head.model import NECK
from expportrait_cli.pipeline.provenance import versions
from expportrait_cli.retargeting.network import on_device
from expportrait_cli.runtime import DEVICE, THREADS, best_device, cpu_count, thread_count
from expportrait_cli.weights.catalogue import catalogue, folders, locate, state

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    found: str
    ok: bool = True

    def row(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return asdict(self)


def examine() -> list[Check]:
    """Check everything that a result on this machine depends on."""
    return [*_system(), *_packages(), _ffmpeg(), *_devices(), _estimator(), *_weights(), *_folders()]


def _system() -> list[Check]:
    allowed = cpu_count()
    threads = f"{thread_count()} threads for trainings and large networks ({THREADS}), else one a library"
    return [
        Check("system", f"{platform.platform()}, {platform.machine()}"),
        Check("processors", f"{allowed} of {os.cpu_count()} may be used; {threads}"),
    ]


def _packages() -> list[Check]:
    return [Check(name, version, version != "missing") for name, version in versions().items()]


def _ffmpeg() -> Check:
    import imageio_ffmpeg

    try:
        binary = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        return Check("ffmpeg", str(error), ok=False)
    return Check("ffmpeg", f"{imageio_ffmpeg.get_ffmpeg_version()}, {binary}")


def _devices() -> list[Check]:
    import torch

    try:
        device = best_device()
    except UsageError as error:
        return [Check("device", one_line(error), ok=False)]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "none is used: everything runs on the CPU"
    checks = [
        Check("device", f"{device}; {DEVICE}={os.environ.get(DEVICE, 'unset')}"),
        Check("gpu", gpu),
        Check("torch threads", str(torch.get_num_threads())),
    ]
    parts = (("rasteriser", _drawn), ("transfer network", _transferred), ("head", _posed))
    return [*checks, *(_run(name, part, device) for name, part in parts), _video_model(device)]


def _run(name: str, part: Callable[["torch.device"], str], device: "torch.device") -> Check:
    """Run one part once, and once more for its time: the first call compiles and loads."""
    try:
        part(device)
        since = perf_counter()
        said = part(device)
        return Check(name, f"{said}; {1000 * (perf_counter() - since):.0f} ms on {device}")
    except (ImportError, OSError, RuntimeError, UserError) as error:
        return Check(name, f"does not work on {device}: {one_line(error)}", ok=False)


def _drawn(device: "torch.device") -> str:
    """Draw the normals of a whole head, and compute the gradient back to its vertices."""
    import torch

    from expportrait_cli.geometry.camera import Camera
    from expportrait_cli.render.buffers import render_buffers
    from expportrait_cli.render.rasterizer import choose

    head = load_head("anny", device)
    verts = dense(head, head.template) * head.template.new_tensor([1.0, -1.0, -1.0])
    verts = (verts + head.template.new_tensor([0.0, 0.0, 1.2])).requires_grad_()
    drawn = render_buffers(verts[None], head.dense_faces, Camera(1000.0, 128.0, 128.0, 256, 256))
    (gradient,) = torch.autograd.grad(drawn.normals.sum() + drawn.mask.sum(), verts)
    if not bool(torch.isfinite(gradient).all()) or not bool(gradient.any()):
        raise RuntimeError("the gradient of a head's normals is not finite, or zero")
    backend, reason = choose(device)
    licence = "NVIDIA's source code licence, non-commercial" if backend == "nvdiffrast" else "Apache-2.0"
    return f"{backend} ({licence}): {reason}; normals of a head at 256 px, forward and backward"


def _transferred(device: "torch.device") -> str:
    """Compute the offsets of one expression with the transfer network."""
    import torch

    from expportrait_cli.retargeting.face import Neutral
    from expportrait_cli.retargeting.network import load_network
    from expportrait_cli.weights.catalogue import weights_file

    head = load_head("anny")
    network = load_network(weights_file("transfer_anny.safetensors"), head).network
    neutral = Neutral.of(dense(head, head.template)[network.face.vertices], network.face).to(device)
    network = on_device(network, device)
    psi, jaw = torch.full((1, len(head.expression_names)), 0.3, device=device), torch.zeros(1, 3, device=device)
    rows = torch.arange(len(network.face.vertices), device=device)
    offsets = network.offsets(neutral, network.code(neutral), psi, jaw, rows=rows)
    return f"offsets of one face, {1000 * float(offsets.norm(dim=-1).max()):.1f} mm at most"


def _posed(device: "torch.device") -> str:
    """Pose a head by the whole chain of Eq. 1 to 4."""
    import torch

    head = load_head("anny", device)
    zero, psi = head.template.new_zeros, head.template.new_full((len(head.expression_names),), 0.2)
    identity = zero(head.identity_basis.shape[-1])
    shape = dense(head, coarse(head, identity, psi, zero(3), zero(4)))
    at = HeadPose(zero(3), zero(4), zero(3), zero(3), zero(3), joints(head, identity)[NECK])
    verts = pose(head, shape, joints(head, identity), at)
    return f"{len(verts)} vertices posed, {float(torch.linalg.norm(verts - shape, dim=-1).max()) * 1000:.3f} mm off"


def _video_model(device: "torch.device") -> Check:
    from expportrait_cli.painting.wan import require_packages

    try:
        require_packages()
    except WeightsError as error:
        return Check("video model", f"not installed, needed by the Wan painters only. {error}")
    return _run("video model", _denoised, device)


def _denoised(device: "torch.device") -> str:
    """Ask a Wan VACE of two layers with random weights for one velocity, in the precision of this device."""
    import torch
    from diffusers.models.transformers.transformer_wan_vace import WanVACETransformer3DModel

    from expportrait_cli.config import WanConfig
    from expportrait_cli.painting.wan.runtime import dtype_of

    dtype = dtype_of(WanConfig(), device)
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 128, "text_dim": 32}
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        model: Any = WanVACETransformer3DModel(**sizes, num_layers=2, vace_layers=[0], vace_in_channels=96)
        model.to(device, dtype)
        state, told, prompt = (
            torch.randn(shape, device=device, dtype=dtype)
            for shape in ((1, 16, 2, 16, 16), (1, 96, 2, 16, 16), (1, 512, 32))
        )
        velocity = model(
            hidden_states=state,
            timestep=torch.full((1,), 500.0, device=device),
            encoder_hidden_states=prompt,
            control_hidden_states=told,
            control_hidden_states_scale=torch.ones(1, device=device, dtype=dtype),
            return_dict=False,
        )[0]
    if not bool(torch.isfinite(velocity).all()) or not bool(velocity.any()):
        raise RuntimeError("the velocity of a small Wan is not finite, or zero")
    return f"a small Wan VACE with random weights, {str(dtype).removeprefix('torch.')}"


def _estimator() -> Check:
    """Ask the network for normals and depth, if there is one, about a grey picture."""
    import numpy as np

    from expportrait_cli.detect.estimator import available, estimator

    name, reason = available()
    if name == "none":
        return Check("estimator", f"none: {reason}")
    try:
        network = estimator(name)
        assert network is not None
        since = perf_counter()
        network(np.full((512, 512, 3), 127, np.uint8))
    except (ImportError, OSError, RuntimeError, UserError) as error:
        return Check("estimator", f"{name} does not work: {one_line(error)}", ok=False)
    return Check("estimator", f"{name} ({network.licence}): {reason}; {perf_counter() - since:.1f} s a picture")


def _weights() -> list[Check]:
    checks = []
    for weight in catalogue():
        found = state(weight)
        absent = weight.optional and found == "missing"
        note = f"not installed; needed by {', '.join(weight.needed_by)} only" if absent else found
        where = locate(weight)
        checks.append(
            Check(
                weight.name,
                f"{note}, {weight.licence}{f', {where}' if where else ''}",
                absent or found in ("ok", "unknown"),
            )
        )
    return checks


def _folders() -> list[Check]:
    return [Check("weights folder", f"{folder}{'' if Path(folder).is_dir() else ' (none)'}") for folder in folders()]
