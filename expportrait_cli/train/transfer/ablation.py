"""`train ablation`: every transfer method on held-out people, as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from expportrait_cli.artifacts import guard, npz
from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.retargeting.network import Kind, TransferNetwork, save_network
from expportrait_cli.runtime import Progress
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.transfer import folds
from expportrait_cli.train.transfer.clips import FaceClip, FaceClipLike
from expportrait_cli.train.transfer.methods import (
    FIRST_SEED,
    SCRIPT,
    Errors,
    Predict,
    Reenactment,
    errors,
    interval,
    leak,
    predictors,
    swap_penalty,
    tracked,
    wrinkle_energy,
)
from expportrait_cli.train.transfer.run import Stage, TrainingData, prepare_data, train_network, trained_of
from expportrait_cli.train.transfer.synthetic import Synthesis, random_expressions
from expportrait_cli.version import __version__

PEOPLE, FRAMES = 12, 24
"""Synthetic people of the evaluation, and frames of each."""
CYCLES = 4
"""People on whom round trips and amplitudes are measured."""
COLUMNS = ("offset_mm", "of_none", "normal_deg", "of_none_normal", "lips", "brows", "lids", "cycle_deg")


def ablation(datasets: Sequence[Path], out: Path, config: TransferTraining, stage: Stage) -> tuple[dict[str, Any], str]:
    """Train the networks that `OUT.work` lacks, measure all methods, write the figures; also returns a text table.

    The networks are saved in `OUT.work`, as files for the option `network`.
    """
    guard.check([out])
    work = out.with_name(f"{out.stem}.work")
    work.mkdir(parents=True, exist_ok=True)
    data = prepare_data(datasets, work, config, stage)
    networks = {
        kind: train_network(data, _folder(work, kind, config), config, stage, kind=kind) for kind in get_args(Kind)
    }
    for kind, network in networks.items():
        trained = trained_of(network, data.learners)
        save_network(trained, work / f"{kind}.safetensors", data.head, {"settings": asdict(config)})
    synthesis = Synthesis(data.head, data.face)
    people = _test_people(synthesis, work, stage)
    scores = measured(networks, people, synthesis, stage("measure methods"))
    figures: dict[str, Any] = {"made_by": f"expportrait {__version__}", "made_up": scores}
    filmed = [judge for judge in data.judges if not judge.is_synthetic]
    if filmed:
        figures["filmed"] = _shares(predictors(networks, filmed, data.face), filmed, data)
    figures |= {"settings": asdict(config), "sources": data.sources}
    with atomic_path(out) as partial:
        partial.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    return figures, table(figures)


def _folder(work: Path, kind: str, config: TransferTraining) -> Path:
    folder = work / f"{kind}-{config.steps}-{config.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _test_people(synthesis: Synthesis, work: Path, stage: Stage) -> list[FaceClip]:
    """Held-out synthetic people, all with the same sequence of expressions; kept in `work`."""
    progress, people = stage("synthesise people"), []
    for k in range(PEOPLE):
        path = work / f"cast-{k:02d}.npz"
        if not path.is_file():
            npz.save(synthesis.clip(FIRST_SEED + k, FRAMES, script=SCRIPT), path, made_by={})
        people.append(npz.load(FaceClip, path))
        progress(k + 1, PEOPLE)
    return people


def measured(
    networks: Mapping[str, TransferNetwork], people: Sequence[FaceClip], synthesis: Synthesis, progress: Progress
) -> dict[str, Any]:
    """All figures of every method, on synthetic people."""
    methods = predictors(networks, people, synthesis.face)
    steps, done = 2 * len(methods) + len(people), count(1)
    found = {}
    for name, predict in methods.items():
        found[name] = errors(predict, people, synthesis.face)
        progress(next(done), steps)
    truth = Reenactment(synthesis, lambda person: torch.from_numpy(person.offset.astype(np.float32)))
    seen = []
    for k, person in enumerate(people):
        psi, jaw = tracked(synthesis, FIRST_SEED + k, truth.heads(FIRST_SEED + k, person))
        seen.append(replace(person, expression=psi, jaw=jaw))
        progress(next(done), steps)
    rows: dict[str, Any] = {}
    for name, predict in methods.items():
        reenactment = Reenactment(synthesis, predict)
        moved = dict(zip(("lips", "brows", "lids"), _amplitude_ratios(reenactment, truth, people), strict=True))
        rows[name] = {**_basic(found[name], found["none"]), **moved}
        if name in networks:
            rows[name] |= _of_network(networks[name], reenactment, people, seen)
        progress(next(done), steps)
    if "learned" in found:
        rows["learned"] |= {f"against_{other}": interval(found["learned"], found[other]) for other in found}
    return json.loads(json.dumps(rows, default=float))


def _of_network(
    network: TransferNetwork, reenactment: Reenactment, people: Sequence[FaceClip], seen: Sequence[FaceClip]
) -> dict[str, float]:
    probe, chance = leak(network, seen)
    energy = dose(reenactment.predict, reenactment.synthesis, people[0])
    pairs = [(k, (k + 1) % len(people)) for k in range(CYCLES)]
    cycles = [reenactment.cycle_deg(FIRST_SEED + a, FIRST_SEED + b, people[a]) for a, b in pairs]
    return {
        "swap_penalty": swap_penalty(network, people),
        "leak": probe,
        "chance": chance,
        "dose_growth": float(energy[-1] / energy[0]),
        "dose_largest_step": float(np.abs(np.diff(energy)).max() / max(np.ptp(energy), 1e-9)),
        "cycle_deg": float(np.mean(cycles)),
    }


def dose(predict: Predict, synthesis: Synthesis, frame: FaceClip) -> np.ndarray:
    """RMS height, mm, of folds by raised brows and a smile, for faces between the least and the most slack of 60."""
    faces = [synthesis.identity(FIRST_SEED + k) for k in range(60)]
    slack = [folds.slackness(folds.face_marks(synthesis.head, synthesis.neutral(face))) for face in faces]
    names = synthesis.head.expression_names
    raised = np.array([[float(name.startswith(("browInnerUp", "browOuterUp", "mouthSmile"))) for name in names]])
    if not raised.any():
        # The model has components, not named units: a random expression replaces raised brows.
        raised = random_expressions(synthesis.head, 2, torch.Generator().manual_seed(FIRST_SEED))[0][1:].numpy()
    script = replace(
        frame,
        expression=raised.astype(np.float32),
        jaw=np.zeros((1, 3), np.float32),
        offset=frame.offset[:1],
        weight=frame.weight[:1],
    )
    return wrinkle_energy(predict, synthesis, faces[int(np.argmin(slack))], faces[int(np.argmax(slack))], script)


def _amplitude_ratios(reenactment: Reenactment, truth: Reenactment, people: Sequence[FaceClip]) -> list[float]:
    """Amplitudes of lips, brows and lids, as shares of the true ones."""
    pairs = [[each.amplitudes(FIRST_SEED + k, people[k]) for each in (reenactment, truth)] for k in range(CYCLES)]
    own, true = np.mean(pairs, 0)
    return (own / true).tolist()


def _shares(methods: Mapping[str, Predict], people: Sequence[FaceClipLike], data: TrainingData) -> dict[str, Any]:
    found = {name: errors(predict, people, data.face) for name, predict in methods.items()}
    return {name: _basic(error, found["none"]) for name, error in found.items()}


def _basic(error: Errors, none: Errors) -> dict[str, float]:
    offset, normal = error.shares(none)
    return {
        "offset_mm": float(error.offset_mm.mean()),
        "of_none": offset,
        "normal_deg": float(error.normal_deg.mean()),
        "of_none_normal": normal,
    }


def table(figures: Mapping[str, Any]) -> str:
    """Format the figures as a text table."""
    lines = []
    for title in ("made_up", "filmed"):
        rows = figures.get(title)
        if rows is None:
            continue
        columns = [name for name in COLUMNS if any(name in row for row in rows.values())]
        lines.append(f"{title:<10}" + "".join(f"{name:>16}" for name in columns))
        for name, row in rows.items():
            cells = (f"{row[column]:>16.3f}" if column in row else f"{'':>16}" for column in columns)
            lines.append(f"{name:<10}" + "".join(cells))
        if (learned := rows.get("learned", {})).get("swap_penalty") is not None:
            names = (
                "swap_penalty",
                "leak",
                "chance",
                "dose_growth",
                "dose_largest_step",
                "against_direct",
                "against_blind",
            )
            lines.append("learned: " + ", ".join(f"{name} {_text(learned[name])}" for name in names if name in learned))
        lines.append("")
    return "\n".join(lines).rstrip()


def _text(value: Any) -> str:
    return "–".join(f"{v:.2f}" for v in value) if isinstance(value, list) else f"{value:.3f}"
