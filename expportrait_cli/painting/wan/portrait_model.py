"""The paper's generator as a `film.Model`: its conditions are encoded one latent frame at a time."""

from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from expportrait_cli.painting.scene import Still
from expportrait_cli.painting.wan.encoders import ImageEncoder
from expportrait_cli.painting.wan.film import Conditions, Velocity
from expportrait_cli.painting.wan.portrait import TIMESTEPS, WanPortrait
from expportrait_cli.painting.wan.vae import Encoding, Vae, filled, pixels
from expportrait_cli.painting.wan.windows import Chunks

BLOCK = 4
"""Latent frames whose pose features are computed together."""
POSE_MEMORY = BLOCK + 2
"""Latent frames from which on pose features do not depend on the first frame: a block, and the two before it."""

Map = Float32[np.ndarray, "H W 3"]


class PortraitModel:
    """The generator, conditioned on a photo and its normals."""

    front = None

    def __init__(self, model: WanPortrait, vae: Vae, still: Still, *, wake: Callable[[], None] = lambda: None) -> None:
        """Encode the photo; `wake` moves the transformer to its device, and is called before each use."""
        self.memory = vae.encoder_memory if model.has_hint else POSE_MEMORY
        self._model, self._vae, self._wake = model, vae, wake
        self._photo = vae.encode(pixels([still.photo]))
        self._tokens: Tensor | None = None
        if model.image_encoder is not None:
            # The CLIP is not kept: it is as large as a small transformer.
            self._tokens = ImageEncoder(model.image_encoder, self._photo.device).tokens(still.photo)
        self._still = model.reference(self._maps([still.normals])[:, :, 0])

    def controls(self, frames: Chunks, first: int) -> Iterator[Conditions]:
        """Yield pose features (16 channels), followed by the proxy film's latents if the generator takes a hint."""
        hint = Encoding(self._vae) if self._model.has_hint else None
        latents: deque[Tensor] = deque()

        def normals() -> Iterator[list[Map]]:
            for chunk in frames:
                if hint is not None:
                    latents.append(hint.push(pixels([sketch.proxy for sketch in chunk])))
                yield [sketch.normals for sketch in chunk]

        for features in self._features(normals(), first):
            yield Conditions(torch.cat([features, latents.popleft().to(features)], 1) if latents else features)

    def velocity(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity of a window, conditioned on normals, photo and hint."""
        # The cache has the state of the window before.
        self._model.transformer._reset_stateful_cache()
        return self._velocity(control, drop=False)

    def unconditional(self, control: Float[Tensor, "1 C T h w"]) -> Velocity:
        """Velocity without normals and hint; the photo stays."""
        return self._velocity(control, drop=True)

    def _velocity(self, control: Tensor, *, drop: bool) -> Velocity:
        model = self._model
        pose, hint = control[:, :16], control[:, 16:] if model.has_hint else None

        def velocity(state: Tensor, sigma: float) -> Tensor:
            self._wake()
            with model.transformer.cache_context("unconditional" if drop else "conditional"):
                return model.denoise(
                    state,
                    torch.full((1,), sigma * TIMESTEPS, device=state.device),
                    pose,
                    self._still.to(state),
                    self._photo.to(state),
                    hint,
                    drop_control=torch.full((1,), drop, device=state.device),
                    image_embeds=self._tokens,
                ).float()

        return velocity

    def _features(self, chunks: Iterator[list[Map]], first: int) -> Iterator[Float[Tensor, "1 16 1 h w"]]:
        """Yield the pose encoder's features of the whole film, one latent frame at a time.

        Features of a latent frame depend on its frames, those of the two before and of the one after. Blocks lie on a
        fixed grid of the film, so that features are the same wherever painting begins.
        """
        groups: deque[Tensor] = deque(maxlen=BLOCK + 3)
        done, last = first, first - 1
        for last, chunk in enumerate(chunks, first):
            # The first latent frame encodes one frame, which is repeated four times, as in the encoder itself.
            groups.append(self._maps(chunk * (4 // len(chunk))))
            if last % BLOCK == 0 and last > first:
                yield from self._read(list(groups), done - last - 1, -1)
                done = last
        around = list(groups)[max(done - last - 3, -len(groups)) :]
        yield from self._read(around, done - last - 1, None)

    def _read(self, groups: list[Tensor], begin: int, end: int | None) -> Iterator[Float[Tensor, "1 16 1 h w"]]:
        """Encode the maps of `groups`, and yield the features of the latent frames from index `begin` to `end`."""
        features = self._model.pose.layers(torch.cat(groups, 2)).float()
        yield from features[:, :, begin:end].split(1, 2)

    def _maps(self, normals: list[Map]) -> Float[Tensor, "1 3 F h w"]:
        maps = torch.from_numpy(np.stack([filled(one) for one in normals]))
        return maps.permute(3, 0, 1, 2)[None].to(self._photo.device, next(self._model.pose.parameters()).dtype)
