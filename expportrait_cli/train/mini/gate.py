"""Whether the small painter is better than the proxy on people it never saw: the gate that `--backend auto` asks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.generate.mini import correct
from expportrait_cli.generate.mini_net import MiniNet
from expportrait_cli.train.mini.loop import window
from expportrait_cli.train.mini.proxies import Lesson

GUESSED, ON_HEAD = 0.5, 0.25
LEAST = {"head_db": 0.3, "guessed_db": 3.0}
"""What has to be gained over the proxy, dB of PSNR,"""
SHARP = 0.9
"""of the truth's edges that have to be left, on the head,"""
STEADY = 1.0
"""and the most flicker, in that of the proxy."""

Figures = dict[str, float]


def judge(network: MiniNet, paths: Sequence[Path]) -> tuple[Figures, list[Figures]]:
    """Means over lessons, and each lesson's figures.

    `*_db` is the gain in PSNR over the proxy: of all pixels, of the head's, of those that the proxy guessed.
    `sharp` is the strength of edges on the head as a share of the truth's, `sharp_proxy` that of the proxy;
    `flicker` the change of the error from frame to frame, as a share of the proxy's.
    """
    rows = [_lesson(network, npz.load(Lesson, path)) for path in paths]
    names = rows[0] if rows else {}
    return {name: float(np.mean([row[name] for row in rows])) for name in names}, rows


def passes(figures: Mapping[str, float]) -> bool:
    """Whether a network may take the proxy's place unasked."""
    gains = all(figures.get(name, 0.0) >= least for name, least in LEAST.items())
    return gains and figures.get("sharp", 0.0) >= SHARP and figures.get("flicker", np.inf) <= STEADY


def _lesson(network: MiniNet, lesson: Lesson) -> Figures:
    sums: dict[str, list[float]] = {}
    for index in range(len(lesson.proxy)):
        batch = window(lesson, index)
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
