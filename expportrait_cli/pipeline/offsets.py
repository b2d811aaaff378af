"""Where a performance's dynamic offsets come from: the transfer network's file, or the driver's own fit."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import TransferConfig
from expportrait_cli.errors import InputError, UsageError, WeightsError
from expportrait_cli.head import HeadModel
from expportrait_cli.head.finer import finer
from expportrait_cli.media.files import check_file, content_hash
from expportrait_cli.pipeline.heads import kind_of_head, tracking_head
from expportrait_cli.transfer.trained import load_network
from expportrait_cli.weights.catalogue import weights_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OffsetSource:
    """The method that is used, and the file that it needs."""

    config: TransferConfig
    network: Path | None = None
    driver: Path | None = None

    @classmethod
    def of(cls, config: TransferConfig, head_name: str, driver: Path | None = None) -> "OffsetSource":
        """Find the file. A head model without a network takes the driver's landmarks instead, and says so.

        Raises:
            InputError, WeightsError: a file that was named is missing or no such file.
            UsageError: a file was named for another method than the chosen one.
        """
        if config.network and config.method != "learned":
            raise UsageError(f"--network {config.network} serves --method learned, not {config.method}.")
        if driver is not None and config.method != "direct":
            raise UsageError(f"--driver-head {driver} serves --method direct, not {config.method}.")
        if config.method != "learned":
            return cls(config, driver=driver)
        if config.network:
            check_file(Path(config.network))
            return cls(config, Path(config.network))
        try:
            return cls(config, weights_file(f"transfer_{kind_of_head(head_name)}.safetensors"))
        except WeightsError:
            log.warning(
                "There is no transfer network for the head model '%s': the driver's own landmarks move the face beyond "
                "its expressions (--method direct). Train one with `expportrait train transfer`.",
                head_name,
            )
            return cls(replace(config, method="direct"))

    def inputs(self) -> dict[str, str]:
        """Hashes of the files, for the key of what is made with them."""
        files = {"network": self.network, "driver_head": self.driver}
        return {name: content_hash(path) for name, path in files.items() if path is not None}

    def load(self, head: HeadModel, frames: int) -> dict[str, Any]:
        """Arguments of `transfer`: network, driver's fit and finer mesh, as far as the method and the head take them.

        `frames` is the driver's count.

        Raises:
            InputError: the driver's fit does not go with the driver, or with the head.
            WeightsError: the network does not go with the head.
        """
        plain = tracking_head(head)
        given: dict[str, Any] = {"mesh": finer(plain) if plain is not head else None}
        if self.network is not None:
            given["trained"] = load_network(self.network, plain)
        if self.driver is not None:
            given["driver"] = fit = npz.load(HeadFit, self.driver)
            if fit.head_model != head.name or len(fit.dynamic_offset) != frames:
                raise InputError(
                    f"{self.driver} holds offsets of {len(fit.dynamic_offset)} frames on the head model "
                    f"'{fit.head_model}', expected {frames} on '{head.name}'. Fit the driver's own tracking, with the "
                    "--quality of the person's head."
                )
        return given
