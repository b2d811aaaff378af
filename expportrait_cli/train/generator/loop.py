"""Training loop of the paper's generator: loss, optimiser steps, orderly interruption (paper 3.3, Eq. 10)."""

import math
import re
import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from jaxtyping import Float
from torch import Tensor, nn

from expportrait_cli.errors import UsageError
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vace import VaceBranch
from expportrait_cli.runtime import Progress, ahead
from expportrait_cli.train.config import GeneratorTask, GeneratorTraining
from expportrait_cli.train.generator.examples import Example, Examples
from expportrait_cli.train.generator.state import Average, load_state, save_state

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
"""Layers of each transformer block that get a LoRA."""
NEW = ("patch_embedding", "lora_")
"""Parts of the names of transformer parameters that are not the base's own weights: they learn at the full rate."""
FOR_IMAGES = ("image_embedder", "add_k_proj", "add_v_proj", "norm_added")
"""Parts of the names of layers that read CLIP's tokens; trained only if the base has an image encoder."""
CLIP = 1.0
"""Norm to which gradients are clipped."""
SPREADS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
"""Distribution types of accelerate that are supported: those whose state can be gathered."""


@dataclass(frozen=True)
class Training:
    """Data, number of steps, state file and callbacks of one training."""

    examples: Examples
    validation: Sequence[Example]
    """Held-out examples; empty if nobody was held out."""
    steps: int
    state: Path
    progress: Progress
    log: Callable[[int, dict[str, float]], None]
    show: Callable[[int, nn.Module], None]
    """Makes a sample film, while the model has its averaged weights; called by every process."""


def set_free(portrait: WanPortrait | VaceBranch, config: GeneratorTraining, task: GeneratorTask) -> None:
    """Choose what is trained: all weights, or with `config.lora` a LoRA, the encoders and the patch embedding.

    Of VACE always a LoRA, on its control branch.
    """
    if task.checkpointing:
        portrait.transformer.enable_gradient_checkpointing()
    portrait.train()
    if isinstance(portrait, VaceBranch):
        portrait.requires_grad_(False)
        targets = (
            rf"vace_blocks\.\d+\..*({'|'.join(re.escape(name) for name in [*LORA_TARGETS, 'proj_in', 'proj_out'])})"
        )
        _add_lora(portrait, config.lora, targets)
        return
    for name, parameter in portrait.named_parameters():
        parameter.requires_grad_(portrait.image_encoder is not None or not any(part in name for part in FOR_IMAGES))
    if not config.lora:
        return
    portrait.transformer.requires_grad_(False)
    _add_lora(portrait, config.lora, LORA_TARGETS)
    portrait.transformer.patch_embedding.requires_grad_(True).float()


def _add_lora(portrait: WanPortrait | VaceBranch, rank: int, targets: list[str] | str) -> None:
    from peft import LoraConfig

    portrait.transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=True)
    )
    for parameter in portrait.parameters():
        if parameter.requires_grad:
            # The base may be in bfloat16, whose 8 bits of precision round small optimiser steps away.
            parameter.data = parameter.data.float()


def optimizer_of(portrait: WanPortrait | VaceBranch, config: GeneratorTraining) -> torch.optim.AdamW:
    """AdamW: the base's own weights learn at `config.trunk` times the rate of the new ones."""
    named = [(name, p) for name, p in portrait.named_parameters() if p.requires_grad]
    is_new = {name: not name.startswith("transformer.") or any(part in name for part in NEW) for name, _ in named}
    groups = [
        {"params": [p for name, p in named if is_new[name]], "lr": config.rate, "full_rate": config.rate},
        {"params": [p for name, p in named if not is_new[name]], "full_rate": config.trunk * config.rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate, weight_decay=config.decay)


def train(
    portrait: WanPortrait | VaceBranch,
    training: Training,
    config: GeneratorTraining,
    task: GeneratorTask,
    accelerator: Accelerator,
) -> None:
    """Train, or resume from `training.state`, where the result is saved; SIGINT and SIGTERM stop it after a step.

    The same examples, settings and machine give the same weights, interrupted or not.

    Raises:
        UsageError: accelerate was launched with a distribution type that is not supported.
    """
    model, optimizer = _spread(portrait, config, accelerator)
    average = Average(model)
    begin = load_state(training.state, model, average, optimizer.optimizer)

    def save(step: int) -> None:
        save_state(training.state, step, model, average, optimizer.optimizer, is_main=accelerator.is_main_process)

    errors: list[float] = []
    with Stop() as stop:
        for step, examples in ahead(
            lambda step: _examples(training.examples, step, config, accelerator), begin, training.steps
        ):
            errors.append(_step(model, optimizer, examples, _Rate(config, task, step), accelerator))
            average.follow(min(config.average, (step + 1) / (step + 10)))
            done = step + 1
            is_last = done == training.steps
            if done % task.report_every == 0 or is_last:
                with average.shown():
                    judged = held_out_error(model, training.validation, accelerator.device)
                training.log(done, {"loss": _mean(errors, accelerator), **judged})
                errors.clear()
                save(done)
            if done % task.sample_every == 0 or is_last:
                with average.shown():
                    training.show(done, model)
            training.progress(done, training.steps)
            if stop.is_asked(accelerator) and not is_last:
                save(done)
                stop.go_on()


def _spread(
    portrait: WanPortrait | VaceBranch, config: GeneratorTraining, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """Prepare model and optimiser for the launcher's distribution type: replicas, or shards (FSDP 2)."""
    way = accelerator.distributed_type
    if way.name not in SPREADS or (way is DistributedType.FSDP and not accelerator.is_fsdp2):
        found = "FSDP 1" if way is DistributedType.FSDP else way.name
        raise UsageError(
            f"accelerate distributes the model by {found}, expected one device, DDP or FSDP 2. Launch with "
            "`accelerate launch --use_fsdp --fsdp_version 2`, or with `--multi_gpu`."
        )
    if way is DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        # Every process has read the weights: accelerate's mode in which only one does fails for models with buffers.
        plugin.cpu_ram_efficient_loading = False
        # FSDP warns not to change the output of the model in place; this training does not.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    # Units that FSDP gathers at a time, if it is launched to wrap by transformer blocks.
    portrait._no_split_modules = portrait.transformer._no_split_modules  # pyright: ignore[reportArgumentType]
    return accelerator.prepare(portrait, optimizer_of(portrait, config))


@dataclass(frozen=True)
class _Rate:
    """Learning rates of one step: they rise linearly during the warm-up, and are constant then."""

    config: GeneratorTraining
    task: GeneratorTask
    step: int

    def set(self, optimizer: Any) -> None:
        rise = min((self.step + 1) / max(self.config.warm_up, 1), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rise * group["full_rate"]


def _step(model, optimizer, examples: Sequence[Example], rate: _Rate, accelerator: Accelerator) -> float:
    """One optimiser step, with gradients accumulated over some examples; returns their mean loss."""
    rate.set(optimizer)
    total = 0.0
    for index, example in enumerate(examples):
        if index + 1 < len(examples):
            with accelerator.no_sync(model):
                total += _backward(model, example, rate.task, accelerator, share=1 / len(examples))
        else:
            total += _backward(model, example, rate.task, accelerator, share=1 / len(examples))
    accelerator.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _backward(model, example: Example, task: GeneratorTask, accelerator: Accelerator, *, share: float) -> float:
    loss = share * weight_of(example.sigma, task) * error_of(model, example, accelerator.device)
    accelerator.backward(loss)
    return float(loss.detach())


def error_of(model: nn.Module, example: Example, device: torch.device) -> Float[Tensor, ""]:
    """Mean squared error of the velocity, weighted by `example.weight`."""
    found = model(example.noisy().to(device), **example.conditions(device))
    error = (found.float() - example.target().to(device)).square()
    return (error if example.weight is None else error * example.weight.to(device)).mean()


def weight_of(sigma: float, task: GeneratorTask) -> float:
    """Weight of an example's error in the loss: 1 for `velocity`, (1 - sigma)^2 for `epsilon`.

    With z_s = (1 - s) z + s e and v = e - z, an error d of v is an error (1 - s) d of e.
    """
    return (1 - sigma) ** 2 if task.loss == "epsilon" else 1.0


@torch.no_grad()
def held_out_error(model: nn.Module, validation: Sequence[Example], device: torch.device) -> dict[str, float]:
    """Mean error over held-out examples, as figure `held_out`; no figure without examples."""
    if not validation:
        return {}
    return {"held_out": math.fsum(float(error_of(model, example, device)) for example in validation) / len(validation)}


def _examples(examples: Examples, step: int, config: GeneratorTraining, accelerator: Accelerator) -> list[Example]:
    """Examples of a step for this process: each process takes `config.batch` consecutive numbers."""
    first = (step * accelerator.num_processes + accelerator.process_index) * config.batch
    return [examples.example(first + k) for k in range(config.batch)]


def _mean(errors: Sequence[float], accelerator: Accelerator) -> float:
    own = torch.tensor(math.fsum(errors) / max(len(errors), 1), device=accelerator.device)
    return float(accelerator.reduce(own, "mean"))  # pyright: ignore[reportArgumentType]


class Stop:
    """Delays the first SIGINT or SIGTERM to the end of a step; the second one ends the program at once."""

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        """Install the handlers."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        """Put the earlier handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._number = number
        signal.signal(number, self._before[number])

    def is_asked(self, accelerator: Accelerator) -> bool:
        """True if any process got such a signal; all processes must call it together."""
        if accelerator.num_processes == 1:
            return bool(self._number)
        numbers = accelerator.gather(torch.tensor([self._number], device=accelerator.device))
        self._number = int(numbers.max())  # pyright: ignore[reportAttributeAccessIssue]
        return bool(self._number)

    def go_on(self) -> None:
        """Call the handler that was installed before, and end the program."""
        handler = self._before[self._number]
        if callable(handler):
            # The signal is not raised again: an exception that a handler raises in a garbage collection is lost.
            handler(self._number, None)
        raise KeyboardInterrupt
