"""Write what Wan's text encoder says of the one prompt: `prompt_embeds.safetensors`, a third of a megabyte.

    python weights/make_prompt_embeds.py WAN_FOLDER... --encoder REPOSITORY

WAN_FOLDER is where the file goes: a folder of `expportrait weights fetch`, or one that `train generator` starts from.
REPOSITORY is a folder with `text_encoder/` and `tokenizer/` as diffusers keeps them, e.g. what
`hf download Wan-AI/Wan2.1-T2V-1.3B-Diffusers --include "text_encoder/*" "tokenizer/*" --local-dir DIR` leaves. The
encoder takes 11.4 GB in bfloat16 and runs once, on a GPU or on the CPU; painting never needs it.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, UMT5EncoderModel

PROMPT = "A person is talking to the camera. Portrait, natural skin, sharp eyes and teeth, steady light."
FILE = "prompt_embeds.safetensors"
TOKENS = 512


@torch.inference_mode()
def embed(tokenizer, encoder, prompt: str) -> torch.Tensor:
    """[tokens, width], without the padding: as Wan's pipelines, which fill up to 512 tokens with zeros."""
    words = " ".join(prompt.split())
    # The encoder is asked with the padding: without it, its attention rounds differently.
    read = tokenizer(
        [words],
        padding="max_length",
        max_length=TOKENS,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = read.attention_mask
    said = encoder(read.input_ids.to(encoder.device), mask.to(encoder.device)).last_hidden_state[0]
    return said[: int(mask.sum())].float().cpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="WAN_FOLDER")
    parser.add_argument("--encoder", required=True, type=Path, metavar="REPOSITORY")
    parser.add_argument("--prompt", default=PROMPT)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(str(arguments.encoder / "tokenizer"), local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(
        str(arguments.encoder / "text_encoder"), dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
    )
    embeds = embed(tokenizer, encoder.to(device).eval(), arguments.prompt)
    for folder in arguments.folders:
        save_file({"prompt_embeds": embeds}, folder / FILE, {"prompt": arguments.prompt})
        print(folder / FILE, tuple(embeds.shape))


if __name__ == "__main__":
    main()
