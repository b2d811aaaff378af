"""Variants of the tool's films: with and without the parts of the method that the paper ablates (4.3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from expportrait_cli.benchmark.inputs import Inputs
from expportrait_cli.config import PAPER, Backend, GenerateConfig, Method, Representation, TransferConfig, WanConfig
from expportrait_cli.head import HeadName
from expportrait_cli.painting.stage import choose
from expportrait_cli.pipeline import film
from expportrait_cli.pipeline.job import Job
from expportrait_cli.runtime import Stage

SHARED = ("track the photo", "track the driver", "fit the head")
"""Stages whose results all variants share; they are run by the first one."""


@dataclass(frozen=True)
class Variant:
    """One variant of the tool's films."""

    name: str
    what: str
    method: Method
    representation: Representation | None = None
    """Part of the head that is used; None for that of `Making`."""
    detail: bool = True
    """True for normal maps with fine static detail."""
    backend: Backend | None = None
    """Painter of this variant; None for that of `Making`."""


@dataclass(frozen=True)
class Making:
    """Settings of all of the tool's films."""

    backend: Backend = "auto"
    """Painter of the films."""
    weights: str = ""
    """Folder of a Wan painter's weights; empty for the default, made by `weights fetch`."""
    head_model: HeadName = "anny"
    """Head model of the films."""
    representation: Representation = "full"
    """Part of the head that is used, see `TransferConfig`."""


OWN = Variant("expportrait", "as `generate` makes it: the transfer network's offsets", "learned")
ABLATIONS = (
    OWN,
    Variant("direct", "the driver's own offsets, copied (paper, Fig. 8)", "direct"),
    Variant("no-detail", "the same without the fine static detail in normal maps", "learned", detail=False),
    Variant("no-dynamic", "static offsets and detail; what moves is the head model's expressions alone", "none"),
    Variant(
        "base",
        "the head model's mesh alone: neither static nor dynamic offsets, nor detail (paper, Fig. 7)",
        "none",
        representation="base",
        detail=False,
    ),
)
PAINTED = (
    Variant("proxy", "the same head and performance, painted by the proxy alone", "learned", backend="proxy"),
    Variant("mini", "the same head and performance, painted by `mini`", "learned", backend="mini"),
)


def variants(*, ablation: bool, making: Making) -> tuple[Variant, ...]:
    """Return the variants of a benchmark: the usual one, or with `ablation` all that can be made here.

    Raises:
        WeightsError: the painter's weights are missing.
    """
    if not ablation:
        return (OWN,)
    painter = choose(GenerateConfig(backend=making.backend, wan=WanConfig(weights=making.weights))).name
    has_nets = find_spec("diffusers") is not None
    return (*ABLATIONS, *(v for v in PAINTED if v.backend != painter and (has_nets or v.backend == "proxy")))


@dataclass(frozen=True)
class Made:
    """A film and its cost."""

    path: Path
    seconds: float
    """Time to make this film, s, with the tracking and fit that it shares with the pair's first film; from the run
    records."""


class PairFilms:
    """The tool's films of one pair: the first as by `generate`, the others from its head and tracking."""

    def __init__(self, inputs: Inputs, path_of: Callable[[Variant], Path], making: Making, *, absolute: bool) -> None:
        """`absolute`: take the driver's own pose and expression, not their change from its neutral frame."""
        self._inputs, self._path_of, self._making = inputs, path_of, making
        self._absolute: bool = absolute
        self._first: film.Film | None = None

    def make(self, variant: Variant, announce: Stage) -> Made:
        """Make a film, unless it exists and is up to date."""
        if self._first is None:
            first = self._job(OWN)
            self._first = film.generate(first, announce)
        seconds = self._first.summary["seconds"]
        if variant == OWN:
            return Made(self._first.path, seconds["whole run"])
        work = self._job(OWN).work
        job = replace(self._job(variant), reference=work / "reference.head.npz", driving=work / "driving.track.npz")
        made = film.generate(job, announce)
        return Made(made.path, made.summary["seconds"]["whole run"] + sum(seconds.get(name, 0.0) for name in SHARED))

    def _job(self, variant: Variant) -> Job:
        size, making = self._inputs.size, self._making
        return Job(
            reference=self._inputs.reference,
            driving=self._inputs.driving,
            out=self._path_of(variant),
            head_model=making.head_model,
            transfer=replace(
                PAPER if self._absolute else TransferConfig(),
                method=variant.method,
                representation=variant.representation or making.representation,
            ),
            # Pasted back, so that the film has the square of the truth. The mouth must not be copied from the truth.
            generate=GenerateConfig(
                backend=variant.backend or making.backend,
                size=size,
                paste_back=True,
                audio="none",
                mouth="model",
                detail=variant.detail,
                wan=WanConfig(weights="" if variant.backend else making.weights),
            ),
        )
