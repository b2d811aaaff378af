"""What a text encoder said of the one prompt, from a file: the encoder itself is five times the transformer's size."""

import logging
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.generate.wan.manifest import PROMPT, read_tensors

log = logging.getLogger(__name__)

TOKENS = 512
"""Wan pads with zeros to that length."""


def read_prompt(folder: Path, width: int) -> Float[Tensor, "1 512 D"]:
    """Prompt of a folder, for a transformer that reads `width` numbers a token.

    Without the file it is padding alone, which is most of any prompt that Wan was trained with; with a warning.

    Raises:
        WeightsError: it is another text encoder's.
    """
    path = folder / PROMPT
    if not path.is_file():
        log.warning(
            "%s is missing: Wan paints without a prompt. weights/make_prompt_embeds.py makes the file once.", path
        )
        return torch.zeros(1, TOKENS, width)
    embeds = read_tensors(path).get("prompt_embeds")
    if embeds is None or embeds.ndim != 2 or embeds.shape[1] != width or len(embeds) > TOKENS:
        found = "none" if embeds is None else "x".join(map(str, embeds.shape))
        raise WeightsError(
            f"{path} has prompt_embeds of {found}, expected at most {TOKENS}x{width}: it is another text encoder's. "
            "Make it again with weights/make_prompt_embeds.py."
        )
    return torch.nn.functional.pad(embeds.float(), (0, 0, 0, TOKENS - len(embeds)))[None]
