"""Train the paper's generator: its loss, its steps, and stopping between two of them (paper 3.3, Eq. 10)."""

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
from expportrait_cli.train.generator.lessons import Lesson, Lessons
from expportrait_cli.train.generator.state import Average, load_state, save_state

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
NEW = ("patch_embedding", "lora_")
"""Parts of the transformer that did not come with the base, as far as they matter."""
FOR_IMAGES = ("image_embedder", "add_k_proj", "add_v_proj", "norm_added")
"""Parts that see CLIP's tokens, which are given if the base has an image encoder."""
CLIP = 1.0
"""Largest norm of the gradient."""
SPREADS = ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP")
"""Ways of accelerate to use several devices whose states can be gathered."""


@dataclass(frozen=True)
class School:
    """Lessons, examination, length and outputs of one training."""

    lessons: Lessons
    exam: Sequence[Lesson]
    """Lessons that only judge; none if nobody was held out."""
    steps: int
    state: Path
    progress: Progress
    log: Callable[[int, dict[str, float]], None]
    show: Callable[[int, nn.Module], None]
    """Makes a film with the averaged weights; called by every process."""


def set_free(portrait: WanPortrait | VaceBranch, config: GeneratorTraining, task: GeneratorTask) -> None:
    """Let everything learn, or with a LoRA the LoRA, the encoders and the channels that they go to.

    Of VACE it is always a LoRA, on the branch of its control.
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
            # Steps of the optimiser are lost in the 8 bits of bfloat16, which the base may be in.
            parameter.data = parameter.data.float()


def optimizer_of(portrait: WanPortrait | VaceBranch, config: GeneratorTraining) -> torch.optim.AdamW:
    """AdamW, with the base's own weights at a rate of their own."""
    named = [(name, p) for name, p in portrait.named_parameters() if p.requires_grad]
    is_new = {name: not name.startswith("transformer.") or any(part in name for part in NEW) for name, _ in named}
    groups = [
        {"params": [p for name, p in named if is_new[name]], "lr": config.rate, "full_rate": config.rate},
        {"params": [p for name, p in named if not is_new[name]], "full_rate": config.trunk * config.rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.rate, weight_decay=config.decay)


def train(
    portrait: WanPortrait | VaceBranch,
    school: School,
    config: GeneratorTraining,
    task: GeneratorTask,
    accelerator: Accelerator,
) -> None:
    """Train, or go on from `school.state`, which holds the result; SIGINT and SIGTERM stop it after a step.

    The same lessons, settings and machine give the same weights, interrupted or not.

    Raises:
        UsageError: accelerate was told to spread the model in a way that this training does not know.
    """
    model, optimizer = _spread(portrait, config, accelerator)
    average = Average(model)
    begin = load_state(school.state, model, average, optimizer.optimizer)

    def save(step: int) -> None:
        save_state(school.state, step, model, average, optimizer.optimizer, is_main=accelerator.is_main_process)

    errors: list[float] = []
    with Stop() as stop:
        for step, lessons in ahead(
            lambda step: _lessons(school.lessons, step, config, accelerator), begin, school.steps
        ):
            errors.append(_step(model, optimizer, lessons, _Rate(config, task, step), accelerator))
            average.follow(min(config.average, (step + 1) / (step + 10)))
            done = step + 1
            is_last = done == school.steps
            if done % task.report_every == 0 or is_last:
                with average.shown():
                    judged = examined(model, school.exam, accelerator.device)
                school.log(done, {"loss": _mean(errors, accelerator), **judged})
                errors.clear()
                save(done)
            if done % task.sample_every == 0 or is_last:
                with average.shown():
                    school.show(done, model)
            school.progress(done, school.steps)
            if stop.is_asked(accelerator) and not is_last:
                save(done)
                stop.go_on()


def _spread(
    portrait: WanPortrait | VaceBranch, config: GeneratorTraining, accelerator: Accelerator
) -> tuple[nn.Module, Any]:
    """Model and optimiser as the launcher wants them: whole on each device, or under FSDP a piece on each."""
    way = accelerator.distributed_type
    if way.name not in SPREADS or (way is DistributedType.FSDP and not accelerator.is_fsdp2):
        found = "FSDP 1" if way is DistributedType.FSDP else way.name
        raise UsageError(
            f"accelerate spreads the model by {found}, expected one device, DDP or FSDP 2. Launch with "
            "`accelerate launch --use_fsdp --fsdp_version 2`, or with `--multi_gpu`."
        )
    if way is DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        assert plugin is not None
        # Every process has read the weights; accelerate's way of having one read them fails at a model with buffers.
        plugin.cpu_ram_efficient_loading = False
        # It warns of changing what the model gives in place, which nothing here does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    # What accelerate gathers at a time when it is told to go by the transformer's blocks.
    portrait._no_split_modules = portrait.transformer._no_split_modules  # pyright: ignore[reportArgumentType]
    return accelerator.prepare(portrait, optimizer_of(portrait, config))


@dataclass(frozen=True)
class _Rate:
    """Learning rates of one step: they rise during the warm-up."""

    config: GeneratorTraining
    task: GeneratorTask
    step: int

    def set(self, optimizer: Any) -> None:
        rise = min((self.step + 1) / max(self.config.warm_up, 1), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rise * group["full_rate"]


def _step(model, optimizer, lessons: Sequence[Lesson], rate: _Rate, accelerator: Accelerator) -> float:
    """One step of the optimiser over some lessons, one after the other; the mean error."""
    rate.set(optimizer)
    total = 0.0
    for index, lesson in enumerate(lessons):
        if index + 1 < len(lessons):
            with accelerator.no_sync(model):
                total += _backward(model, lesson, rate.task, accelerator, share=1 / len(lessons))
        else:
            total += _backward(model, lesson, rate.task, accelerator, share=1 / len(lessons))
    accelerator.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return total


def _backward(model, lesson: Lesson, task: GeneratorTask, accelerator: Accelerator, *, share: float) -> float:
    loss = share * weight_of(lesson.sigma, task) * error_of(model, lesson, accelerator.device)
    accelerator.backward(loss)
    return float(loss.detach())


def error_of(model: nn.Module, lesson: Lesson, device: torch.device) -> Float[Tensor, ""]:
    """Mean square error of the velocity, weighted as the lesson says."""
    found = model(lesson.noisy().to(device), **lesson.told(device))
    error = (found.float() - lesson.target().to(device)).square()
    return (error if lesson.weight is None else error * lesson.weight.to(device)).mean()


def weight_of(sigma: float, task: GeneratorTask) -> float:
    """Weight of a lesson's error by the loss: 1 for `velocity`, (1 - sigma)^2 for `epsilon`.

    With z_s = (1 - s) z + s e and v = e - z, an error d of v is an error (1 - s) d of e.
    """
    return (1 - sigma) ** 2 if task.loss == "epsilon" else 1.0


@torch.no_grad()
def examined(model: nn.Module, exam: Sequence[Lesson], device: torch.device) -> dict[str, float]:
    """Error on people that nothing was learned from."""
    if not exam:
        return {}
    return {"held_out": math.fsum(float(error_of(model, lesson, device)) for lesson in exam) / len(exam)}


def _lessons(lessons: Lessons, step: int, config: GeneratorTraining, accelerator: Accelerator) -> list[Lesson]:
    """This process's lessons of a step: together the processes take one after the other."""
    first = (step * accelerator.num_processes + accelerator.process_index) * config.batch
    return [lessons.lesson(first + k) for k in range(config.batch)]


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
        """Say whether any process got such a signal; all processes have to call this together."""
        if accelerator.num_processes == 1:
            return bool(self._number)
        numbers = accelerator.gather(torch.tensor([self._number], device=accelerator.device))
        self._number = int(numbers.max())  # pyright: ignore[reportAttributeAccessIssue]
        return bool(self._number)

    def go_on(self) -> None:
        """Call the handler that was set before, which ends the program."""
        handler = self._before[self._number]
        if callable(handler):
            # Not by raising the signal again: what it raises would be lost if it came while Python collects garbage.
            handler(self._number, None)
        raise KeyboardInterrupt
