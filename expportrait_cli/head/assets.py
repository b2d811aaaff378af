"""Find the weights that come with the tool."""

import os
from importlib import resources
from pathlib import Path

from expportrait_cli.errors import WeightsError

CHECKOUT = Path(__file__).parents[2] / "weights"


def weights_file(name: str) -> Path:
    """Path of a file of the project's weights: the folder `EXPPORTRAIT_WEIGHTS`, the wheel, then the checkout.

    Raises:
        WeightsError: none of them has it.
    """
    chosen = os.environ.get("EXPPORTRAIT_WEIGHTS")
    folders = [Path(chosen)] if chosen else []
    folders += [Path(str(resources.files("expportrait_cli") / "_weights")), CHECKOUT]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    places = ", ".join(str(folder) for folder in folders)
    raise WeightsError(f"{name} is missing: looked in {places}. Run `expportrait weights verify`, or reinstall the tool.")
