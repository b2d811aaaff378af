"""Inputs of tiny Wan transformers, and names of the original files."""

import torch

from expportrait_cli.painting.wan.encoders import latent_frames


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def film(frames: int = 5, side: int = 32, batch: int = 1) -> dict[str, torch.Tensor]:
    """Arguments of a generator."""
    at, small = latent_frames(frames), side // 8
    return {
        "latents": random(batch, 16, at, small, small, seed=1),
        "timestep": torch.full((batch,), 600.0),
        "normals": random(batch, 3, frames, side, side, seed=2).clamp(-1, 1),
        "reference_latents": random(batch, 16, 1, small, small, seed=3),
        "reference_normals": random(batch, 3, side, side, seed=4).clamp(-1, 1),
    }


RENAMED = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    ("condition_embedder.image_embedder.norm1", "img_emb.proj.0"),
    ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
    ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
    ("condition_embedder.image_embedder.norm2", "img_emb.proj.4"),
    (".norm2.", ".norm3."),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_out.0.", ".o."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".norm_added_k.", ".norm_k_img."),
    (".add_k_proj.", ".k_img."),
    (".add_v_proj.", ".v_img."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    ("proj_out.", "head.head."),
)
"""Names in diffusers, and in Wan's own files as they are published."""


def original_name(name: str) -> str:
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    if name.endswith("scale_shift_table"):
        return name.replace("scale_shift_table", "modulation" if "blocks" in name else "head.modulation")
    return name
