"""The paper's generator: silent at first, the base's own weights kept, and its folder refused when it is not one."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_wan import IMAGE_DIM, IMAGE_TOKENS, prompt_embeds, tiny_i2v_transformer, tiny_transformer
from support.wan_tensors import film, original_name, random

from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.painting import wan
from expportrait_cli.painting.wan import require_packages
from expportrait_cli.painting.wan.encoders import PoseEncoder, ReferenceEncoder, latent_frames
from expportrait_cli.painting.wan.portrait import MASK, PATCH, WanPortrait, base_of, from_original, widened
from expportrait_cli.painting.wan.prompts import TOKENS

pytestmark = pytest.mark.slow


def padded_prompt(count: int = 1) -> torch.Tensor:
    text = prompt_embeds()
    return torch.cat([text, text.new_zeros(TOKENS - len(text), text.shape[1])]).expand(count, -1, -1)


@pytest.mark.parametrize(("frames", "latent"), [(1, 1), (5, 2), (9, 3), (81, 21)])
def test_normals_land_on_the_latent_grid(frames, latent):
    side = 16 if frames > 9 else 64
    assert latent_frames(frames) == latent
    found = PoseEncoder()(random(2, 3, frames, side, side))
    assert found.shape == (2, 16, latent, side // 8, side // 8)
    assert ReferenceEncoder()(random(2, 3, 32, 64)).shape == (2, 16, 4, 8)


def test_a_latent_frame_sees_the_frames_that_it_codes():
    """1, then 4 each; and those up to seven frames away."""
    encoder, normals = PoseEncoder().double(), random(1, 3, 29, 16, 16).double()
    before = encoder(normals)
    for frame in (0, 1, 4, 5, 13, 16, 28):
        changed = normals.clone()
        changed[:, :, frame] += 1
        seen = (encoder(changed) - before).abs().amax((0, 1, 3, 4)) > 0
        own = (frame + 3) // 4
        assert seen[own] and not seen[: max(own - 2, 0)].any() and not seen[own + 3 :].any()


@pytest.mark.parametrize("frames", [0, 2, 4, 80])
def test_other_counts_of_frames_are_refused(frames):
    with pytest.raises(InputError, match=rf"{frames} frames do not fit Wan.*1, 5, 9, \.\.\., 81"):
        PoseEncoder()(torch.zeros(1, 3, frames, 16, 16))


def test_other_sizes_are_refused():
    with pytest.raises(InputError, match=r"40x32 px do not fit Wan.*multiples of 16"):
        PoseEncoder()(torch.zeros(1, 3, 5, 32, 40))
    with pytest.raises(InputError, match="16x24 px"):
        ReferenceEncoder()(torch.zeros(1, 3, 24, 16))


def test_new_channels_change_nothing_at_first():
    base = tiny_transformer()
    wide = widened(base, 20)
    x, more, text, time = random(1, 16, 3, 4, 4), random(1, 20, 3, 4, 4, seed=5), padded_prompt(), torch.tensor([321.0])
    assert torch.equal(wide(torch.cat([x, more], 1), time, text).sample, base(x, time, text).sample)
    assert wide.config["in_channels"] == 36 and base.config["in_channels"] == 16
    assert wide.blocks[0].ffn.net[2].weight.data_ptr() == base.blocks[0].ffn.net[2].weight.data_ptr()


@pytest.mark.parametrize("has_hint", [False, True])
def test_a_fresh_generator_is_its_t2v_base(has_hint):
    base, given = tiny_transformer(), film(batch=2)
    portrait = WanPortrait.from_base(base, prompt_embeds(), has_hint=has_hint)
    assert portrait.transformer.config["in_channels"] == 36 + 16 * has_hint
    hint = random(*given["latents"].shape, seed=6) if has_hint else None
    found = portrait(**given, hint=hint)
    x = torch.cat([given["reference_latents"], given["latents"]], 2)
    assert torch.equal(found, base(x, given["timestep"], padded_prompt(2)).sample[:, :, 1:])


@pytest.mark.parametrize("with_image", [False, True])
def test_a_fresh_generator_is_its_i2v_base(with_image):
    base, given = tiny_i2v_transformer(), film(batch=2)
    portrait = WanPortrait.from_base(base, prompt_embeds())
    assert portrait.transformer.config["in_channels"] == 52
    portrait.blank.copy_(random(16, seed=7))
    image = random(2, IMAGE_TOKENS, IMAGE_DIM, seed=8) if with_image else None
    found = portrait(**given, image_embeds=image)
    photo, noisy = given["reference_latents"], given["latents"]
    mask, blank = torch.ones(2, MASK, 1, 4, 4), portrait.blank[:, None, None, None].expand(2, -1, 2, 4, 4)
    x = torch.cat(
        [torch.cat([photo, mask, photo], 1), torch.cat([noisy, mask.expand(-1, -1, 2, -1, -1) * 0, blank], 1)], 2
    )
    assert torch.equal(found, base(x, given["timestep"], padded_prompt(2), image).sample[:, :, 1:])


@pytest.mark.parametrize("base", [tiny_transformer(), tiny_i2v_transformer()], ids=["t2v", "i2v"])
def test_every_new_part_learns(base):
    """At once the new channels, or the encoder that feeds known ones; after one step everything."""
    given = film()
    portrait = WanPortrait.from_base(base, prompt_embeds())
    optimizer = torch.optim.SGD(portrait.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        portrait(**given).square().mean().backward()
        grads = {name: p.grad.abs().max() for name, p in portrait.named_parameters() if p.grad is not None}
        known = base.config["in_channels"]
        assert portrait.transformer.patch_embedding.weight.grad[:, known:].abs().amax((0, 2, 3, 4)).min() > 0 or step
        optimizer.step()
    silent = {name for name, _ in portrait.named_parameters()} - {name for name, grad in grads.items() if grad > 0}
    # Without image tokens nothing can be learned about them.
    assert not {name for name in silent if "image_embedder" not in name and "added" not in name and "add_" not in name}


def test_with_image_tokens_and_a_hint_every_part_learns():
    given = film()
    given["image_embeds"] = random(1, IMAGE_TOKENS, IMAGE_DIM, seed=8)
    given["hint"] = random(*given["latents"].shape, seed=6)
    portrait = WanPortrait.from_base(tiny_i2v_transformer(), prompt_embeds(), has_hint=True)
    assert portrait.transformer.config["in_channels"] == 68
    optimizer = torch.optim.SGD(portrait.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        portrait(**given).square().mean().backward()
        optimizer.step()
    grads = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in portrait.named_parameters()}
    assert not [name for name, grad in grads.items() if grad == 0]


def test_what_is_dropped_has_no_say():
    portrait, given = WanPortrait.from_base(tiny_transformer(), prompt_embeds()), film(batch=2)
    with torch.no_grad():
        portrait.transformer.patch_embedding.weight[:, 16:] = 0.1 * random(24, 20, 1, 2, 2, seed=9)
        other = {**given, "normals": -given["normals"], "reference_normals": -given["reference_normals"]}
        whole, changed = portrait(**given), portrait(**other)
        assert (whole - changed).abs().amax((1, 2, 3, 4)).min() > 1e-4
        drop = torch.tensor([True, False])
        first, second = portrait(**given, drop_control=drop), portrait(**other, drop_control=drop)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], whole[1]) and not torch.equal(first, second)
        other = {**given, "reference_latents": -given["reference_latents"]}
        first, second = portrait(**given, drop_reference=drop), portrait(**other, drop_reference=drop)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], whole[1]) and not torch.equal(first, second)


def test_steps_share_what_is_encoded_once():
    portrait, given = WanPortrait.from_base(tiny_transformer(), prompt_embeds()), film()
    pose, reference = portrait.encode(given["normals"], given["reference_normals"][:, :, None])
    found = portrait.denoise(given["latents"], given["timestep"], pose, reference, given["reference_latents"])
    assert torch.equal(found, portrait(**given))
    portrait.transformer.enable_gradient_checkpointing()
    assert torch.equal(found, portrait(**given))


def test_a_window_is_encoded_with_what_is_around_it():
    """As in the whole film: the encoder looks three latent frames back and ahead."""
    portrait, whole = WanPortrait.from_base(tiny_transformer(), prompt_embeds()), film(frames=57, side=16)
    with torch.no_grad():
        portrait.transformer.patch_embedding.weight[:, 16:] = 0.1 * random(24, 20, 1, 2, 2, seed=9)
        pose, still = portrait.encode(whole["normals"], whole["reference_normals"])
        latents, photo, time = whole["latents"][:, :, 6:9], whole["reference_latents"], whole["timestep"]
        wanted = portrait.denoise(latents, time, pose[:, :, 6:9], still, photo)
        around = whole["normals"][:, :, 12:45]
        found = portrait(latents, time, around, photo, whole["reference_normals"], lead=3)
        alone = portrait(latents, time, whole["normals"][:, :, 24:33], photo, whole["reference_normals"])
    # Sums of convolutions over other lengths differ in the last bits.
    assert torch.allclose(found, wanted, atol=1e-6) and not torch.allclose(alone, wanted, atol=1e-6)


def test_a_hint_is_given_to_those_who_take_one():
    given = film()
    with pytest.raises(InputError, match=r"takes no proxy film.*one was given"):
        WanPortrait.from_base(tiny_transformer(), prompt_embeds())(**given, hint=given["latents"])
    with pytest.raises(InputError, match=r"takes a proxy film.*none was given"):
        WanPortrait.from_base(tiny_transformer(), prompt_embeds(), has_hint=True)(**given)


def test_other_bases_are_refused():
    with pytest.raises(WeightsError, match=r"has 48 input and 16 output channels; expected Wan 2\.1 T2V"):
        base_of(tiny_transformer(in_channels=48))
    with pytest.raises(WeightsError, match="another text encoder's"):
        WanPortrait.from_base(tiny_transformer(), torch.zeros(3, 8))


def test_missing_packages_are_named(monkeypatch):
    require_packages()
    monkeypatch.setattr(wan, "find_spec", lambda name: None if name in ("peft", "diffusers") else object())
    with pytest.raises(WeightsError, match=r"needs diffusers, peft.*pip install accelerate diffusers peft"):
        require_packages()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize(
    "model",
    [tiny_transformer(), tiny_transformer(in_channels=48, layers=3), tiny_i2v_transformer()],
    ids=["t2v", "48 channels", "i2v"],
)
def test_files_in_wans_own_format_are_read(model, prefix, tmp_path):
    path = tmp_path / "wan.safetensors"
    tensors = {prefix + original_name(name): value.contiguous() for name, value in model.state_dict().items()}
    assert prefix + "blocks.0.self_attn.q.weight" in tensors and prefix + "head.modulation" in tensors
    save_file(tensors, path)
    found = from_original(path, head_dim=12)
    assert {**found.config, "_use_default_values": None} == {**model.config, "_use_default_values": None}
    assert found.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())
    x = random(1, model.config["in_channels"], 2, 4, 4)
    one, two = (m(x, torch.tensor([9.0]), padded_prompt()).sample for m in (found, model))
    # Weights that lie elsewhere in memory may be summed in another order.
    assert torch.allclose(one, two, atol=1e-5)


def test_other_files_are_no_original(tmp_path):
    path = tmp_path / "wan.safetensors"
    path.write_bytes(b"no tensors at all")
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        from_original(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match=f"holds no Wan transformer that this tool knows: '{PATCH}'"):
        from_original(path)
    save_file({"vace_blocks.0.before_proj.weight": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="a Wan of another kind"):
        from_original(path)
    assert load_file(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoders_hear_their_normals_in_full(dtype):
    """From the first step on, features vary as their normals do, and are not rounded to a few values."""
    torch.manual_seed(0)
    portrait = WanPortrait.from_base(tiny_transformer(), prompt_embeds())
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 5, 64, 64)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is torch.bfloat16), torch.no_grad():
        pose, still = portrait.encode(ramp, ramp[:, :, 0])
    for features in (pose, still):
        assert features.dtype == torch.float32
        inside = features[..., 2:-2, 2:-2]
        assert float(inside.std() / inside.mean().abs()) > 0.3
        # Seven layers of torch's own initialisation leave 3e-4.
        assert 0.05 < float(inside.std()) < 5
