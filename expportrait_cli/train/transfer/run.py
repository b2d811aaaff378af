"""`train transfer`: from prepared datasets to a weights file, with a page of its figures beside it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expportrait_cli.artifacts import guard
from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.dataset.dataset import Dataset
from expportrait_cli.errors import InputError, UsageError, UserError
from expportrait_cli.head import HeadModel
from expportrait_cli.pipeline.heads import head_by_name, kind_of_head
from expportrait_cli.pipeline.provenance import read_record
from expportrait_cli.retargeting.face import Face
from expportrait_cli.retargeting.network import Kind, Trained, TransferNetwork, save_network
from expportrait_cli.runtime import Stage, counted, silent, use_threads
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.curves import History, write_page
from expportrait_cli.train.transfer.clips import FaceClipLike, held_out, stored_clip
from expportrait_cli.train.transfer.loop import fresh_network, judged_by, train
from expportrait_cli.train.transfer.synthetic import synthetic_clips
from expportrait_cli.version import __version__

FEWEST = 3
"""Fewest people to train on."""


@dataclass(frozen=True)
class TrainingData:
    """Clips of people to train on (`learners`), and of held-out people to evaluate on (`judges`)."""

    head: HeadModel
    face: Face
    learners: Sequence[FaceClipLike]
    judges: Sequence[FaceClipLike]
    sources: dict[str, Any]
    """Counts of clips and people, and hashes of the datasets, for the header of the weights file."""


def prepare_data(datasets: Sequence[Path], work: Path, config: TransferTraining, stage: Stage) -> TrainingData:
    """Read prepared sets, add synthetic people, and split all into training and held-out people.

    Raises:
        InputError: no prepared set; sets of different head models; too few people.
    """
    opened = [Dataset.open(folder) for folder in datasets]
    models = sorted({dataset.head_model for dataset in opened}) or [config.head_model]
    if len(models) > 1:
        raise InputError(f"The sets mix the head models {' and '.join(models)}. Prepare them with one of them.")
    head = head_by_name(kind_of_head(models[0]))  # pyright: ignore[reportArgumentType]
    face = Face.of(head)
    clips = [clip for dataset in opened for clip in dataset.clips]
    read = counted(clips, len(clips), stage("read the sets") if clips else silent(""))
    filmed = [stored_clip(clip, head, face, work / f"filmed-{head.name}") for clip in read]
    made_up = []
    if config.synthetic:
        folder = work / f"synthetic-{head.name}"
        made_up = synthetic_clips(
            head, face, config.synthetic, config.synthetic_frames, folder=folder, progress=stage("synthesise people")
        )
    learners, judges = held_out([*filmed, *made_up], config.held_out)
    if len({p.person for p in learners}) < FEWEST:
        raise InputError(
            f"There are {len({p.person for p in learners})} people to train on, expected {FEWEST} or more. Prepare "
            "more videos, or add synthetic people: `synthetic=240`."
        )
    sources = {
        "filmed": {"clips": len(filmed), "people": len({p.person for p in filmed})},
        "synthetic": {"people": len(made_up)},
        "held_out": sorted({p.person for p in judges}),
        "datasets": [sha256(folder / "dataset.json") for folder in datasets],
    }
    return TrainingData(head, face, learners, judges, sources)


def train_transfer(
    datasets: Sequence[Path], out: Path, config: TransferTraining, stage: Stage, *, kind: Kind = "learned"
) -> dict[str, Any]:
    """Train, or resume the last run; write the weights, and a page with curves and predictions. Returns a summary."""
    guard.check([out, *(out.with_suffix(suffix) for suffix in (".html", ".jpg"))])
    use_threads()
    work = out.with_name(f"{out.stem}.work")
    work.mkdir(parents=True, exist_ok=True)
    run = {"settings": asdict(config), "kind": kind, "datasets": [str(d.resolve()) for d in datasets]}
    with begun(work / "run.json", run):
        data = prepare_data(datasets, work, config, stage)
    network = train_network(data, work, config, stage, kind=kind)
    figures = judged_by(network, data.judges)
    made_by = {
        "tool": f"expportrait {__version__}",
        "settings": asdict(config),
        "sources": data.sources,
        "figures": {name: round(value, 4) for name, value in figures.items()},
    }
    save_network(trained_of(network, data.learners), out, data.head, made_by)
    page = write_page(out.with_suffix(".html"), History.read(work / "history.jsonl"), network, data.judges, data.head)
    return {"figures": made_by["figures"], "people": len({p.person for p in data.learners}), "page": str(page)}


def train_network(
    data: TrainingData, work: Path, config: TransferTraining, stage: Stage, *, kind: Kind
) -> TransferNetwork:
    """Train one network, or resume it from its state in `work`."""
    history = History(work / "history.jsonl", tensorboard=work / "tensorboard")
    network = fresh_network(kind, data.face, data.learners, stage("read the neutral faces"), seed=config.seed)
    return train(
        network,
        data.learners,
        data.judges,
        config,
        state=work / f"{kind}.safetensors",
        stage=stage,
        log=history.add,
    )


def trained_of(network: TransferNetwork, learners: Sequence[FaceClipLike]) -> Trained:
    """Put the network together with the largest expressions and jaw angles that it was trained on."""
    psi = np.max([np.abs(p.expression).max(0) for p in learners], 0)
    jaw = np.max([np.abs(p.jaw).max(0) for p in learners], 0)
    return Trained(network, psi.astype(np.float32), jaw.astype(np.float32))


@contextmanager
def begun(path: Path, run: dict[str, Any]) -> Iterator[None]:
    """Context that records the inputs of a run in `path`; a resumed run must have the same ones.

    If a new run ends with a `UserError` inside, the record is removed, so that it does not block the next run.

    Raises:
        UsageError: the folder has a run with other settings or sets.
    """
    is_new = not path.is_file()
    if is_new:
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(run, indent=2, sort_keys=True) + "\n", "utf-8")
    else:
        found = read_record(path)
        if not isinstance(found.get("settings"), dict):
            raise UsageError(f"{path} is damaged: its run cannot go on. Write to another file, or remove the folder.")
        settings = found["settings"]
        if found != run:
            changed = sorted(k for k in run["settings"] if settings.get(k) != run["settings"][k])
            raise UsageError(
                f"{path.parent} holds a run with other {', '.join(changed) or 'sets'}. Give the same command again, "
                "write to another file, or remove the folder."
            )
    try:
        yield
    except UserError:
        if is_new:
            path.unlink(missing_ok=True)
        raise
