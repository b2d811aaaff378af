"""Trains the toy generator in two processes, whole in each and in pieces: `python -m torch.distributed.run` starts it.

Every run leaves its state in a folder of its own, and what it reported beside it.
"""

import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule

from expportrait_cli.errors import UsageError
from expportrait_cli.train.config import GeneratorTask, GeneratorTraining
from expportrait_cli.train.generator.examples import Example, Examples
from expportrait_cli.train.generator.loop import Training, set_free, train
from support.balls import ball_entry, small_portrait

CONFIG = GeneratorTraining(steps=6, frames=5, rate=1e-2, warm_up=4, average=0.9, batch=2)
# Films are made at other steps than states are written.
TASK = GeneratorTask(report_every=4, sample_every=3, sample_steps=2)


@dataclass(frozen=True)
class Run:
    """One run, and where it is stopped."""

    name: str
    is_spread: bool = False
    lora: int = 0
    precision: str = "no"
    stop: int = 0
    is_halved: bool = False
    """Whether what does not learn is in half precision."""


RUNS = (
    Run("whole"),
    Run("pieces", is_spread=True),
    Run("pieces-stopped", is_spread=True, stop=2),
    Run("pieces-stopped", is_spread=True),
    Run("moved", stop=3),
    Run("moved", is_spread=True),
    Run("lora", lora=4),
    Run("lora-pieces", is_spread=True, lora=4),
    Run("lora-pieces-halved", is_spread=True, lora=4, precision="bf16", is_halved=True),
)


def accelerator_of(run: Run) -> Accelerator:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=run.precision)
    if run.is_spread:
        # accelerate keeps FSDP to GPUs, though torch spreads models over processes on the CPU just as well.
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin_of()
        if run.precision != "no":
            accelerator.state.fsdp_plugin.set_mixed_precision(run.precision)
    return accelerator


def plugin_of(version: int = 2) -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(
        fsdp_version=version, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=version == 2
    )


def made(run: Run, folder: Path, clips: list) -> None:
    accelerator, config = accelerator_of(run), replace(CONFIG, lora=run.lora)
    portrait = small_portrait(12)
    if run.is_halved:
        portrait.to(torch.bfloat16)
    set_free(portrait, config, TASK)
    examples = Examples(clips, TASK, frames=config.frames, seed=0)
    validation = examples.validation(2)
    rows: list[dict[str, Any]] = []

    def progress(done: int, total: int | None) -> None:
        # One of them is asked, and all of them stop.
        if done == run.stop and accelerator.process_index == 1:
            signal.raise_signal(signal.SIGTERM)

    def show(step: int, model: torch.nn.Module) -> None:
        rows.append({"step": step, "film": film_of(model, validation[0])})
        if run.is_spread:
            rows[-1]["groups"] = sum(isinstance(module, FSDPModule) for module in model.modules())

    folder.mkdir(parents=True, exist_ok=True)
    training = Training(
        examples,
        validation,
        config.steps,
        folder / "state.safetensors",
        progress,
        lambda step, figures: rows.append({"step": step, **figures}),
        show,
    )
    try:
        train(portrait, training, config, TASK, accelerator)
    except SystemExit:
        rows.append({"stopped": True})
    if accelerator.is_main_process:
        (folder / f"rows-{run.stop}.json").write_text(json.dumps(rows))
    accelerator.wait_for_everyone()


@torch.no_grad()
def film_of(model: torch.nn.Module, example: Example) -> float:
    return float(model(example.noisy(), **example.conditions(torch.device("cpu"))).float().square().mean())


def refused(folder: Path) -> str:
    accelerator = accelerator_of(Run("", is_spread=True))
    accelerator.state.fsdp_plugin = plugin_of(1)
    config, portrait = CONFIG, small_portrait(12)
    set_free(portrait, config, TASK)
    never = Training([], [], 1, folder / "none", lambda *_: None, lambda *_: None, lambda *_: None)  # pyright: ignore[reportArgumentType]
    try:
        train(portrait, never, config, TASK, accelerator)
    except UsageError as error:
        return str(error)
    return ""


def main() -> None:
    folder = Path(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    rank = accelerator_of(RUNS[0]).process_index
    clips = [ball_entry(folder / f"clips-{rank}", name, seed, 9) for seed, name in enumerate(("one", "two"))]
    for run in RUNS:
        made(run, folder / run.name, clips)
    said = refused(folder)
    if rank == 0:
        (folder / "refused.txt").write_text(said)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
