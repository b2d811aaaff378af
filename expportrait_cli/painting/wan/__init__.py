"""Wan video diffusion transformers as painters. `require_packages` checks the optional packages that they need."""

from importlib.util import find_spec

from expportrait_cli.errors import WeightsError

PACKAGES = ("accelerate", "diffusers", "peft", "transformers")
INSTALL = f"pip install {' '.join(PACKAGES)}"


def require_packages() -> None:
    """Check that the packages are installed, without importing them, which takes seconds.

    Raises:
        WeightsError: some of them are missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise WeightsError(f"Wan needs {', '.join(missing)}, not installed here. Run `{INSTALL}`.")
