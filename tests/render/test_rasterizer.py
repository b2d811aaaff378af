import sys
from importlib import import_module

import pytest
import torch
from support.render_shapes import soup, sphere

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.render import rasterizer
from expportrait_cli.render.rasterizer import choose, interpolate, rasterize

RESOLUTION = (40, 56)


def _soup(seed: int = 0):
    return soup(200, torch.Generator().manual_seed(seed))


def _gradients(backend, pos, tri, attr, weights):
    pos, attr = pos.clone().requires_grad_(), attr.clone().requires_grad_()
    rast = rasterize(pos, tri, RESOLUTION, backend=backend)
    image = interpolate(attr, rast, tri, backend=backend)
    (image * weights).sum().backward()
    return image.detach(), pos.grad, attr.grad


def test_warp_agrees_with_the_reference():
    pos, tri = _soup()
    warp, reference = (rasterize(pos, tri, RESOLUTION, backend=name) for name in ("warp", "reference"))
    assert torch.equal(warp[..., 3], reference[..., 3])
    assert (warp[..., 3] > 0).float().mean() > 0.5
    torch.testing.assert_close(warp, reference, atol=1e-6, rtol=1e-5)


def test_warp_gradients_agree_with_the_reference():
    pos, tri = _soup(1)
    generator = torch.Generator().manual_seed(2)
    attr = torch.rand(1, pos.shape[1], 5, generator=generator)
    weights = torch.rand(1, *RESOLUTION, 5, generator=generator)
    for ours, oracle in zip(
        _gradients("warp", pos, tri, attr, weights), _gradients("reference", pos, tri, attr, weights), strict=True
    ):
        assert oracle.abs().max() > 0
        # Sums of thousands of float32 terms in another order.
        torch.testing.assert_close(ours, oracle, rtol=1e-3, atol=1e-4 * float(oracle.abs().max()))


def test_a_tie_goes_to_the_lowest_id():
    pos, tri = _soup()
    ids = rasterize(pos, tri, RESOLUTION, backend="warp")[..., 3]
    # Triangles 2k and 2k + 1 are the same; `rast` holds id + 1.
    assert set((ids[ids > 0] % 2).tolist()) == {1.0}
    backwards = rasterize(pos, tri.flip(0).contiguous(), RESOLUTION, backend="warp")[..., 3]
    assert set((backwards[backwards > 0] % 2).tolist()) == {1.0}


def test_the_nearest_triangle_wins_whichever_way_it_faces():
    corners = torch.tensor([[-3.0, -1.0], [3.0, -1.0], [0.0, 5.0]])
    far, near = (torch.cat([corners, torch.full((3, 1), z), torch.ones(3, 1)], -1) for z in (0.5, 0.2))
    pos = torch.cat([far, near.flip(0)])[None]
    tri = torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=torch.int32)
    rast = rasterize(pos, tri, (4, 4))
    assert torch.equal(rast[..., 3], torch.full((1, 4, 4), 2.0))
    torch.testing.assert_close(rast[..., 2], torch.full((1, 4, 4), 0.2))


def test_gradient_agrees_with_finite_differences():
    # One triangle over the whole picture, so that no pixel changes hands.
    pos = torch.tensor([[[-4.0, -2.0, 0.0, 1.0], [5.0, -3.0, 0.3, 1.5], [0.3, 6.0, 0.6, 2.0]]])
    tri = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    attr = torch.tensor([[[1.0], [-2.0], [3.0]]])

    def loss(moved):
        return interpolate(attr, rasterize(moved, tri, (16, 16)), tri).double().square().mean()

    leaf = pos.clone().requires_grad_()
    loss(leaf).backward()
    for vertex in range(3):
        for axis in (0, 1, 3):
            step = torch.zeros_like(pos)
            step[0, vertex, axis] = 1e-2
            difference = float(loss(pos + step) - loss(pos - step)) / 2e-2
            assert leaf.grad[0, vertex, axis] == pytest.approx(difference, rel=2e-3, abs=1e-5)
    assert leaf.grad[0, :, 2].abs().max() == 0


def test_a_projected_point_lands_in_its_pixel():
    camera = Camera(300.0, 19.0, 13.5, 40, 30)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        column, row = (int(torch.randint(size, (), generator=generator)) for size in (40, 30))
        depth_m = 0.5 + float(torch.rand((), generator=generator))
        around = torch.tensor([[-0.3, -0.2], [0.3, -0.2], [0.0, 0.3]])
        pixels = torch.tensor([column + 0.5, row + 0.5]) + around
        centre = torch.tensor([camera.cx, camera.cy])
        points = torch.cat([(pixels - centre) / camera.focal_px * depth_m, torch.full((3, 1), depth_m)], -1)
        tri = torch.tensor([[0, 1, 2]], dtype=torch.int32)
        covered = rasterize(camera.clip(points[None]), tri, (30, 40))[0, ..., 3].nonzero()
        assert covered.tolist() == [[row, column]]


def test_a_closed_mesh_has_no_holes():
    verts, faces = sphere(24, 36)
    # Rings fall on pixel centres, where rounding could leave a pixel to neither neighbour.
    pos = torch.cat([verts * torch.tensor([0.5, 0.5, 0.5]), torch.ones(len(verts), 1)], -1)[None]
    covered = rasterize(pos, faces, (65, 65))[0, ..., 3] > 0
    runs = (covered[:, 1:] != covered[:, :-1]).sum(1)
    assert runs.max() == 2


def test_a_batch_equals_its_frames():
    pos, tri = _soup(3)
    batch = torch.cat([pos, pos * 0.9, pos.flip(1)])
    rast = rasterize(batch, tri, RESOLUTION)
    singles = torch.cat([rasterize(frame[None], tri, RESOLUTION) for frame in batch])
    assert torch.equal(rast, singles)


def test_what_lies_behind_the_camera_is_dropped():
    pos = torch.tensor([[[-1.0, -1.0, 0.0, -1.0], [1.0, -1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 1.0]]])
    tri = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    for backend in ("warp", "reference"):
        assert rasterize(pos, tri, (8, 8), backend=backend).abs().max() == 0


def test_the_choice_is_explained():
    assert choose(torch.device("cpu")) == ("warp", "Warp on the CPU")


def test_a_package_that_does_not_draw_is_not_chosen(monkeypatch, caplog, tmp_path):
    """Its compiled part may fit neither torch nor the GPU, although the package is found."""
    (tmp_path / "nvdiffrast").mkdir()
    (tmp_path / "nvdiffrast" / "__init__.py").write_text("")
    (tmp_path / "nvdiffrast" / "torch.py").write_text("raise ImportError('_nvdiffrast_c: undefined symbol')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nvdiffrast", raising=False)
    rasterizer._fault.cache_clear()
    name, reason = choose(torch.device("cuda"))
    assert name == "warp" and "does not work: _nvdiffrast_c: undefined symbol" in reason
    assert "Warp draws instead" in caplog.text
    rasterizer._fault.cache_clear()


@pytest.mark.parametrize("name", ["warp", "reference"])
def test_a_backend_is_tried_forward_and_backward(name):
    backend = import_module(f"expportrait_cli.render.{'warp_backend' if name == 'warp' else name}")
    assert rasterizer.tried(backend, torch.device("cpu")) > 0.01

    class Cut:
        """Draws, and loses the gradient."""

        interpolate = staticmethod(backend.interpolate)

        @staticmethod
        def rasterize(pos, tri, resolution):
            return backend.rasterize(pos.detach(), tri, resolution) + 0 * pos.sum()

    with pytest.raises(RuntimeError, match="gradient of a triangle is 0"):
        rasterizer.tried(Cut, torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("backend", ["warp", "nvdiffrast"])
def test_cuda_agrees_with_the_reference(backend):
    if backend == "nvdiffrast":
        pytest.importorskip("nvdiffrast")
    verts, faces = sphere(40, 60)
    pos = Camera(300.0, 32.0, 32.0, 64, 64).clip(verts[None] * 0.1 + torch.tensor([0.0, 0.0, 0.75]))
    oracle = rasterize(pos, faces, (64, 64), backend="reference")
    ours = rasterize(pos.cuda(), faces.cuda(), (64, 64), backend=backend).cpu()
    same = ours[..., 3] == oracle[..., 3]
    # Rules at shared edges differ between rasterisers.
    assert same.float().mean() > 0.99
    torch.testing.assert_close(ours[same], oracle[same], atol=1e-4, rtol=1e-4)
