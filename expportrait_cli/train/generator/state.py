"""Saved state of `train generator`, and the moving average of its weights.

The state is gathered from one device, from replicas on several (DDP), or from shards of the model (FSDP).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.errors import InputError
from expportrait_cli.train.state import follow

NETWORK, AVERAGE, OPTIMIZER = "network.", "average.", "optimizer."
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
READ = StateDictOptions(full_state_dict=True, strict=False)


class Average:
    """Exponential moving average of the trained weights; under FSDP, each process averages its own shards."""

    def __init__(self, model: nn.Module):
        """Start at the current weights."""
        self._model = model
        self._weights = [p for p in model.parameters() if p.requires_grad]
        self._means = [p.detach().clone() for p in self._weights]

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Set the average to `keep` times itself plus (1 - `keep`) times the weights."""
        follow(self._means, self._weights, keep)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Context in which the model has the averaged weights instead of its own."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # FSDP would reuse weights that it gathered for the last forward pass, unless that was a training step.
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        for mean, weight in zip(self._means, self._weights, strict=True):
            kept = weight.detach().clone()
            weight.copy_(mean)
            mean.copy_(kept)


def save_state(
    path: Path, step: int, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, *, is_main: bool
) -> None:
    """Write weights, their average and the optimiser's moments; every process must call it, the main one writes."""
    tensors = {NETWORK + name: value for name, value in _weights(model).items()}
    with average.shown():
        tensors |= {AVERAGE + name: value for name, value in _weights(model).items()}
    for name, moments in _moments(model, optimizer).items():
        tensors |= {f"{OPTIMIZER}{moment}.{name}": torch.as_tensor(value) for moment, value in moments.items()}
    if is_main:
        with atomic_path(path) as partial:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, partial, {"step": str(step)})


def load_state(path: Path, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> int:
    """Load the state of a run, if the file exists; returns the number of steps done, 0 without a file.

    Raises:
        InputError: the file belongs to another generator, or is damaged.
    """
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            step = int(file.metadata()["step"])
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is a damaged state. Put back a copy of it, or remove it to begin anew.") from error
    names = _names(model).values()
    if {NETWORK + name for name in names} != {name for name in tensors if name.startswith(NETWORK)}:
        raise InputError(f"{path} is the state of another generator. Remove it, or train to another folder.")
    _set_weights(model, {name: tensors[AVERAGE + name] for name in names})
    average.follow(0.0)
    _set_weights(model, {name: tensors[NETWORK + name] for name in names})
    set_optimizer_state_dict(model, optimizer, _optimizer_state(model, optimizer, tensors), options=READ)
    return step


def averaged_weights(path: Path) -> dict[str, Tensor]:
    """Read the averaged weights from a state file."""
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(AVERAGE)]  # noqa: SIM118
        return {name.removeprefix(AVERAGE): file.get_tensor(name) for name in names}


def _names(model: nn.Module) -> dict[nn.Parameter, str]:
    """Names of the trained parameters, without the prefix that accelerate's wrapper adds."""
    return {p: name.removeprefix("module.") for name, p in model.named_parameters() if p.requires_grad}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained weights, on the CPU; empty in all processes but the main one."""
    learning, found = set(_names(model).values()), get_model_state_dict(model, options=WHOLE)
    return {k: v.detach().cpu().clone() for k, v in found.items() if k in learning and isinstance(v, Tensor)}


def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    set_model_state_dict(model, dict(weights), options=READ)


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Optimiser state by parameter name; every process must call it, and all but the main one get an empty dict."""
    state: dict[str, Any] = {**get_optimizer_state_dict(model, optimizer, options=WHOLE)}
    return state.get("state", {})


def _optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Optimiser state dict, by parameter name, from a state file's tensors."""
    names = _names(model)
    groups = [{**group, "params": [names[p] for p in group["params"]]} for group in optimizer.param_groups]
    state: dict[str, dict[str, Tensor]] = {name: {} for group in groups for name in group["params"]}
    for key, value in tensors.items():
        if key.startswith(OPTIMIZER):
            moment, _, name = key.removeprefix(OPTIMIZER).partition(".")
            state[name][moment] = value
    return {"state": state, "param_groups": groups}
