from .stage import render_normals as render_normals
