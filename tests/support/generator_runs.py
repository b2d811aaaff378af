"""Small runs of `train generator` on made-up clips."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate import Accelerator

from expportrait_cli.dataset import dataset
from expportrait_cli.dataset.dataset import Clip, Row
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vace import VaceBranch
from expportrait_cli.train.config import GeneratorTask, GeneratorTraining
from expportrait_cli.train.curves import History
from expportrait_cli.train.generator.examples import Examples
from expportrait_cli.train.generator.loop import Training, set_free, train
from support.balls import small_portrait
from support.performers import quiet

FAST = GeneratorTraining(steps=6, frames=5, rate=1e-2, warm_up=4, average=0.9, batch=2)


TASK = GeneratorTask(report_every=4, sample_every=4, sample_steps=2)


Rows = list[tuple[int, dict[str, float]]]


def training_run(
    clips: list,
    folder: Path,
    config: GeneratorTraining = FAST,
    task: GeneratorTask = TASK,
    *,
    portrait: WanPortrait | VaceBranch | None = None,
    progress: Callable[[int, int | None], None] = quiet,
    cpu: bool = True,
) -> Rows:
    """One run, on the processor or on a GPU; what it reported. Its state is in `folder`."""
    portrait = portrait or small_portrait(12)
    set_free(portrait, config, task)
    examples = Examples(clips, task, frames=config.frames, seed=config.seed)
    rows: Rows = []
    folder.mkdir(exist_ok=True)
    training = Training(
        examples,
        examples.validation(2),
        config.steps,
        folder / "state.safetensors",
        progress,
        lambda step, figures: rows.append((step, figures)),
        lambda step, model: None,
    )
    train(portrait, training, config, task, Accelerator(cpu=cpu, mixed_precision="no"))
    return rows


def write_set(folder: Path, clips: list[Clip]) -> Path:
    row = Row("", "", "a.mp4", "ab" * 32, 0, 11, "25", "accepted", "", "anny")
    rows = [replace(row, name=clip.name, person=clip.person) for clip in clips]
    dataset.write(folder, rows, source=folder, head_model="anny", settings={}, complete=True)
    return folder


def interrupt_at_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    add = History.add

    def interrupting(self: History, step: int, figures: dict[str, float]) -> None:
        add(self, step, figures)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(History, "add", interrupting)


def weights(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
