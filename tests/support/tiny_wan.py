"""Random Wan models of toy size: the classes, layouts and folders of the real ones, in milliseconds."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from expportrait_cli.painting.wan.prompts import Prompts

TEXT_DIM, IMAGE_DIM = 32, 20
TEXT_TOKENS, IMAGE_TOKENS = 512, 257
"""As the real ones: image tokens are told from text by text being 512 long."""
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": TEXT_DIM,
    "freq_dim": 32,
    "ffn_dim": 48,
}
LATENT_MEAN = [0.1 * k - 0.7 for k in range(16)]
LATENT_DEVIATION = [0.5 + 0.1 * k for k in range(16)]


def tiny_transformer(
    seed: int = 0, *, in_channels: int = 16, layers: int = 2, head_dim: int = 12
) -> WanTransformer3DModel:
    """A text-to-video trunk of 16 channels, as Wan2.1-T2V-1.3B.

    A token is 64 numbers: one that is to be told from noise needs more channels than two heads of 12 have.
    """
    sizes = {**SIZES, "attention_head_dim": head_dim, "ffn_dim": 4 * head_dim}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return shaken(WanTransformer3DModel(**sizes, num_layers=layers, in_channels=in_channels, out_channels=16))


def tiny_i2v_transformer(seed: int = 0, *, layers: int = 2) -> WanTransformer3DModel:
    """An image-to-video trunk of 36 channels with image tokens, as Wan2.1-I2V-14B."""
    width = SIZES["num_attention_heads"] * SIZES["attention_head_dim"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WanTransformer3DModel(
            **SIZES, num_layers=layers, in_channels=36, out_channels=16, image_dim=IMAGE_DIM, added_kv_proj_dim=width
        )
        return shaken(model)


def tiny_vace(seed: int = 0, *, head_dim: int = 12) -> WanVACETransformer3DModel:
    """A trunk of three blocks with two of control, as Wan2.1-VACE-1.3B."""
    sizes = {**SIZES, "attention_head_dim": head_dim, "ffn_dim": 4 * head_dim}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = WanVACETransformer3DModel(
            **sizes, num_layers=3, in_channels=16, out_channels=16, vace_layers=[0, 2], vace_in_channels=96
        )
        return shaken(model)


def tiny_vae(seed: int = 0) -> AutoencoderKLWan:
    """8x in space, 4x in time, 16 channels that have to be normalised, as Wan2.1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoencoderKLWan(
            base_dim=4,
            z_dim=16,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=LATENT_MEAN,
            latents_std=LATENT_DEVIATION,
        )
        return model.eval().requires_grad_(False)


def tiny_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def prompt_embeds(seed: int = 0, tokens: int = 7) -> Tensor:
    """What a text encoder says of one prompt: [tokens, TEXT_DIM], without padding."""
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


def tiny_prompts() -> Prompts:
    """Two prompts, padded as the transformers read them."""
    padded = [nn.functional.pad(prompt_embeds(seed), (0, 0, 0, TEXT_TOKENS - 7))[None] for seed in (0, 1)]
    return Prompts(*padded)


def base_folder(folder: Path, transformer: nn.Module | None = None) -> Path:
    """Write a pipeline's folder as the real ones are, without a text encoder but with what it said."""
    model = tiny_transformer() if transformer is None else transformer
    model.save_pretrained(folder / "transformer")  # pyright: ignore[reportCallIssue]
    tiny_vae().save_pretrained(folder / "vae")
    tiny_scheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "transformer": ["diffusers", type(model).__name__],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    prompts = {"prompt_embeds": prompt_embeds(), "negative_prompt_embeds": prompt_embeds(1)}
    save_file(prompts, folder / "prompt_embeds.safetensors")
    return folder


def shaken(model: nn.Module) -> nn.Module:
    """Give every weight that starts at zero, or at one, a random part: else much of the model would be idle."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim <= 1:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def add_image_encoder(folder: Path, *, width: int = IMAGE_DIM) -> Path:
    """A toy CLIP with 257 tokens into a pipeline's folder, as Wan2.1-I2V-14B has one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = CLIPVisionConfig(
            hidden_size=width,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=32,
            patch_size=2,
            # Of the usual size the tokens of any two pictures would be the same.
            initializer_range=0.3,
        )
        model = CLIPVisionModel(config)
        shaken(model).save_pretrained(folder / "image_encoder")
    return folder


def tiny_decoder_file(path: Path, *, seed: int = 0) -> Path:
    """Random weights with the names and shapes of the published `taew2_1.safetensors`, whose encoder is not read."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.0.weight": (64, 3, 3, 3), "decoder.1.weight": (256, 16, 3, 3)}
    shapes |= {"decoder.7.conv.weight": (256, 256, 1, 1), "decoder.8.weight": (128, 256, 3, 3)}
    shapes |= {"decoder.13.conv.weight": (256, 128, 1, 1), "decoder.14.weight": (64, 128, 3, 3)}
    shapes |= {"decoder.19.conv.weight": (128, 64, 1, 1), "decoder.20.weight": (64, 64, 3, 3)}
    shapes |= {"decoder.22.weight": (3, 64, 3, 3), "decoder.1.bias": (256,), "decoder.22.bias": (3,)}
    for width, first in ((256, 3), (128, 9), (64, 15)):
        for block in range(first, first + 3):
            for layer, taken in ((0, 2 * width), (2, width), (4, width)):
                shapes[f"decoder.{block}.conv.{layer}.weight"] = (width, taken, 3, 3)
                shapes[f"decoder.{block}.conv.{layer}.bias"] = (width,)
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=random) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        for name, shape in shapes.items()
    }
    save_file({name: value.half() for name, value in tensors.items()}, path)
    return path


WORDS = ["<pad>", "</s>", "<unk>", "a", "person", "is", "talking", "in", "front", "of", "blurred", "static"]


def text_encoder(folder: Path) -> Path:
    """A toy umT5 with a tokenizer of a few words into a folder, as the real ones have it."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    words.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = UMT5Config(vocab_size=len(WORDS), d_model=TEXT_DIM, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder
