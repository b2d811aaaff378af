"""Wan video transformers as painters. The packages that they need are asked for here, before any is imported."""

from importlib.util import find_spec

from expportrait_cli.errors import WeightsError

PACKAGES = ("accelerate", "diffusers", "peft", "transformers")
INSTALL = f"pip install {' '.join(PACKAGES)}"


def require_packages() -> None:
    """Look for the packages without importing them, which takes seconds.

    Raises:
        WeightsError: some are missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise WeightsError(f"Wan needs {', '.join(missing)}, not installed here. Run `{INSTALL}`.")
