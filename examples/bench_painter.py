"""Measure the windows around a Wan transformer against a bare loop over the same models in diffusers.

python examples/bench_painter.py [FRAMES [SIDE]]

Random weights of middle size; each run is a process of its own, so that its peak of memory is its own. Time is that of
the processor: what else the machine does does not count. The bare loop encodes, samples and decodes the whole film at
once, or window by window where there are several, and knows neither seams nor beginnings in the middle.
"""

import json
import resource
import subprocess
import sys
from itertools import pairwise
from time import process_time

import numpy as np

WINDOW, OVERLAP, STEPS = 21, 5, 8
REPEATS = 3
STRENGTH = 0.99


def models():
    """Make a transformer of 45 M parameters and an autoencoder a sixth as wide as Wan's."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    torch.manual_seed(0)
    trunk = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=64, ffn_dim=2048, num_layers=8, text_dim=64, freq_dim=64
    )
    return trunk.eval(), AutoencoderKLWan(base_dim=16).eval()


def film(frames: int, side: int) -> np.ndarray:
    """Frames of noise, RGB."""
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def sigmas() -> list[float]:
    """Noise levels of both loops, so that both do the same work."""
    from expportrait_cli.painting.wan.film import sigmas_of

    return sigmas_of(STEPS, shift=3.0, strength=STRENGTH)


def bare(frames: int, side: int) -> np.ndarray:
    """Encode, sample and decode, as a script around diffusers would."""
    import torch

    trunk, vae = models()
    prompt = torch.zeros(1, 512, 64)
    mean, deviation = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    pictures = film(frames, side)
    painted = []
    step = 4 * (WINDOW - OVERLAP)
    for begin in range(0, max(1, frames - 4 * OVERLAP), step):
        part = torch.from_numpy(pictures[begin : begin + 4 * (WINDOW - 1) + 1])
        pixels = part.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        latents = (vae.encode(pixels).latent_dist.mode() - mean) / deviation
        levels = sigmas()
        state = torch.lerp(latents, torch.randn_like(latents), levels[0])
        for sigma, following in pairwise(levels):
            time = torch.full((1,), 1000 * sigma)
            velocity = trunk(state, time, prompt, return_dict=False)[0]
            state = state + (following - sigma) * velocity
        frames_out = vae.decode(state * deviation + mean).sample
        painted.append(((frames_out[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy())
    return np.concatenate(painted)


def ours(frames: int, side: int) -> np.ndarray:
    """Encode, sample and decode by the painter's windows."""
    import torch

    from expportrait_cli.painting.scene import Sketch
    from expportrait_cli.painting.wan.film import Sampling, paint_windows
    from expportrait_cli.painting.wan.vace import FinishModel
    from expportrait_cli.painting.wan.vae import Vae

    trunk, autoencoder = models()
    vae = Vae(autoencoder)
    pictures = film(frames, side)
    guess = np.zeros((side, side), np.float32)

    def draw():
        raise NotImplementedError("nothing asks for the head")

    def sketches(start: int):
        return (Sketch(picture, guess, draw) for picture in pictures[start:])

    model = FinishModel(trunk, vae, torch.zeros(1, 512, 64))
    sampling = Sampling(sigmas(), length=WINDOW, overlap=OVERLAP)
    return np.stack(list(paint_windows(model, vae, sketches, sampling, start=0, count=frames)))


def measure(name: str, frames: int, side: int) -> dict[str, float]:
    """Run one of the two in a process of its own."""
    command = [sys.executable, __file__, name, str(frames), str(side)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(name: str, frames: int, side: int) -> None:
    """Paint, and print seconds and peak memory."""
    import torch

    import expportrait_cli.painting.wan.film  # noqa: F401 - imported by both, so that only the painting differs

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    since = process_time()
    with torch.inference_mode():
        painted = (bare if name == "bare" else ours)(frames, side)
    seconds = process_time() - since
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_mb": peak / 1024, "own_mb": (peak - before) / 1024, "n": len(painted)}))


def main() -> None:
    """Print both and their ratios."""
    if len(sys.argv) == 4 and sys.argv[1] in ("bare", "ours"):
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 81
    side = int(sys.argv[2]) if len(sys.argv) > 2 else 128
    # In turn, and the least of each: what else the machine does only ever adds.
    runs = [{name: measure(name, frames, side) for name in ("bare", "ours")} for _ in range(REPEATS)]
    rows = {name: {key: min(run[name][key] for run in runs) for key in runs[0][name]} for name in runs[0]}
    for name, row in rows.items():
        print(f"{name:<6} {row['seconds']:7.1f} s of the processor {row['peak_mb']:8.0f} MB at most")
    for what, key in (("time", "seconds"), ("peak memory", "peak_mb")):
        print(f"{what}: {rows['ours'][key] / rows['bare'][key]:.3f} of the bare loop's")


if __name__ == "__main__":
    main()
