import torch
from support.render_shapes import sphere

from expportrait_cli.geometry.mesh import (
    edges,
    face_normals,
    laplacian,
    normalize,
    vertex_normals,
)

TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def grid(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Flat patch of uneven triangles without obtuse angles."""
    y, x = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    jitter = torch.rand(side * side, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    verts = torch.cat(
        [torch.stack([x - y / 2, y], -1).reshape(-1, 2) + jitter, torch.zeros(side * side, 1).double()], -1
    )
    near = torch.arange(side * side).reshape(side, side)
    a, b, c, d = near[:-1, :-1], near[:-1, 1:], near[1:, 1:], near[1:, :-1]
    return verts, torch.cat([torch.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (a, c, d))])


def test_one_triangle():
    verts = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [9.0, 9.0, 9.0]])
    faces = torch.tensor([[0, 1, 2]])
    assert face_normals(verts, faces).tolist() == [[0, 0, 6]]
    assert vertex_normals(verts, faces).tolist() == [[0, 0, 1]] * 3 + [[0, 0, 0]]


def test_normals_of_a_sphere_point_outwards():
    verts, faces = sphere(40, 80)
    assert ((vertex_normals(verts, faces) * verts).sum(-1) > 0.999).all()


def test_normals_turn_with_the_mesh_in_a_batch():
    verts, faces = sphere(8, 12)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0))).Q
    turn = turn * torch.linalg.det(turn).sign()
    both = vertex_normals(torch.stack([verts, verts @ turn.T]), faces)
    assert (both[0] @ turn.T - both[1]).abs().max() < 1e-5


def test_gradients_of_normals_also_without_area():
    verts, faces = sphere(4, 5)
    start = verts.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: vertex_normals(v, faces), start, fast_mode=True)
    flat = torch.zeros(3, 3, requires_grad=True)
    vertex_normals(flat, torch.tensor([[0, 1, 2]])).sum().backward()
    assert torch.isfinite(flat.grad).all()
    assert normalize(torch.zeros(3)).tolist() == [0, 0, 0]


def test_edges_of_a_tetrahedron():
    found = edges(TETRAHEDRON)
    assert found.verts.tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    for (a, b), sides in zip(found.verts.tolist(), found.opposite.tolist(), strict=True):
        assert {a, b, *sides} == {0, 1, 2, 3}


def test_a_border_has_one_side():
    found = edges(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    sides = {tuple(v): tuple(o) for v, o in zip(found.verts.tolist(), found.opposite.tolist(), strict=True)}
    assert sorted(sides[1, 2]) == [0, 3]
    assert all(sides[edge][1] == -1 for edge in sides if edge != (1, 2))


def test_a_laplacian_is_symmetric_and_keeps_constants():
    verts, faces = sphere(8, 12)
    matrix = laplacian(faces, len(verts)).to_dense()
    assert (matrix - matrix.T).abs().max() == 0
    assert (matrix @ torch.ones(len(verts))).abs().max() < 1e-4
    assert torch.linalg.eigvalsh(matrix.double()).min() > -1e-4
