"""Prompts, embedded by Wan's text encoder: a command embeds and stores them, films read the stored embeddings."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.errors import WeightsError, one_line
from expportrait_cli.painting.wan import manifest as facts
from expportrait_cli.runtime import best_device
from expportrait_cli.weights.catalogue import folders

PROMPT_TEXT = (
    "A portrait video of a person who is talking, with natural facial expressions, in front of a still camera."
)
"""Default prompt; the content of the film follows from photo, proxy and normals."""
NEGATIVE_TEXT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)
"""Default negative prompt: Wan's own, in the English translation of diffusers' examples."""
TOKENS = 512
"""Tokens of a prompt, to which Wan pads it with zeros."""
TOKENIZER, TEXT_ENCODER = "tokenizer", "text_encoder"
ENCODER = "wan-text-encoder"
"""Name of the text encoder in the catalogue, and of its folder."""
EMBEDS = "prompt_embeds"
HOW = f"Run `expportrait weights fetch {ENCODER}` and `expportrait weights embed-prompt` once"


@dataclass(frozen=True, eq=False)
class Prompts:
    """Embedded prompts of a film."""

    positive: Float[Tensor, "1 512 D"]
    negative: Float[Tensor, "1 512 D"] | None = None
    """Negative prompt of classifier-free guidance; None without guidance."""

    def against(self) -> Float[Tensor, "1 512 D"]:
        """Return the negative prompt; only for films with guidance."""
        assert self.negative is not None
        return self.negative


def read_prompts(folder: Path, width: int, *, prompt: str, negative: str, guided: bool) -> Prompts:
    """Find the embedded prompts of a film, for a transformer that takes `width` numbers a token.

    An empty text means the embedding in the folder, if it has one, and otherwise `PROMPT_TEXT` or `NEGATIVE_TEXT`.

    Raises:
        WeightsError: a text has not been embedded, or by another text encoder.
    """
    own = folder / facts.PROMPT
    kept = facts.read_tensors(own) if own.is_file() else {}

    def find(name: str, text: str, usual: str) -> Tensor:
        if name in kept and not text:
            return padded(_checked(kept[name], own, width))
        return padded(embedded(text or usual, width))

    positive = find(EMBEDS, prompt, PROMPT_TEXT)
    return Prompts(positive, find(f"negative_{EMBEDS}", negative, NEGATIVE_TEXT) if guided else None)


def embedded(text: str, width: int = 0) -> Float[Tensor, "L D"]:
    """Read the stored embedding of a text, for a transformer that takes `width` numbers a token (0: any).

    Raises:
        WeightsError: the text has not been embedded, or by another encoder.
    """
    path = next((found for root in folders() if (found := root / _name(text)).is_file()), None)
    if path is None:
        given = "" if text in (PROMPT_TEXT, NEGATIVE_TEXT) else f' "{text}"'
        words = f"{text[:40]}..." if len(text) > 40 else text
        raise WeightsError(f"The prompt '{words}' has not been embedded. {HOW.replace('` once', f'{given}` once')}.")
    return _read(path, width)


def embed(text: str, encoder: Path) -> Path:
    """Embed a text with the encoder in a folder, and store the embedding; returns its file (16 kB a token).

    Raises:
        WeightsError: there is no encoder in the folder, or the installed transformers reads it wrongly.
    """
    path = folders()[-1] / _name(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    embeds = encoded(encoder, text)
    with atomic_path(path) as partial:
        save_file({EMBEDS: embeds}, partial, {"prompt": text})
    return path


def has_encoder(folder: Path) -> bool:
    """True if a folder has Wan's text encoder and tokenizer, in diffusers' format."""
    return all((folder / part).is_dir() for part in (TOKENIZER, TEXT_ENCODER))


def encoded(folder: Path, text: str) -> Float[Tensor, "L D"]:
    """Embed a text with the encoder in a folder, without padding; takes 11.4 GB of memory meanwhile.

    Raises:
        WeightsError: as `embed`.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils import logging

    # transformers' progress bars would disturb the tool's.
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), local_files_only=True)
        encoder = UMT5EncoderModel.from_pretrained(
            str(folder / TEXT_ENCODER), dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(f"{folder} holds no umT5 text encoder in safetensors files: {one_line(error)}") from error
    _check(encoder)
    device = best_device()
    nn.Module.to(encoder, device)
    # As in Wan: the text is encoded with padding, which is cut off afterwards.
    words = " ".join(text.split())
    tokens = tokenizer([words], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    mask = tokens["attention_mask"].to(device)
    with torch.inference_mode():
        states = encoder(tokens["input_ids"].to(device), attention_mask=mask).last_hidden_state[0]
    return states[: int(mask.sum())].float().cpu().clone()


def _check(encoder: nn.Module) -> None:
    """Refuse an encoder whose token embeddings were not loaded, as by transformers 5.0 to 5.2 (their issue 43992)."""
    weights = encoder.get_parameter("shared.weight"), encoder.get_parameter("encoder.embed_tokens.weight")
    if not torch.equal(*weights) or not bool(weights[1].any()):
        import transformers

        raise WeightsError(
            f"transformers {transformers.__version__} reads the text encoder wrongly: its embeddings are not those of "
            "the file. Run `pip install -U transformers`."
        )


def _name(text: str) -> str:
    words = " ".join(text.split())
    return f"prompts/{hashlib.sha256(words.encode()).hexdigest()[:16]}.safetensors"


def _read(path: Path, width: int) -> Float[Tensor, "L D"]:
    return _checked(facts.read_tensors(path).get(EMBEDS), path, width)


def _checked(embeds: Tensor | None, path: Path, width: int) -> Float[Tensor, "L D"]:
    if embeds is None or embeds.ndim != 2 or len(embeds) > TOKENS or (width and embeds.shape[1] != width):
        found = "none" if embeds is None else "x".join(map(str, embeds.shape))
        raise WeightsError(
            f"{path} has prompt_embeds of {found}, expected at most {TOKENS}x{width or 'any'}: it is another text "
            "encoder's. Remove it, and make it again with `expportrait weights embed-prompt`."
        )
    return embeds.float()


def padded(embeds: Float[Tensor, "L D"]) -> Float[Tensor, "1 512 D"]:
    """Pad an embedded prompt with zeros to `TOKENS` tokens."""
    return nn.functional.pad(embeds, (0, 0, 0, TOKENS - len(embeds)))[None]
