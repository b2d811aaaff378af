"""`expportrait doctor`: what this machine has, what the tool chose because of it, and what is missing."""

import typer

from expportrait_cli.cli import options
from expportrait_cli.errors import WeightsError


def doctor(*, as_json: options.Json = False, quiet: options.Quiet = False, log_level: options.LogLevel = None) -> None:
    """Say what is installed, which parts were chosen and why; exit code 4 when something needed is missing."""
    import json

    from expportrait_cli.pipeline import doctor

    checks = doctor.examine()
    if as_json:
        typer.echo(json.dumps([check.row() for check in checks], indent=2))
    else:
        for check in checks:
            typer.echo(f"{'ok' if check.ok else 'MISSING':<8} {check.name:<22} {check.found}")
    bad = [check.name for check in checks if not check.ok]
    if bad:
        raise WeightsError(
            f"Missing or wrong: {', '.join(bad)}. Install the tool again, or see `expportrait weights list`."
        )
