"""Measure what wan-vace costs beside a bare loop over the same models in diffusers.

python examples/bench_painter.py [FRAMES [SIDE [PAIRS]]]

Random weights of middle size. Both paint in turn, many times in one process, and the median of the pairs' ratios
counts: what else the machine does disturbs single pairs. What is compared is the time of the thread that runs the
transformer, on one core: control, masks and seams belong to other threads. The bare loop encodes the same films,
samples and decodes, window by window, and knows neither masks, seams nor beginnings in the middle. Peak memory is that
of a process each.
"""

import resource
import subprocess
import sys
from itertools import pairwise
from time import process_time, thread_time

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

from expportrait_cli.painting.scene import Sketch, Still
from expportrait_cli.painting.wan.film import Sampling, paint_windows, sigmas_of
from expportrait_cli.painting.wan.prompts import Prompts
from expportrait_cli.painting.wan.vace import VaceModel
from expportrait_cli.painting.wan.vae import Vae

WINDOW, OVERLAP = 21, 5
SIGMAS = sigmas_of(8, shift=3.0, strength=0.99)


def models():
    """Make a transformer of 61 M parameters and an autoencoder a sixth as wide as Wan's."""
    torch.manual_seed(0)
    sizes = {"num_attention_heads": 8, "attention_head_dim": 64, "ffn_dim": 2048, "text_dim": 64, "freq_dim": 64}
    trunk = WanVACETransformer3DModel(
        **sizes, num_layers=8, in_channels=16, out_channels=16, vace_layers=[0, 2, 4, 6], vace_in_channels=96
    )
    return trunk.eval(), AutoencoderKLWan(base_dim=16).eval()


def film(frames: int, side: int) -> np.ndarray:
    """Frames of noise, RGB."""
    return np.random.default_rng(0).integers(0, 256, (frames, side, side, 3), dtype=np.uint8)


def bare(trunk, vae, frames: int, side: int) -> int:
    """Encode, sample and decode, as a script around diffusers would; the number of frames."""
    prompt, scale = torch.zeros(1, 512, 64), torch.ones(4)
    mean, deviation = (torch.tensor(vae.config[f"latents_{name}"]).view(1, -1, 1, 1, 1) for name in ("mean", "std"))
    pictures = film(frames, side)

    def encoded(pixels: torch.Tensor) -> torch.Tensor:
        return (vae.encode(pixels).latent_dist.mode() - mean) / deviation

    painted = 0
    front = encoded(torch.from_numpy(pictures[0]).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1)
    for begin in range(0, max(1, frames - 4 * OVERLAP), 4 * (WINDOW - OVERLAP)):
        part = torch.from_numpy(pictures[begin : begin + 4 * (WINDOW - 1) + 1])
        pixels = part.permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        kept, guide, known = encoded(pixels.repeat(3, 1, 1, 1, 1)).split(1)
        masks = torch.ones(1, 64, *kept.shape[2:])
        blank = torch.zeros(1, 80, *front.shape[2:])
        told = torch.cat([torch.cat([front, blank], 1), torch.cat([kept, guide, masks], 1)], 2)
        known = torch.cat([front, known], 2)
        state = torch.lerp(known, torch.randn_like(known), SIGMAS[0])
        for sigma, following in pairwise(SIGMAS):
            time = torch.full((1,), 1000 * sigma)
            velocity = trunk(
                state, time, prompt, control_hidden_states=told, control_hidden_states_scale=scale, return_dict=False
            )[0]
            state = state + (following - sigma) * velocity
        frames_out = vae.decode(state[:, :, 1:] * deviation + mean).sample
        painted += len(((frames_out[0] + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy())
    return painted


def ours(trunk, autoencoder, frames: int, side: int) -> int:
    """Encode, sample and decode by the painter's windows, with masks that move; the number of frames."""
    vae, prompt = Vae(autoencoder), torch.zeros(1, 512, 64)
    pictures = film(frames, side)
    still = Still(pictures[0], np.zeros((side, side, 3), np.float32))

    def draw():
        raise NotImplementedError("nothing asks for the head")

    def sketches(start: int):
        for index in range(start, frames):
            guess = np.zeros((side, side), np.float32)
            guess[: side // 3, index % side // 2 :][:, : side // 3] = 1
            yield Sketch(pictures[index], guess, draw)

    model = VaceModel(trunk, vae, Prompts(prompt, prompt), still)
    sampling = Sampling(SIGMAS, length=WINDOW, overlap=OVERLAP)
    return sum(1 for _ in paint_windows(model, vae, sketches, sampling, start=0, count=frames))


def seconds(name: str, parts: tuple, frames: int, side: int) -> tuple[float, float]:
    """Paint once: seconds of this thread, and of all threads together."""
    since, since_all = thread_time(), process_time()
    with torch.inference_mode():
        painted = (bare if name == "bare" else ours)(*parts, frames, side)
    assert painted >= frames, f"{name} painted {painted} of {frames} frames"
    return thread_time() - since, process_time() - since_all


def peak_mb(name: str, frames: int, side: int) -> float:
    """Peak memory of a process that paints in one of the two ways."""
    command = [sys.executable, __file__, name, str(frames), str(side)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print both and their ratios."""
    torch.set_num_threads(1)
    words = sys.argv[1:]
    if words and words[0] in ("bare", "ours"):
        seconds(words[0], models(), int(words[1]), int(words[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    frames, side, pairs = (int(words[at]) if len(words) > at else usual for at, usual in enumerate((81, 128, 7)))
    parts = models()
    for name in ("bare", "ours"):
        seconds(name, parts, frames, side)
    rows = []
    for pair in range(pairs):
        # The second of a pair meets other caches than the first: each is first in turn.
        order = ("bare", "ours") if pair % 2 else ("ours", "bare")
        rows.append({name: seconds(name, parts, frames, side) for name in order})
        ratios = (own / plain for own, plain in zip(rows[-1]["ours"], rows[-1]["bare"], strict=True))
        print("ours / bare: {:.3f} in the transformer's thread, {:.3f} in all threads".format(*ratios), flush=True)
    found = np.array([[row["ours"], row["bare"]] for row in rows])
    for at, what in enumerate(("the transformer's thread", "all threads")):
        ratios = found[:, 0, at] / found[:, 1, at]
        print(
            f"{what}: median {np.median(ratios):.3f} of the bare loop's, quartiles {np.quantile(ratios, 0.25):.3f} to "
            f"{np.quantile(ratios, 0.75):.3f}; ours {np.median(found[:, 0, at]):.2f} s"
        )
    peaks = {name: peak_mb(name, frames, side) for name in ("bare", "ours")}
    print(f"peak memory: {peaks['ours'] / peaks['bare']:.3f} of the bare loop's {peaks['bare']:.0f} MB")


if __name__ == "__main__":
    main()
