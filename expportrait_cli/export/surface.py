"""Still meshes as .obj and .ply, through trimesh."""

from pathlib import Path

from trimesh import Trimesh
from trimesh.exchange.obj import export_obj
from trimesh.exchange.ply import export_ply

from expportrait_cli.export.shape import Shape, normals_of


def write_surface(shape: Shape, path: Path, form: str) -> None:
    """Write the mesh with smooth normals, and with its colours if it has any; `form` is obj or ply.

    Vertices keep their order and number. Colours in an .obj follow the coordinates of each vertex, which MeshLab,
    Blender and others read.
    """
    normals = normals_of(shape.verts, shape.faces)
    mesh = Trimesh(
        shape.verts, shape.faces, vertex_normals=normals, vertex_colors=shape.colours, process=False, validate=False
    )
    if form == "obj":
        path.write_text(export_obj(mesh, include_normals=True))
    else:
        path.write_bytes(export_ply(mesh, vertex_normal=True))
