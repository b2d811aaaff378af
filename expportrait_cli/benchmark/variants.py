"""Films of the tool itself, with and without the parts that the paper says matter (4.3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.benchmark.inputs import Inputs
from expportrait_cli.config import PAPER, Backend, GenerateConfig, Method, TransferConfig
from expportrait_cli.painting.stage import choose
from expportrait_cli.pipeline import film, steps
from expportrait_cli.pipeline.job import Job
from expportrait_cli.runtime import Stage

SHARED = ("track the photo", "track the driver", "fit the head")
"""Stages that every variant needs, and that the first one pays for."""


@dataclass(frozen=True)
class Variant:
    """One way to make the film."""

    name: str
    what: str
    method: Method
    has_offsets: bool = True
    """Without them the head is what the head model alone can be."""
    detail: bool = True
    """Whether normal maps show strands, wrinkles and folds of clothes."""
    backend: Backend | None = None
    """What paints; None for what paints all."""


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
        has_offsets=False,
        detail=False,
    ),
)
PAINTED = (
    Variant("proxy", "the same head and performance, painted by the proxy alone", "learned", backend="proxy"),
    Variant("mini", "the same head and performance, painted by the small painter", "learned", backend="mini"),
)


def variants(*, ablation: bool, backend: Backend) -> tuple[Variant, ...]:
    """Ways to make a film: one, or all that there is something to compare with.

    Raises:
        WeightsError: the painter's are missing.
    """
    if not ablation:
        return (OWN,)
    painter = choose(GenerateConfig(backend=backend)).name
    has_nets = find_spec("diffusers") is not None
    return (*ABLATIONS, *(v for v in PAINTED if v.backend != painter and (has_nets or v.backend == "proxy")))


@dataclass(frozen=True)
class Made:
    """A film and what it took."""

    path: Path
    seconds: float
    """Of all stages that this film needs, tracking and fit included; of what an earlier run left, what it noted."""


class PairFilms:
    """Our films of one pair: the first is made as `generate` makes it, the others from its head and tracking."""

    def __init__(self, inputs: Inputs, path_of: Callable[[Variant], Path], *, absolute: bool, backend: Backend) -> None:
        """`absolute` asks for the driver's own pose and expression, not their change from its neutral frame."""
        self._inputs, self._path_of = inputs, path_of
        self._absolute: bool = absolute
        self._backend: Backend = backend
        self._first: film.Film | None = None

    def make(self, variant: Variant, announce: Stage) -> Made:
        """Make one, or find that it is there."""
        if self._first is None:
            first = self._job(OWN)
            self._first = film.generate(first, announce)
        seconds = self._first.summary["seconds"]
        if variant == OWN:
            return Made(self._first.path, seconds["whole run"])
        work = self._job(OWN).work
        job = replace(self._job(variant), reference=self._head(variant, work), driving=work / "driving.track.npz")
        made = film.generate(job, announce)
        return Made(made.path, made.summary["seconds"]["whole run"] + sum(seconds.get(name, 0.0) for name in SHARED))

    def _job(self, variant: Variant) -> Job:
        size = self._inputs.size
        return Job(
            reference=self._inputs.reference,
            driving=self._inputs.driving,
            out=self._path_of(variant),
            transfer=replace(PAPER if self._absolute else TransferConfig(), method=variant.method),
            # Pasted back, so that film and truth are the same square.
            generate=GenerateConfig(
                backend=variant.backend or self._backend,
                size=size,
                paste_back=True,
                audio="none",
                detail=variant.detail,
            ),
        )

    def _head(self, variant: Variant, work: Path) -> Path:
        head = work / "reference.head.npz"
        if variant.has_offsets:
            return head
        path = self._path_of(variant)
        return _without_offsets(head, path.with_name(f"{path.stem}.head.npz"))


def _without_offsets(head: Path, path: Path) -> Path:
    """The same identity and expression on the head model's own surface."""
    header = steps.made_by("fit", {"offsets": False}, {"head": content_hash(head)})
    if not steps.is_current(path, header):
        fit = npz.load(HeadFit, head)
        bare = {name: np.zeros_like(getattr(fit, name)) for name in ("static_offset", "frame_offset", "dynamic_offset")}
        npz.save(replace(fit, **bare), path, header)
    return path
