"""State of a training run in a safetensors file, with all that is needed to resume it exactly."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.errors import InputError

MOMENTS = ("exp_avg", "exp_avg_sq")


@torch.no_grad()
def follow(means: Iterable[Tensor], weights: Iterable[Tensor], keep: float) -> None:
    """Move an exponential moving average towards the weights; with `keep` 0 it becomes them."""
    for mean, weight in zip(means, weights, strict=True):
        mean.lerp_(weight.detach(), 1 - keep)


def save_state(
    path: Path, step: int, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, generator
) -> None:
    """Write weights, their average, the optimiser's moments and the random generator's state."""
    tensors = {f"network.{k}": v for k, v in network.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for name, parameter in network.named_parameters():
        for moment in MOMENTS:
            tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    tensors["generator"] = generator.get_state()
    with atomic_path(path) as partial:
        partial.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, {"step": str(step)}))


def load_state(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, generator) -> int:
    """Load the state of a run, if the file exists; returns the number of steps done, 0 without a file.

    Raises:
        InputError: the file belongs to another network, or is damaged.
    """
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is a damaged state. Put back a copy of it, or remove it to begin anew.") from error
    try:
        network.load_state_dict(_part(tensors, "network."))
        average.load_state_dict(_part(tensors, "average."))
        for name, parameter in network.named_parameters():
            moments = {m: tensors[f"{m}.{name}"].clone().to(parameter.device) for m in MOMENTS}
            optimizer.state[parameter] = {"step": torch.tensor(float(step)), **moments}
        generator.set_state(tensors["generator"])
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path} is the state of another network. Remove it, or train to another file.") from error
    return step


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
