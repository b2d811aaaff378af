"""The painter that a film is asked for."""

from expportrait_cli.config import GenerateConfig
from expportrait_cli.generate.painter import Painter, ProxyPainter


def painter_of(config: GenerateConfig) -> Painter:
    """Load the painter of `config.backend`; `auto` is the best that is there.

    Raises:
        WeightsError: its weights are missing, or are no weights of it.
    """
    return ProxyPainter()
