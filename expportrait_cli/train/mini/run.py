"""`train mini` from prepared sets to a file of weights, and `train gate`, which says whether they are good enough."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expportrait_cli import __version__
from expportrait_cli.artifacts import network_file
from expportrait_cli.artifacts.digest import sha256
from expportrait_cli.config import MiniTraining
from expportrait_cli.dataset.dataset import Clip, Dataset
from expportrait_cli.errors import InputError
from expportrait_cli.generate.mini import KIND, load_mini, save_mini
from expportrait_cli.pipeline.heads import head_by_name
from expportrait_cli.train.curves import History
from expportrait_cli.train.mini.gate import judge, passes
from expportrait_cli.train.mini.loop import train
from expportrait_cli.train.mini.proxies import lessons
from expportrait_cli.train.transfer.performers import held_out
from expportrait_cli.train.transfer.run import check_same_run

Stage = Callable[[str], Callable[[int, int | None], None]]

GATE_PHOTOS, GATE_WINDOWS = 1, 6


def train_mini(datasets: Sequence[Path], out: Path, config: MiniTraining, stage: Stage) -> dict[str, Any]:
    """Train, or go on where the last run stopped; a share of the people only judges.

    Raises:
        InputError: no prepared set, or sets of different head models.
    """
    work = out.with_name(f"{out.stem}.work")
    work.mkdir(parents=True, exist_ok=True)
    check_same_run(work / "run.json", {"settings": asdict(config), "datasets": [str(d.resolve()) for d in datasets]})
    learners, judges = held_out(_clips(datasets), config.held_out)
    if not learners:
        learners, judges = judges, []
    taught = _lessons(learners, work / "lessons", config.photos, config.lesson_windows, stage("make proxies"))
    asked = _lessons(judges, work / "judges", GATE_PHOTOS, GATE_WINDOWS, stage("make proxies to judge by"))
    history = History(work / "history.jsonl", tensorboard=work / "tensorboard")
    network = train(
        taught,
        config,
        state=work / "state.safetensors",
        progress=stage("train"),
        log=history.add,
        judge=lambda average: judge(average, asked)[0],
    )
    figures = judge(network, asked)[0]
    made_by = {
        "tool": f"expportrait {__version__}",
        "settings": asdict(config),
        "people": len({clip.person for clip in learners}),
        "held_out": sorted({clip.person for clip in judges}),
        "datasets": [sha256(folder / "dataset.json") for folder in datasets],
        "gate": _verdict(figures, len({clip.person for clip in judges})),
    }
    save_mini(network, out, made_by)
    return {"people": made_by["people"], "gate": made_by["gate"]}


def gate(weights: Path, datasets: Sequence[Path], stage: Stage) -> dict[str, Any]:
    """Judge weights on people that they never saw, and write the verdict into them.

    Raises:
        InputError: somebody in the sets was learned from.
        WeightsError: the file is no small painter.
    """
    header, network = network_file.read_header(weights, KIND), load_mini(weights)
    known = set(header["made_by"].get("datasets", []))
    if any(sha256(folder / "dataset.json") in known for folder in datasets):
        raise InputError(f"{weights} was trained on one of these sets. Judge it by people that it has never seen.")
    clips = _clips(datasets)
    work = weights.with_name(f"{weights.stem}.work") / "gate"
    paths = _lessons(clips, work, GATE_PHOTOS, GATE_WINDOWS, stage("make proxies"))
    verdict = _verdict(judge(network, paths)[0], len({clip.person for clip in clips}))
    save_mini(network, weights, {**header["made_by"], "gate": verdict})
    return verdict


def _verdict(figures: Mapping[str, float], people: int) -> dict[str, Any]:
    return {"people": people, "passed": passes(figures), **{name: round(value, 4) for name, value in figures.items()}}


def _clips(datasets: Sequence[Path]) -> list[Clip]:
    opened = [Dataset.open(folder) for folder in datasets]
    models = sorted({dataset.head_model for dataset in opened})
    if models != ["anny"]:
        raise InputError(f"The sets hold heads of {', '.join(models)}, expected those of anny. Prepare them with it.")
    return [clip for dataset in opened for clip in dataset.clips]


def _lessons(clips: Sequence[Clip], folder: Path, photos: int, windows: int, progress) -> list[Path]:
    return lessons(clips, head_by_name("anny"), photos=photos, windows=windows, folder=folder, progress=progress)
