"""What the tool finds on this machine, for `expportrait doctor`."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from expportrait_cli.pipeline.provenance import versions
from expportrait_cli.runtime import best_device, cpu_count
from expportrait_cli.weights.catalogue import catalogue, entry, folders, locate, mediapipe_interface, state


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    found: str
    ok: bool = True

    def row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def examine() -> list[Check]:
    """Everything that a result on this machine depends on."""
    return [*_system(), *_packages(), _ffmpeg(), *_devices(), _estimator(), *_weights(), *_folders()]


def _system() -> list[Check]:
    allowed = cpu_count()
    threads = (
        f"{os.environ.get('OMP_NUM_THREADS', 'unset')} threads, waiting {os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    )
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

    from expportrait_cli.render.rasterizer import choose

    device = best_device()
    gpu = (
        torch.cuda.get_device_name() if device.type == "cuda" else "none that torch can use: everything runs on the CPU"
    )
    backend, reason = choose(device)
    licence = "NVIDIA's source code licence, non-commercial" if backend == "nvdiffrast" else "Apache-2.0"
    return [
        Check("gpu", gpu),
        Check("torch threads", str(torch.get_num_threads())),
        Check("rasteriser", f"{backend} ({licence}): {reason}"),
    ]


def _estimator() -> Check:
    from expportrait_cli.detect.estimator import available

    match available():
        case "david", reason:
            return Check("estimator", f"david ({entry('david').licence}): {reason}")
        case "sapiens", reason:
            return Check("estimator", f"sapiens ({entry('sapiens-normal').licence}): {reason}")
        case _, reason:
            return Check("estimator", f"none: {reason}")


def _weights() -> list[Check]:
    models = {"legacy": "solutions: models in its wheel", "tasks": "Tasks: models in files that you download"}
    checks = [Check("mediapipe through", models[mediapipe_interface()])]
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
