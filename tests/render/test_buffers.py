from dataclasses import replace

import numpy as np
import pytest
import torch
from support.render_shapes import sphere

from expportrait_cli.artifacts.types import Relief
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.render import surface
from expportrait_cli.render.buffers import BACKGROUND, Bump, decode, encode, render_buffers
from expportrait_cli.render.rasterizer import interpolate, rasterize
from expportrait_cli.render.surface import GRAZING

CENTRE_CAM = torch.tensor([0.02, -0.01, 0.75])
RADIUS_M = 0.11


def _camera(size: int) -> Camera:
    return Camera(size * 2.4, size / 2, size / 2, size, size)


def test_sphere_normals_and_depth_are_analytic():
    verts, faces = sphere(100, 140)
    buffers = render_buffers(verts[None] * RADIUS_M + CENTRE_CAM, faces, _camera(256))
    inside = buffers.mask[0] == 1
    row, column = inside.nonzero(as_tuple=True)
    ray = torch.stack([(column - 127.5) / 614.4, (row - 127.5) / 614.4, torch.ones(len(row))], -1)
    along = (ray @ CENTRE_CAM) / (ray * ray).sum(-1)
    miss = along**2 - (CENTRE_CAM @ CENTRE_CAM - RADIUS_M**2) / (ray * ray).sum(-1)
    depth = along - miss.clamp(min=0).sqrt()
    normal = (ray * depth[:, None] - CENTRE_CAM) / RADIUS_M * torch.tensor([1.0, -1.0, -1.0])
    cosine = (normal * buffers.normals[0][inside]).sum(-1).clamp(-1, 1)
    assert cosine.arccos().rad2deg().mean() < 1
    # The surface of the faces lies within the sphere, at a slant also noticeably behind it.
    assert (buffers.depth[0][inside] - depth).abs().median() < 1e-4


def test_a_triangle_facing_the_camera_encodes_to_the_documented_colour():
    verts = torch.tensor([[[-0.1, -0.1, 1.0], [0.0, 0.1, 1.0], [0.1, -0.1, 1.0]]])
    faces = torch.tensor([[0, 1, 2]], dtype=torch.int32)
    buffers = render_buffers(verts, faces, _camera(64), antialias=False)
    rgb = encode(buffers.normals[0].numpy())
    covered = buffers.mask[0].numpy() > 0
    assert covered.sum() > 100
    assert (rgb[covered] == (128, 128, 255)).all()
    assert (rgb[~covered] == BACKGROUND).all()


def test_up_is_green_and_right_is_red():
    verts, faces = sphere(40, 60)
    rgb = encode(
        render_buffers(verts[None] * 0.1 + torch.tensor([0.0, 0.0, 0.75]), faces, _camera(64)).normals[0].numpy()
    )
    centre, reach = 32, 17
    assert rgb[centre - reach, centre, 1] > 210 and rgb[centre + reach, centre, 1] < 45
    assert rgb[centre, centre + reach, 0] > 210 and rgb[centre, centre - reach, 0] < 45


def test_decode_undoes_encode():
    normals = np.random.default_rng(0).normal(size=(8, 8, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    assert np.abs(decode(encode(normals)) - normals).max() < 1 / 127
    assert (decode(encode(np.zeros((2, 2, 3), np.float32))) == 0).all()


@pytest.mark.parametrize("size", [256, 512])
def test_the_area_of_the_mask_grows_as_geometry_says(size):
    verts, faces = sphere(142, 142)
    edges = mesh.edges(faces)
    flat = verts * torch.tensor([0.2, 0.2, 0.02])
    scale = torch.tensor(1.0, requires_grad=True)
    stretch = torch.stack([scale, scale, torch.ones(())])
    # Scaling x and y scales the picture exactly, in perspective too.
    buffers = render_buffers(flat[None] * stretch + torch.tensor([0.0, 0.0, 1.5]), faces, _camera(size), edges=edges)
    area = buffers.mask.sum()
    area.backward()
    assert float(scale.grad) == pytest.approx(2 * area.item(), rel=0.03)
    assert area.item() == pytest.approx(np.pi * (0.2 / 1.5 * size * 2.4) ** 2, rel=0.01)


def test_a_crumpled_outline_still_grows_with_its_scale():
    verts, faces = sphere(142, 142)
    bumps = 1 + 0.01 * torch.rand(len(verts), 1, generator=torch.Generator().manual_seed(0))
    flat = verts * bumps * torch.tensor([0.2, 0.2, 0.02])
    scale = torch.tensor(1.0, requires_grad=True)
    stretch = torch.stack([scale, scale, torch.ones(())])
    area = render_buffers(flat[None] * stretch + torch.tensor([0.0, 0.0, 1.5]), faces, _camera(256)).mask.sum()
    area.backward()
    # Folds within a pixel are seen only as far as their edges are; counting each of them would give four times as much.
    assert float(scale.grad) == pytest.approx(2 * area.item(), rel=0.25)


def test_a_crumpled_outline_covers_what_finer_pixels_say():
    verts, faces = sphere(60, 80)
    bumps = 1 + 0.01 * torch.rand(len(verts), 1, generator=torch.Generator().manual_seed(0))
    verts_cam = (verts * bumps * 0.1 + torch.tensor([0.0, 0.0, 0.75]))[None]
    mask = render_buffers(verts_cam, faces, _camera(128)).mask
    fine = torch.nn.functional.avg_pool2d(render_buffers(verts_cam, faces, _camera(1024), antialias=False).mask, 8)
    rim = (fine > 0) & (fine < 1)
    assert mask.min() >= -1e-6 and mask.max() <= 1 + 1e-6
    # A mask that is not blended is off by 0.26 there.
    assert (mask - fine)[rim].square().mean().sqrt() < 0.12


def test_a_hidden_silhouette_leaves_the_surface_before_it_alone():
    verts, faces = sphere(30, 40)
    wall = torch.tensor([[-1.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [1.0, 1.0, 0.5], [1.0, -1.0, 0.5]])
    wall_faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32) + len(verts)
    both = torch.cat([verts * 0.1 + torch.tensor([0.0, 0.0, 1.0]), wall])
    buffers = render_buffers(both[None], torch.cat([faces, wall_faces]).contiguous(), _camera(64))
    # The wall passes the border of the picture, so only its own plain normal remains.
    torch.testing.assert_close(buffers.normals, torch.tensor([0.0, 0.0, 1.0]).expand(1, 64, 64, 3))
    assert buffers.mask.min() == 1


def test_no_vertex_that_is_seen_is_cut_off_from_the_loss():
    verts, faces = sphere(16, 20)
    verts_cam = (verts[None] * 0.1 + torch.tensor([0.0, 0.0, 0.75])).requires_grad_()
    buffers = render_buffers(verts_cam, faces, _camera(64))
    (buffers.normals[..., 0].square().sum() + buffers.depth.sum() + buffers.mask.sum()).backward()
    assert torch.isfinite(verts_cam.grad).all()
    assert (verts_cam.grad[0][verts[:, 2] < -0.3].abs().sum(-1) > 0).all()


def test_edges_of_a_square():
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]], dtype=torch.int32)
    edges = mesh.edges(faces)
    assert edges.verts.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [2, 3]]
    assert edges.opposite[edges.verts.tolist().index([0, 2])].sort().values.tolist() == [1, 3]
    assert (edges.opposite[:, 1] < 0).sum() == 4


def test_vertex_normals_of_a_degenerate_face_have_finite_gradients():
    verts = torch.zeros(4, 3, requires_grad=True)
    normals = mesh.vertex_normals(verts, torch.tensor([[0, 1, 2]], dtype=torch.int32))
    normals.sum().backward()
    assert (normals == 0).all()
    assert torch.isfinite(verts.grad).all()


def _sheet(depth_m: float) -> tuple[torch.Tensor, torch.Tensor]:
    corners = torch.tensor([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    verts = torch.cat([corners, torch.full((4, 1), depth_m)], -1)
    return verts[None], torch.tensor([[0, 2, 1], [0, 3, 2]], dtype=torch.int32)


def _waves(seen: float = 1.0) -> Relief:
    """Waves of 0.5 mm along x over a sheet that is 512 px of its photo wide."""
    x = np.arange(512) + 0.5
    heights = np.tile(5e-4 * np.sin(2 * np.pi * x / 64), (512, 1)).astype(np.float16)
    places = np.array([[0, 0], [512, 0], [512, 512], [0, 512]], np.float32)
    return Relief(heights, places, np.full(4, seen, np.float16), np.zeros(4, bool))


def test_waves_on_a_sheet_tilt_its_normals_as_their_slope_says():
    """The whole sheet of 1 m lies 1 m away: 64 px of its photo are 125 mm."""
    verts, faces = _sheet(1.0)
    camera = Camera(512.0, 256.0, 256.0, 512, 512)
    bump = Bump.of(_waves(), scale=1.0)
    normals = render_buffers(verts, faces, camera, antialias=False, bump=bump).normals[0].numpy()
    x_m = (np.arange(512) + 0.5) / 512
    slope = 5e-4 * 2 * np.pi / 0.125 * np.cos(2 * np.pi * x_m / 0.125)
    expected = -slope / np.sqrt(1 + slope**2)
    inner = np.s_[8:-8]
    assert np.abs(normals[256, inner, 0] - expected[inner]).max() < 0.02 * np.abs(slope).max()
    assert np.abs(normals[inner, inner, 1]).max() < 1e-5
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)


def test_what_the_photo_does_not_show_has_the_normals_of_the_mesh():
    verts, faces = _sheet(1.0)
    camera = Camera(512.0, 256.0, 256.0, 512, 512)
    plain = render_buffers(verts, faces, camera).normals
    assert torch.equal(render_buffers(verts, faces, camera, bump=Bump.of(_waves(0.0), scale=1.0)).normals, plain)
    assert Bump.of(Relief.none(), scale=1.0) is None


def test_detail_stays_where_it_is_when_the_sheet_moves():
    """A shift by whole pixels, and twice the distance: the same tilt, since heights and widths shrink alike."""
    verts, faces = _sheet(1.0)
    camera = Camera(512.0, 256.0, 256.0, 512, 512)
    bump = Bump.of(_waves(), scale=1.0)
    here = render_buffers(verts, faces, camera, antialias=False, bump=bump).normals[0]
    moved = verts + torch.tensor([32 / 512, 0.0, 0.0])
    there = render_buffers(moved, faces, camera, antialias=False, bump=bump).normals[0]
    assert torch.allclose(there[100:400, 140:400], here[100:400, 108:368], atol=2e-3)


def test_fine_detail_keeps_its_strength_wherever_the_pixels_fall():
    """Strands of 4 px: read between pixels, they must not fade and come back while the head moves by half a pixel."""
    verts, faces = _sheet(1.0)
    camera, x = Camera(512.0, 256.0, 256.0, 512, 512), np.arange(512) + 0.5
    strands = replace(_waves(), heights=np.tile(1e-4 * np.sin(2 * np.pi * x / 4), (512, 1)).astype(np.float16))
    bump, strength = Bump.of(strands, scale=1.0), []
    for step in np.linspace(0, 1, 5):
        moved = verts + torch.tensor([step / 512, 0.0, 0.0], dtype=torch.float32)
        shown = render_buffers(moved, faces, camera, antialias=False, bump=bump).normals[0]
        strength.append(float(shown[100:400, 100:400, 0].std()))
    assert min(strength) > 0.9 * max(strength) > 0.005


def test_what_is_finer_than_a_pixel_is_smooth():
    """Four times as far away, strands of 4 px are one pixel wide: nothing of them may be left as noise."""
    verts, faces = _sheet(1.0)
    camera, x = Camera(512.0, 256.0, 256.0, 512, 512), np.arange(512) + 0.5
    strands = replace(_waves(), heights=np.tile(1e-4 * np.sin(2 * np.pi * x / 4), (512, 1)).astype(np.float16))
    far = verts * torch.tensor([1.0, 1.0, 4.0])
    near, away = (
        render_buffers(each, faces, camera, antialias=False, bump=Bump.of(strands, scale=1.0)).normals[0]
        for each in (verts, far)
    )
    assert float(away[200:312, 200:312, 0].std()) < 0.05 * float(near[200:312, 200:312, 0].std())


def test_gradients_along_a_tilted_surface():
    """A function that is linear in space has its gradient's part in the plane."""
    verts, faces = _sheet(0.0)
    turned = verts @ torch.linalg.matrix_exp(torch.tensor([[0.0, 0.3, 0.2], [-0.3, 0.0, 0.5], [-0.2, -0.5, 0.0]]))
    slope = torch.tensor([0.7, -0.4, 1.1])
    normal = torch.linalg.cross(turned[0, 1] - turned[0, 0], turned[0, 3] - turned[0, 0])
    found = mesh.surface_gradients(turned, faces, (turned[0] @ slope)[:, None])[0, :, 0]
    torch.testing.assert_close(found, (slope - normal * (slope @ normal)).expand(4, 3), atol=1e-5, rtol=1e-5)


def test_no_detail_is_drawn_over_an_edge_between_two_surfaces():
    """A near half sheet hides a far one: the step in depth is no slope of the relief."""
    (near, faces), (far, _) = _sheet(0.8), _sheet(1.0)
    near = near * torch.tensor([0.5, 1.0, 1.0]) - torch.tensor([0.25, 0.0, 0.0])
    verts, both = torch.cat([near, far], 1), torch.cat([faces, faces + 4])
    heights = np.concatenate([np.full((512, 256), 5e-3), np.zeros((512, 256))], 1).astype(np.float16)
    places = np.concatenate([np.full((4, 2), 100.0), np.full((4, 2), 400.0)]).astype(np.float32)
    relief = Relief(heights, places, np.ones(8, np.float16), np.zeros(8, bool))
    bump = Bump.of(relief, scale=1.0)
    normals = render_buffers(verts, both, Camera(512.0, 256.0, 256.0, 512, 512), antialias=False, bump=bump).normals[0]
    assert (normals[..., 2] > 0.999).all()


def test_inside_the_mouth_there_is_no_surface():
    """The right half of a sheet is cavity: its normals are zero, and it is covered all the same."""
    verts, faces = _sheet(1.0)
    relief = replace(_waves(), heights=Relief.none().heights, cavity=np.array([False, True, True, False]))
    bump = Bump.of(relief, scale=1.0)
    drawn = render_buffers(verts, faces, Camera(512.0, 256.0, 256.0, 512, 512), antialias=False, bump=bump)
    assert (drawn.mask[0] == 1).all()
    assert (drawn.normals[0, :, 257:] == 0).all()
    assert (drawn.normals[0, :, :255, 2] > 0.999).all()


def test_sums_of_triangles_are_those_that_carry_gradients():
    verts, faces = sphere(12, 16)
    generator = torch.Generator().manual_seed(0)
    # A vertex without triangles, and a triangle without area.
    verts = torch.cat([verts, torch.ones(1, 3)])
    faces = torch.cat([faces, torch.tensor([[1, 1, 2]], dtype=faces.dtype)])
    batch = torch.stack([verts, verts * torch.tensor([1.0, 2.0, 0.5])]) + 0.01 * torch.rand(
        2, *verts.shape, generator=generator
    )
    values = torch.rand(len(verts), 2, generator=generator)
    torch.testing.assert_close(surface.vertex_normals(batch, faces), mesh.vertex_normals(batch, faces))
    along = [each.surface_gradients(batch, faces, values) for each in (surface, mesh)]
    assert along[1].abs().max() > 1
    torch.testing.assert_close(*along, rtol=1e-4, atol=1e-4)
    leaf = batch.clone().requires_grad_()
    surface.vertex_normals(leaf, faces).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0


def _bent(verts, faces, camera, bump):
    """What `Bump` says, step by step in torch: Blinn 1978, on levels of slopes that are read at the pixel's width."""
    rast = rasterize(camera.clip(verts), faces, (camera.height, camera.width), backend="reference")
    along = mesh.surface_gradients(verts, faces, bump.places[:, :2]).flatten(-2)
    columns = [mesh.vertex_normals(verts, faces), verts[..., 2:], bump.places[None].expand(len(verts), -1, -1), along]
    drawn = interpolate(torch.cat(columns, -1), rast, faces, backend="reference")
    up = torch.tensor([1.0, -1.0, -1.0])
    normals, depth = mesh.normalize(drawn[..., :3]) * up, drawn[..., 3:4]
    shown = (drawn[..., 6] > 0) & (normals[..., 2] > GRAZING[0])
    normal, here, tangents = normals[shown], drawn[shown], drawn[..., 8:].unflatten(-1, (2, 3))[shown] * up
    forward = tangents[..., :2] + tangents[..., 2:] * (-normal[:, :2] / normal[:, 2:])[:, None]
    width = depth[shown] / camera.focal_px * bump.scale * (forward.square().sum((-2, -1))[:, None] / 2).sqrt()
    levels = len(bump.slopes)
    level = width.clamp(1, 2 ** (levels - 1)).log2()
    where = torch.cat([here[:, 4:6] * (2 / 512) - 1, (2 * level + 1) / levels - 1], -1)
    texture = bump.slopes.permute(3, 0, 1, 2)[None]
    found = torch.nn.functional.grid_sample(
        texture, where[None, None, None], align_corners=False, padding_mode="border"
    )
    tangent = (found[0, :, 0, 0].T[..., None] * tangents).sum(-2)
    tangent = tangent - normal * (tangent * normal).sum(-1, keepdim=True)
    known = here[:, 6:7] * ((normal[:, 2:] - GRAZING[0]) / (GRAZING[1] - GRAZING[0])).clamp(max=1)
    bent = mesh.normalize(normal - known * tangent / tangent.norm(dim=-1, keepdim=True).clamp(min=1.0))
    return normals.masked_scatter(shown[..., None], bent) * (drawn[..., 7:8] <= 0.5), depth[..., 0]


def test_normals_of_the_kernel_are_those_of_the_formulas():
    """A bumpy ball with noise on it, seen from near and far, half known, with a cavity: within rounding of floats."""
    (verts, faces), rng = sphere(20, 30), np.random.default_rng(0)
    verts = verts * torch.from_numpy(rng.uniform(0.97, 1.0, (len(verts), 1)).astype(np.float32))
    places = ((verts[:, :2].numpy() + 1) * 256).astype(np.float32)
    seen = np.clip(rng.uniform(-0.3, 1.2, len(verts)), 0, 1).astype(np.float16)
    heights = (2e-3 * rng.random((512, 512))).astype(np.float16)
    bump = Bump.of(Relief(heights, places, seen, (verts[:, 1] > 0.6).numpy()), scale=0.25)
    for away in (3.0, 8.0):
        posed = verts[None] + torch.tensor([0.1, -0.05, away])
        camera = Camera(180.0, 64.0, 64.0, 128, 128)
        drawn = render_buffers(posed, faces, camera, antialias=False, bump=bump, backend="reference")
        normals, depth = _bent(posed, faces, camera, bump)
        bare = render_buffers(posed, faces, camera, antialias=False, backend="reference").normals
        assert (normals - bare).abs().amax() > 0.1
        torch.testing.assert_close(drawn.normals, normals, atol=2e-4, rtol=0)
        torch.testing.assert_close(drawn.depth, depth, atol=1e-5, rtol=0)


def test_normals_without_gradients_are_those_with():
    verts, faces = sphere(12, 16)
    posed, camera = verts[None] + torch.tensor([0.1, 0.0, 3.0]), Camera(80.0, 32.0, 32.0, 64, 64)
    drawn, leaf = render_buffers(posed, faces, camera), render_buffers(posed.clone().requires_grad_(), faces, camera)
    for each, other in zip(vars(drawn).values(), vars(leaf).values(), strict=True):
        torch.testing.assert_close(each, other.detach(), atol=1e-5, rtol=0)


def test_silhouettes_are_edges_whose_triangles_lie_on_one_side():
    """Of a ball: the edges between a triangle that faces the camera and one that does not."""
    verts, faces = sphere(12, 16)
    found, ball = mesh.edges(faces), verts[None] + torch.tensor([0.0, 0.0, 4.0])
    screen = torch.cat([ball[..., :2] / ball[..., 2:], ball[..., 2:]], -1)
    frame, edge = surface.silhouettes(screen, found)
    assert (frame == 0).all()
    corners = ball[0][faces.long()]
    facing = (torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) * corners[:, 0]).sum(-1)
    sides: dict[tuple[int, int], list[bool]] = {}
    for triangle, near in zip(faces.tolist(), (facing < 0).tolist(), strict=True):
        for a, b in ((0, 1), (1, 2), (2, 0)):
            ends = (min(triangle[a], triangle[b]), max(triangle[a], triangle[b]))
            sides.setdefault(ends, []).append(near)
    expected = {ends for ends, near in sides.items() if len(set(near)) == 2 or len(near) == 1}
    assert {tuple(ends) for ends in found.verts[edge].tolist()} == expected
