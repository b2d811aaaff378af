"""The small painter: nothing untrained shows, the gate, any size, any start, and its files."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from expportrait_cli.artifacts.files import sha256
from expportrait_cli.config import GenerateConfig, WanConfig
from expportrait_cli.errors import UsageError, WeightsError
from expportrait_cli.painting.mini import MiniNet, MiniPainter, MiniShape, correct, load_mini, planes, save_mini
from expportrait_cli.painting.scene import Sketch, Still
from expportrait_cli.painting.stage import choose, painter_of
from expportrait_cli.render.buffers import Buffers

pytestmark = pytest.mark.slow

pytest.importorskip("diffusers")
SMALL = MiniShape(channels=(8, 8, 16), heads=2, head_width=12, layers=1)


def film(count: int, size: tuple[int, int]) -> tuple[Still, list[Sketch]]:
    draw = np.random.default_rng(0)

    def normals():
        values = torch.from_numpy(draw.normal(size=(1, *size, 3)).astype(np.float32))
        return torch.nn.functional.normalize(values, dim=-1)

    def sketch():
        seen = Buffers(normals(), torch.ones(1, *size), torch.ones(1, *size))
        guess = (draw.random(size) > 0.9).astype(np.float32)
        return Sketch(draw.integers(0, 256, (*size, 3), dtype=np.uint8), guess, lambda: seen)

    photo = draw.integers(0, 256, (*size, 3), dtype=np.uint8)
    return Still(photo, normals()[0].numpy()), [sketch() for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> MiniNet:
    torch.manual_seed(0)
    made = MiniNet(SMALL)
    for parameter in made.leave.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return made.eval().requires_grad_(False)


def painted(network: MiniNet, count: int, size: tuple[int, int] = (48, 64), start: int = 0, crop: int = 256):
    still, sketches = film(count, size)
    return list(MiniPainter(network, crop).paint(still, lambda first: iter(sketches[first:]), start=start, count=count))


def test_untrained_it_is_the_proxy():
    still, sketches = film(5, (48, 64))
    frames = MiniPainter(MiniNet(SMALL), 256).paint(still, lambda first: iter(sketches[first:]), start=0, count=5)
    for frame, sketch in zip(frames, sketches, strict=True):
        assert np.array_equal(frame, sketch.proxy)


@pytest.mark.parametrize("start", [1, 4, 6, 9])
def test_frames_do_not_depend_on_where_painting_starts(network, start):
    whole = painted(network, 10)
    assert len(whole) == 10 and not np.array_equal(whole[0], film(10, (48, 64))[1][0].proxy)
    part = painted(network, 10, start=start)
    assert len(part) == 10 - start
    assert all(np.array_equal(a, b) for a, b in zip(part, whole[start:], strict=True))


@pytest.mark.parametrize(("size", "crop"), [((45, 61), 256), ((90, 70), 512), ((48, 48), 768)])
def test_any_size(network, size, crop):
    frames = painted(network, 3, size, crop=crop)
    assert [frame.shape for frame in frames] == [(*size, 3)] * 3


def test_nothing_changes_but_where_the_proxy_guessed(network):
    frames, still = torch.randn(1, 2, 7, 64, 64), torch.randn(1, 7, 64, 64)
    frames[:, :, 3] = 0
    frames[..., 3, 16:32, 16:32] = 1
    change = correct(network, frames, still)
    assert change[..., 44:, :].eq(0).all() and change[..., :, 44:].eq(0).all()
    assert torch.allclose(change[..., 16:32, 16:32], network(frames, still)[..., 16:32, 16:32])


def test_the_photo_is_a_frame_without_guesses():
    photo = np.full((4, 4, 3), 255, np.uint8)
    shown = planes(photo, None, np.zeros((4, 4, 3), np.float32))
    assert shown[:3].eq(1).all() and shown[3:].eq(0).all()


def test_files(network, tmp_path):
    path = tmp_path / "mini.safetensors"
    save_mini(network, path, {"gate": {"passed": False}})
    again = load_mini(path)
    assert again.shape == network.shape
    frames, still = torch.randn(1, 2, 7, 32, 32), torch.randn(1, 7, 32, 32)
    assert torch.allclose(again(frames, still), network(frames, still), atol=2e-3)
    first = path.read_bytes()
    save_mini(network, path, {"gate": {"passed": False}})
    assert path.read_bytes() == first
    (tmp_path / "other.safetensors").write_bytes(first[: len(first) // 2])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_mini(tmp_path / "other.safetensors")
    wider = MiniNet(replace(SMALL, layers=2))
    wider.shape = SMALL
    save_mini(wider, path, {})
    with pytest.raises(WeightsError, match="damaged"):
        load_mini(path)


def test_it_is_taken_unasked_only_once_it_has_passed(network, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    path = tmp_path / "mini.safetensors"
    for passed, name in ((False, "proxy"), (True, "mini")):
        save_mini(network, path, {"gate": {"passed": passed}})
        assert choose(GenerateConfig()).name == name
        asked = choose(GenerateConfig(backend="mini"))
        assert asked.name == "mini" and asked.identity["weights"] == sha256(path)
        assert isinstance(painter_of(GenerateConfig(backend="mini")), MiniPainter)
    assert choose(GenerateConfig(backend="proxy")).name == "proxy"
    with pytest.raises(UsageError, match="the painter is mini"):
        choose(GenerateConfig(backend="mini", wan=WanConfig(steps=4)))
