"""Make the person in a photo perform a driving clip, through a personalised 3D head.

The commands as functions, from paths to a path; each result is read or edited through `load` and `save`:

    from expportrait_cli import fit, generate, track
    track("photo.png", "photo.track.npz")
    head = fit(["photo.track.npz"], "photo.head.npz")
    generate("photo.head.npz", "clip.mp4", "film.mp4")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from expportrait_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from expportrait_cli.pipeline.commands import evaluate as evaluate
    from expportrait_cli.pipeline.commands import fit as fit
    from expportrait_cli.pipeline.commands import generate as generate
    from expportrait_cli.pipeline.commands import load as load
    from expportrait_cli.pipeline.commands import render_normals as render_normals
    from expportrait_cli.pipeline.commands import save as save
    from expportrait_cli.pipeline.commands import track as track
    from expportrait_cli.pipeline.commands import transfer as transfer

__all__ = ["evaluate", "fit", "generate", "load", "render_normals", "save", "track", "transfer"]


def __getattr__(name: str) -> Any:
    # Imported only now, because the functions load torch, which would delay the help of the command line.
    if name in __all__:
        return getattr(import_module("expportrait_cli.pipeline.commands"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
