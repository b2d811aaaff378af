"""The only place that runs `track`, `fit` and `transfer`, and that knows their keys.

Films, benchmarks and data sets are made with it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import FitConfig, TrackConfig
from expportrait_cli.fitting import fit as run_fit
from expportrait_cli.head import HeadModel
from expportrait_cli.pipeline.cache import Keyed, cached, given, is_current, made_by
from expportrait_cli.pipeline.heads import tracking_head
from expportrait_cli.pipeline.performance import OffsetSource, edited_curves, write_meshes
from expportrait_cli.pipeline.provenance import network_of, networks_behind, warn_of_misfit
from expportrait_cli.progress import Stages
from expportrait_cli.tracking import track as run_track


def track_header(config: TrackConfig, head_model: str, source_hash: str) -> dict[str, Any]:
    """Header of a tracking: it depends on the head model as on every other setting."""
    return made_by("track", {**asdict(config), "head_model": head_model}, {"source": source_hash})


def fit_header(config: FitConfig, inputs: dict[str, str], known: Path | None = None) -> dict[str, Any]:
    """Header of a fitted head, with the networks that take part in it on this machine.

    With another network, or one where there was none, the head is another: their hashes are in the key. Identity and
    static offset of a `known` head go on in the new one, and so do the conditions of what that was made with.
    """
    networks = network_of(config)
    hashes = {row["name"]: row["sha256"] for row in networks}
    if known is not None:
        networks += [row for row in networks_behind(known) if row not in networks]
    return {**made_by("fit", asdict(config), {**inputs, **hashes}), "networks": networks}


@dataclass(frozen=True)
class Steps:
    """Tracking, fit and transfer with one head model. What is there and current is read, otherwise made and saved."""

    head: HeadModel
    stages: Stages

    def track(self, source: Path, path: Path, config: TrackConfig, *, title: str = "track") -> Keyed[Tracking]:
        """Track a photo or clip, with the plain model where the head's mesh is a finer one.

        Raises:
            InputError: no face, or nothing that can be read.
        """
        plain = tracking_head(self.head)
        header = track_header(config, plain.name, content_hash(source))
        made = cached(
            Tracking,
            path,
            header,
            lambda: self.stages.run(title, lambda progress: run_track(source, plain, config, progress)),
        )
        warn_of_misfit(source, made.artifact)
        # The same content may lie elsewhere than when it was tracked.
        return replace(made, artifact=replace(made.artifact, source=str(source.resolve())))

    def fit(
        self,
        trackings: Sequence[Keyed[Tracking]],
        path: Path,
        config: FitConfig,
        *,
        driver: Keyed[Tracking] | None = None,
        known: Path | None = None,
    ) -> Keyed[HeadFit]:
        """Fit the head to a tracking, or to several of one person; `known` is a head whose frames alone are fitted."""
        inputs = {f"track{index or ''}": tracking.key for index, tracking in enumerate(trackings)}
        inputs["driver"] = driver.key if driver is not None else ""
        head = given(HeadFit, known) if known is not None else None
        inputs["head"] = head.key if head is not None else ""
        made = cached(
            HeadFit,
            path,
            fit_header(config, inputs, known),
            lambda: self.stages.run(
                "fit the head",
                lambda progress: run_fit(
                    [tracking.artifact for tracking in trackings],
                    self.head,
                    config,
                    progress,
                    driver=driver.artifact if driver is not None else None,
                    known=head.artifact if head is not None else None,
                ),
            ),
        )
        return replace(made, artifact=replace(made.artifact, source=trackings[0].artifact.source))

    def transfer(
        self,
        head_fit: Keyed[HeadFit],
        tracking: Keyed[Tracking],
        path: Path,
        source: OffsetSource,
        *,
        head_path: Path,
        curves: Path | None = None,
    ) -> Keyed[Meshes]:
        """Put a performance onto a head, whose file is `head_path`; `curves` are read if edited, and else written."""
        edited = edited_curves(curves, path)
        inputs = {"head": head_fit.key, "driver": tracking.key, "curves": edited, **source.inputs()}
        header = made_by("transfer", asdict(source.config), inputs)
        if not is_current(path, header) or (curves is not None and not curves.is_file()):
            self.stages.run(
                "transfer",
                lambda progress: write_meshes(
                    path,
                    header,
                    head_fit.artifact,
                    tracking.artifact,
                    head=self.head,
                    head_hash=content_hash(head_path),
                    source=source,
                    curves=curves,
                    is_edited=bool(edited),
                    progress=progress,
                ),
            )
        return Keyed(Meshes.open(path), header["key"])
