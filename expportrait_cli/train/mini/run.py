"""`train mini` and `train gate`: training of the small painting network, and the check whether it beats the proxy."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.artifacts import guard, network_file, npz
from expportrait_cli.artifacts.files import sha256
from expportrait_cli.dataset.dataset import Clip, Dataset
from expportrait_cli.errors import InputError
from expportrait_cli.head import HeadModel
from expportrait_cli.painting.mini import KIND, MiniNet, correct, load_mini, save_mini
from expportrait_cli.pipeline.heads import head_by_name, kind_of_head
from expportrait_cli.runtime import Stage, best_device, use_threads
from expportrait_cli.train.config import MiniTraining
from expportrait_cli.train.curves import History
from expportrait_cli.train.mini.loop import Example, make_examples, train, window
from expportrait_cli.train.transfer.clips import held_out
from expportrait_cli.train.transfer.run import begun
from expportrait_cli.version import __version__

GUESSED, ON_HEAD = 0.5, 0.25
"""Guessed share, and squared length of the normal, above which a pixel counts as guessed, and as on the head."""
LEAST = {"head_db": 0.3, "guessed_db": 3.0}
"""Smallest gains in PSNR over the proxy that pass, dB."""
SHARP = 0.9
"""Smallest strength of edges on the head that passes, as a share of the truth's."""
STEADY = 1.0
"""Largest flicker that passes, as a multiple of the proxy's."""

Figures = dict[str, float]


def judge(network: MiniNet, paths: Sequence[Path]) -> tuple[Figures, list[Figures]]:
    """Measure a network; return the means over the examples, and the figures of each.

    `*_db` is the gain in PSNR over the proxy: of all pixels, of the head's, of those that the proxy guessed.
    `sharp` is the strength of edges on the head as a share of the truth's, `sharp_proxy` that of the proxy;
    `flicker` is the mean change of the error between frames, as a multiple of the proxy's.
    """
    rows = [_figures(network, npz.load(Example, path)) for path in paths]
    names = rows[0] if rows else {}
    return {name: float(np.mean([row[name] for row in rows])) for name in names}, rows


def passes(figures: Mapping[str, float]) -> bool:
    """True if a network beats the proxy by enough for the painter `auto` to choose it."""
    gains = all(figures.get(name, 0.0) >= least for name, least in LEAST.items())
    return gains and figures.get("sharp", 0.0) >= SHARP and figures.get("flicker", np.inf) <= STEADY


def _figures(network: MiniNet, example: Example) -> Figures:
    sums: dict[str, list[float]] = {}
    for index in range(len(example.proxy)):
        batch = window(example, index)
        proxy = batch.frames[:, :, :3]
        with torch.no_grad():
            painted = (proxy + correct(network, batch.frames, batch.still)).clamp(-1, 1)
        guessed = (batch.frames[:, :, 3:4] > GUESSED).expand_as(proxy)
        head = (batch.frames[:, :, 4:].square().sum(2, keepdim=True) > ON_HEAD).expand_as(proxy)
        for name, film in (("proxy", proxy), ("mini", painted)):
            error = film - batch.truth
            for region, mask in (("all", torch.ones_like(head)), ("head", head), ("guessed", guessed)):
                sums.setdefault(f"{region}_{name}", []).append(float(error[mask].square().sum()))
            sums.setdefault(f"flicker_{name}", []).append(float(error.diff(dim=1).abs().mean()))
            sums.setdefault(f"sharp_{name}", []).append(_edges(film, head))
        sums.setdefault("sharp_true", []).append(_edges(batch.truth, head))
    total = {name: float(np.sum(values)) for name, values in sums.items()}
    gains = {
        f"{region}_db": 10 * float(np.log10(max(total[f"{region}_proxy"], 1e-9) / max(total[f"{region}_mini"], 1e-9)))
        for region in ("all", "head", "guessed")
    }
    return {
        **gains,
        "sharp": total["sharp_mini"] / total["sharp_true"],
        "sharp_proxy": total["sharp_proxy"] / total["sharp_true"],
        "flicker": total["flicker_mini"] / max(total["flicker_proxy"], 1e-9),
    }


def _edges(film: Float[Tensor, "1 T 3 H W"], head: Tensor) -> float:
    across, down = film.diff(dim=-1)[..., :-1, :], film.diff(dim=-2)[..., :-1]
    return float(((across.square() + down.square()).sqrt() * head[..., :-1, :-1]).sum())


GATE_PHOTOS, GATE_WINDOWS = 1, 6


def train_mini(datasets: Sequence[Path], out: Path, config: MiniTraining, stage: Stage) -> dict[str, Any]:
    """Train, or resume the last run; save the network, and in its file the figures on held-out people.

    Raises:
        InputError: no prepared set, or sets of different head models.
    """
    guard.check([out])
    use_threads()
    work = out.with_name(f"{out.stem}.work")
    work.mkdir(parents=True, exist_ok=True)
    run = {"settings": asdict(config), "datasets": [str(d.resolve()) for d in datasets]}
    with begun(work / "run.json", run):
        head = _head(datasets)
        learners, judges = held_out(_clips(datasets), config.held_out)
        if not learners:
            learners, judges = judges, []
    few = {"photos": GATE_PHOTOS, "windows": GATE_WINDOWS}
    several = {"photos": config.photos, "windows": config.lesson_windows}
    taught = make_examples(learners, head, **several, folder=work / "lessons", progress=stage("make proxies"))
    asked = make_examples(judges, head, **few, folder=work / "judges", progress=stage("make held-out proxies"))
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
    """Evaluate a network on people that it was not trained on, and write the result into its file.

    Raises:
        InputError: the network was trained on one of the sets.
        WeightsError: the file is not a `mini` network.
    """
    header, network = network_file.read_header(weights, KIND), load_mini(weights).to(best_device())
    known = set(header["made_by"].get("datasets", []))
    if any(sha256(folder / "dataset.json") in known for folder in datasets):
        raise InputError(f"{weights} was trained on one of these sets. Give sets of other people.")
    clips = _clips(datasets)
    work = weights.with_name(f"{weights.stem}.work") / "gate"
    few = {"photos": GATE_PHOTOS, "windows": GATE_WINDOWS}
    paths = make_examples(clips, _head(datasets), **few, folder=work, progress=stage("make proxies"))
    verdict = _verdict(judge(network, paths)[0], len({clip.person for clip in clips}))
    save_mini(network, weights, {**header["made_by"], "gate": verdict})
    return verdict


def _verdict(figures: Mapping[str, float], people: int) -> dict[str, Any]:
    return {"people": people, "passed": passes(figures), **{name: round(value, 4) for name, value in figures.items()}}


def _clips(datasets: Sequence[Path]) -> list[Clip]:
    return [clip for folder in datasets for clip in Dataset.open(folder).clips]


def _head(datasets: Sequence[Path]) -> HeadModel:
    """Load the head model that all sets share; proxies are drawn with it."""
    models = sorted({Dataset.open(folder).head_model for folder in datasets})
    if len(models) > 1:
        raise InputError(f"The sets mix the head models {' and '.join(models)}. Prepare them with one of them.")
    return head_by_name(kind_of_head(models[0]))  # pyright: ignore[reportArgumentType]
