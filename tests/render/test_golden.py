"""Every rasteriser against one stored answer, on whatever machine it runs."""

import numpy as np
import pytest
import torch
from support.places import TESTS
from support.raster_scene import gradients, scene

GOLDEN = TESTS / "golden" / "raster.npz"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize(
    ("backend", "device"),
    [
        ("warp", "cpu"),
        ("reference", "cpu"),
        pytest.param("warp", "cuda", marks=[pytest.mark.gpu, CUDA]),
        pytest.param("nvdiffrast", "cuda", marks=[pytest.mark.gpu, CUDA]),
    ],
)
def test_a_backend_gives_the_stored_raster_and_gradients(backend, device):
    if backend == "nvdiffrast":
        pytest.importorskip("nvdiffrast")
    with np.load(GOLDEN, allow_pickle=False) as stored:
        rast, image, by_pos, by_attr = (torch.from_numpy(stored[n]) for n in ("rast", "image", "by_pos", "by_attr"))
    assert (rast[..., 3] > 0).float().mean() > 0.3 and by_pos.abs().max() > 0
    found = gradients(backend, *(each.to(device) for each in scene()))
    same = found[0][..., 3] == rast[..., 3]
    assert same.float().mean() > 0.995
    torch.testing.assert_close(found[0][same], rast[same], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1][same], image[same], atol=1e-3, rtol=1e-3)
    # A pixel that goes to the neighbour triangle moves the gradient of six vertices.
    for ours, golden in zip(found[2:], (by_pos, by_attr), strict=True):
        close = (ours - golden).abs() <= 1e-3 * golden.abs().max()
        assert close.float().mean() > 0.99
