"""Read damaged files of every kind: each must end in one line for the user, or be right after all.

`python tests/fuzz/mutate.py [COUNT] [SEED]` prints a table, and ends with 1 if a file gave a traceback, took too
long or too much memory, or was accepted with numbers that are none.
"""

import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pillow_heif import register_heif_opener

from expportrait_cli.artifacts import network_file, npz
from expportrait_cli.artifacts.curves_csv import read_csv, write_csv
from expportrait_cli.artifacts.meshes import Meshes, MeshesWriter
from expportrait_cli.artifacts.types import Curves, HeadFit, Tracking
from expportrait_cli.benchmark.suite import read_suite
from expportrait_cli.dataset.dataset import Dataset
from expportrait_cli.errors import UserError, one_line
from expportrait_cli.evaluation.columns import NAMES
from expportrait_cli.evaluation.scores import Scores, scores_from_json
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.media.image import read_image
from expportrait_cli.media.video import probe, read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.wan.manifest import Manifest, read_manifest, verify, write_manifest
from expportrait_cli.pipeline.joblist import read_jobs
from expportrait_cli.pipeline.provenance import licence_map, read_record
from expportrait_cli.render.files import NormalsInfo, load_info, save_normals
from expportrait_cli.render.stage import NormalFrame
from expportrait_cli.retargeting.network import NetworkConfig
from expportrait_cli.weights import catalogue
from expportrait_cli.weights.catalogue import read_folder

SECONDS, MEGABYTES, LIMIT = 2, 300, 4 << 30
"""Longest time of the processor for one file, most memory that it may add, and what the process may map beyond it."""
EXTREMES = ["NaN", "Infinity", "-Infinity", -1, 0, 2**31, -(2**31), 2**63, 1e300, -1e300, 1e-300, "9" * 5000]
"""Texts stand for numbers as they are written."""
STRANGE: list[Any] = [None, True, [], {}, "", "\x1b[2J", "\ud800", "a" * 300, [[]], {"a": 1}, 1.5, "/etc", "..", "\0"]
NAMED = ("blink", "smile")
SIZES = {"T": 3, "K": 5, "E": 2, "V": 7, "P": 6, "R": 4, "S": 4}


class TooLongError(BaseException):
    """Reading a file took too long."""


@dataclass(frozen=True)
class Kind:
    """One kind of file: how a right one is made, and how the tool reads it."""

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]


def artifact(cls: type) -> Any:
    """An artifact of small numbers, in the shapes that its annotations name."""
    draw = np.random.default_rng(0)
    values: dict[str, Any] = {}
    for field in fields(cls):
        kind: Any = field.type
        if kind in (str, int, float):
            values[field.name] = kind(1)
            continue
        shape = [SIZES[letter] if letter in SIZES else int(letter) for letter in kind.dim_str.split()]
        dtype = np.dtype(kind.dtypes[0])
        drawn = draw.random(shape) * 0.09 if dtype.kind == "f" else draw.integers(0, 2, shape)
        values[field.name] = drawn.astype(dtype)
    given = {"size": np.array([640, 480]), "rate": np.array([25, 1]), "state": np.array([0, 1, 2], np.uint8)}
    return cls(**{**values, **{name: value for name, value in given.items() if name in values}})


def curves(frames: int) -> Curves:
    """Curves of small numbers."""
    return replace(artifact(Curves), **{f.name: np.full((frames, _width(f)), 0.1, np.float32) for f in fields(Curves)})


def _width(field: Any) -> int:
    letter = field.type.dim_str.split()[1]
    return SIZES[letter] if letter in SIZES else int(letter)


def make_meshes(path: Path) -> None:
    """Meshes of twenty frames, in two pieces."""
    verts = np.random.default_rng(0).random((SIZES["V"], 3))
    faces = np.array([[0, 1, 2], [4, 5, 6]])
    options: dict[str, Any] = {"focal_px": 900.0, "rate": Fraction(25), "head_model": "anny", "head_hash": "ab"}
    with MeshesWriter(path, faces=faces, made_by={}, **options) as writer:
        for frame in range(20):
            writer.write(verts + 0.001 * frame, np.zeros(3), np.array([0.0, 0.0, 1.0]))
        writer.finish(curves(20))


def read_meshes(path: Path) -> list[Any]:
    """All that is in meshes."""
    meshes = Meshes.open(path)
    verts = np.stack(list(meshes.frames()))
    assert np.abs(verts).max() < 1e4
    assert 0 <= meshes.faces.min() <= meshes.faces.max() < verts.shape[1]
    return [meshes, verts]


def make_dataset(path: Path) -> None:
    """A prepared set of one clip."""
    place = path.parent / "clips" / "a"
    place.mkdir(parents=True, exist_ok=True)
    for name in ("clip.mp4", "track.npz", "head.npz"):
        (place / name).touch()
    row = {"name": "a", "person": "p", "status": "accepted", "head_model": "anny", "frames": 3, "figures": {"x": 0.5}}
    path.write_text(json.dumps({"kind": "dataset", "version": 1, "complete": True, "clips": [row]}))


def make_sidecar(path: Path) -> None:
    """What lies beside a film of normals, from the function that writes it."""
    film = path.with_suffix(".mkv")
    side = np.zeros((16, 16, 3), np.uint8)
    frame = NormalFrame(side, np.zeros((16, 16), np.float32), side[..., 0])
    info = NormalsInfo(Camera(90.0, 8.0, 8.0, 16, 16), Fraction(25), "ab", "warp", "a.meshes.npz")
    save_normals([frame], film, info)


def make_picture(path: Path) -> None:
    """A photo of 32 px, in the format that its name says."""
    register_heif_opener()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)).save(path)


def make_clip(path: Path) -> None:
    """A clip of four frames."""
    with VideoWriter(path, rate=Fraction(25)) as writer:
        for level in range(4):
            writer.write(np.full((32, 32, 3), 60 * level, np.uint8))


def read_clip(path: Path) -> Any:
    """What the tool looks at in a clip, and all of its frames."""
    return [probe(path), *read_frames(path)]


def make_network(path: Path) -> None:
    """A network of one layer."""
    tensors = {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4)}
    network_file.write(path, KIND, tensors, {"network": {"hidden": 16, "depth": 2}, "made_by": {}})


def read_network(path: Path) -> list[Any]:
    """Header, sizes and tensors."""
    header = network_file.read_header(path, KIND)
    try:
        config = NetworkConfig(**header["network"])
    except (KeyError, TypeError) as error:  # As `load_network` does.
        raise UserError(one_line(error)) from error
    return [header, config, *(tensor.numpy() for tensor in network_file.read_tensors(path).values())]


def read_scores(path: Path) -> Any:
    """Scores as a suite reads them: what is damaged is made again, with a line in the log."""
    known = read_record(path)
    try:
        return replace(scores_from_json(known["scores"]), values=np.zeros((0, 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(one_line(error)) from error


def make_scores(path: Path) -> None:
    """Scores of three frames."""
    scores = Scores("self", "a.mp4", "b.mp4", "c.png", np.full((3, len(NAMES)), 0.5), {"flip": "needs it"})
    document = {
        "kind": "scores",
        "version": Scores.VERSION,
        "mode": scores.mode,
        **{name: getattr(scores, name) for name in ("output", "target", "reference", "missing", "rows")},
        "windows": {"output": [], "target": []},
    }
    path.write_text(json.dumps({"key": "k", "scores": document}))


def read_catalogue(path: Path) -> Any:
    """The entries of a catalogue in EXPPORTRAIT_WEIGHTS, and where their files would lie."""
    os.environ["EXPPORTRAIT_WEIGHTS"] = str(path.parent)
    found = catalogue.catalogue.__wrapped__()
    return [[catalogue.locate(weight), catalogue.how_to_get(weight)] for weight in found]


def read_generator(path: Path) -> Any:
    """A generator's folder, as far as it is read before its weights are."""
    manifest = read_manifest(path.parent)
    verify(path.parent)
    return [manifest, read_folder(path.parent, "wan-portrait")]


def read_any_record(path: Path) -> Any:
    """A record, and the licences that it lists."""
    record = read_record(path)
    return [record, licence_map(record).lines()]


KIND = network_file.NetworkKind("fuzz", 1, "network", "Make one.")
JOBS = "reference,driving,output,size,expression_scale,smooth,seed,steps,grid\na.png,b.mp4,c.mp4,256,1.5,2,3,4,yes\n"
ROW = {"reference": "a.png", "driving": "b.mp4", "output": "c.mp4", "size": 256, "smooth": 1.5, "seed": 3, "grid": True}
SUITE = 'name = "s"\nstride = 2\nframes = 9\nsize = 256\nroot = "."\n[[self]]\nclip = "clip.mp4"\nname = "one"\n'
RECORD = {"key": "k", "sha256": "ab", "weights": [{"name": "mini", "licence": "MIT"}], "inputs": {"a": {"path": "b"}}}
MADE = Manifest("t2v", False, {"repo": "r", "revision": "1", "license": "MIT"})

PICTURES = ("png", "jpg", "tif", "webp", "gif", "avif", "heic")
KINDS = [
    Kind("a.track.npz", lambda path: _void(npz.save(artifact(Tracking), path, {})), lambda p: npz.load(Tracking, p)),
    Kind("a.head.npz", lambda path: _void(npz.save(artifact(HeadFit), path, {})), lambda p: npz.load(HeadFit, p)),
    Kind("a.meshes.npz", make_meshes, read_meshes),
    Kind("a.curves.csv", lambda path: _void(write_csv(curves(4), NAMED, path)), lambda p: read_csv(p, NAMED)),
    Kind("jobs.csv", lambda path: _void(path.write_text(JOBS)), lambda path: read_jobs(path, path.parent)),
    Kind("jobs.jsonl", lambda path: _void(path.write_text(json.dumps(ROW))), lambda path: read_jobs(path, path.parent)),
    Kind("suite.toml", lambda path: _void((path.parent / "clip.mp4").touch(), path.write_text(SUITE)), read_suite),
    Kind("dataset.json", make_dataset, lambda path: Dataset.open(path.parent)),
    Kind("generator.json", lambda path: write_manifest(path.parent, MADE), read_generator),
    Kind("a.normals.json", make_sidecar, lambda path: load_info(path.with_suffix(".mkv"))),
    Kind("record.json", lambda path: _void(path.write_text(json.dumps(RECORD))), read_any_record),
    Kind("scores.json", make_scores, read_scores),
    Kind("network.safetensors", make_network, read_network),
    Kind(
        "catalogue.toml",
        lambda path: _void(path.write_bytes(catalogue.weights_file(path.name).read_bytes())),
        read_catalogue,
    ),
    *[Kind(f"photo.{form}", make_picture, read_image) for form in PICTURES],
]
CLIP = Kind("clip.mp4", make_clip, read_clip)
"""Apart, because ffmpeg reads it, which takes longer."""


def _void(*_: object) -> None:
    """Drop what the writers return."""


def mutated(content: bytes, name: str, draw: random.Random) -> bytes:
    """A damaged file: by its form in three of four cases, by its bytes otherwise; pictures by their bytes alone."""
    forms: dict[str, Callable[[bytes, random.Random], bytes]] = {
        ".npz": of_npz,
        ".json": of_json,
        ".jsonl": of_json,
        ".csv": of_text,
        ".toml": of_text,
        ".safetensors": of_safetensors,
    }
    change = forms.get(Path(name).suffix, of_bytes) if draw.random() < 0.75 else of_bytes
    return change(content, draw)


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flipped bits, a cut, bytes put in, or two pieces swapped."""
    data, place = bytearray(content), draw.randrange(len(content))
    match draw.randrange(4):
        case 0:
            for _ in range(draw.choice((1, 8))):
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del data[place:]
        case 2:
            data[place:place] = draw.randbytes(draw.choice((1, 40)))
        case _:
            other = draw.randrange(len(content))
            length = min(16, len(data) - max(place, other))
            data[place : place + length], data[other : other + length] = (
                data[other : other + length],
                data[place : place + length],
            )
    return bytes(data)


def of_npz(content: bytes, draw: random.Random) -> bytes:
    """A member with an extreme number, of another type or shape, dropped, doubled, swapped, or with a false header."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        members = [(row.filename, archive.read(row)) for row in archive.infolist()]
    index = draw.randrange(len(members))
    name, data = members[index]
    array = np.lib.format.read_array(BytesIO(data), allow_pickle=False)
    types = ("U8", "U2") if array.dtype.kind == "U" else ("f8", "f2", "i4", "u1", "U8", "c8")
    match draw.randrange(8):
        case 0 | 1 | 2:
            members[index] = (name, _npy(_extreme(array, draw)))
        case 3:
            members[index] = (name, _npy(array.astype(draw.choice(types))))
        case 4:
            members[index] = (name, _npy(draw.choice((array[None], array.reshape(-1)[:1], array.reshape(-1)[:0]))))
        case 5:
            members[index : index + 1] = draw.choice(([], [members[index]] * 2))
        case 6:
            other = draw.randrange(len(members))
            members[index], members[other] = (name, members[other][1]), (members[other][0], data)
        case _:
            shape = draw.choice(("(-1,)", "(9999999999,)", "(99999999999999999999,)", "()", f"({'1,' * 60})", "(2.5,)"))
            kind = draw.choice(("<f4", "|O", "<U9", "|V4", "(4,)f4", "<f99"))
            members[index] = (name, _false(kind, shape))
    if name == "header.npy" and draw.random() < 0.5:
        members[index] = (name, _npy(np.frombuffer(of_json(array.tobytes(), draw), np.uint8)))
    made = BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for key, value in members:
            archive.writestr(zipfile.ZipInfo(key), value)
    return made.getvalue()


def _extreme(array: np.ndarray, draw: random.Random) -> np.ndarray:
    number = draw.choice((np.nan, np.inf, -np.inf, -1, 0, 2.0**31, -(2.0**31), 2.0**40, 1e30, -1e4))
    changed = array.copy()
    with np.errstate(all="ignore"):
        if changed.size and changed.dtype.kind in "iuf":
            places = slice(None) if draw.random() < 0.3 else draw.randrange(changed.size)
            changed.reshape(-1)[places] = np.float64(number).astype(changed.dtype)
    return changed


def _npy(array: np.ndarray) -> bytes:
    made = BytesIO()
    np.lib.format.write_array(made, array, allow_pickle=False)
    return made.getvalue()


def _false(kind: str, shape: str) -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 64


def of_json(content: bytes, draw: random.Random) -> bytes:
    """A value that is extreme or of another type, a key dropped or doubled, deep nesting, or another coding."""
    tree = json.loads(content)
    text = json.dumps(tree)
    match draw.randrange(10):
        case 0:
            key = draw.choice(sorted(_keys(tree)) or ["a"])
            return text.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1).encode()
        case 1:
            deep = draw.choice(("[" * 150_000, '{"a":' * 150_000, "[" * 500 + "]" * 500))
            return draw.choice((deep, text[:-1] + f', "deep": {deep}}}')).encode()
        case 2:
            return draw.choice((text.encode("utf-16"), b"\xff\xfe" + text.encode(), b"", b"null", b"[]", b"3", b'""'))
    parents = [node for node in _nodes(tree) if isinstance(node, (dict, list)) and node]
    node = draw.choice(parents)
    key = draw.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
    if draw.random() < 0.2:
        del node[key]
        return json.dumps(tree).encode()
    value = draw.choice([*EXTREMES, *STRANGE])
    is_number = value in EXTREMES and isinstance(value, str)
    node[key] = "@@" if is_number else value
    return json.dumps(tree).replace('"@@"', str(value) if is_number else '"@@"').encode()


def _nodes(tree: Any) -> list[Any]:
    inside = list(tree.values()) if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    return [tree, *(node for each in inside for node in _nodes(each))]


def _keys(tree: Any) -> set[str]:
    return {key for node in _nodes(tree) if isinstance(node, dict) for key in node}


def of_text(content: bytes, draw: random.Random) -> bytes:
    """A word of a table or list that is extreme or of another type; a line dropped, doubled or swapped."""
    lines = content.decode().split("\n")
    index = draw.randrange(len(lines))
    match draw.randrange(8):
        case 0:
            del lines[index]
        case 1:
            lines.insert(index, lines[index])
        case 2:
            other = draw.randrange(len(lines))
            lines[index], lines[other] = lines[other], lines[index]
        case 3:
            lines[index] += draw.choice((",", ";", '"', "=", "[" * 150_000, "a" * 140_000, "\0", "\x1b[2J", "\u202e"))
        case _:
            ends = [at for at, letter in enumerate(lines[index]) if letter in ',=" '] + [len(lines[index])]
            first = draw.choice([-1, *ends])
            last = next((end for end in ends if end > first), len(lines[index]))
            value = draw.choice([*EXTREMES, "nan", "inf", '"x"', "[]", "{}", "true", "", "/etc", "..", "é" * 200])
            lines[index] = f"{lines[index][: first + 1]}{value}{lines[index][last:]}"
    return "\n".join(lines).encode()


def of_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A false table of tensors, or an extreme number in one."""
    length = int.from_bytes(content[:8], "little")
    table, data = content[8 : 8 + length], bytearray(content[8 + length :])
    if draw.random() < 0.3:
        place = draw.randrange(len(data) // 2) * 2
        data[place : place + 2] = np.float16(draw.choice((np.nan, np.inf, -np.inf))).tobytes()
    elif draw.random() < 0.4:
        tree = json.loads(table)
        inner = of_json(tree["__metadata__"]["expportrait"].encode(), draw)
        tree["__metadata__"]["expportrait"] = inner.decode("latin-1")
        table = json.dumps(tree).encode()
    else:
        table = of_json(table, draw)
    said = draw.choice((len(table), len(table), len(table), 2**62, len(content), 0))
    return said.to_bytes(8, "little") + table + data


def check_numbers(value: Any, name: str = "") -> None:
    """Raise AssertionError at a number that nothing can be done with, in whatever was read."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf":
        known = value[~np.isnan(value)] if name in ("shoulders", "dynamic_loss") else value
        assert np.isfinite(known).all() and (np.abs(known.astype(np.float64)) < 1e13).all(), name
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        assert abs(value) < 1e20, name
    elif is_dataclass(value):
        for field in fields(value):
            check_numbers(getattr(value, field.name), field.name)
    elif isinstance(value, (list, tuple)):
        for each in value:
            check_numbers(each, name)


def outcome(kind: Kind, path: Path) -> str:
    """What became of one file: line, accepted, traceback or over limit."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Of this process's own time, so that busy neighbours do not count.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        check_numbers(kind.read(path))
        found = "accepted"
    except UserError as error:
        found = "line" if "\n" not in str(error) else "traceback"
    except TooLongError:
        found = "over limit"
    except Exception:
        traceback.print_exc(limit=-4)
        found = "traceback"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return "over limit" if grown_mb > MEGABYTES else found


def fuzz(kind: Kind, count: int, seed: int) -> Counter[str]:
    """Outcomes of `count` damaged files of one kind, read one after the other in a process with bounded memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(child, 0)
        # A process that died has told nothing, and died of a file.
        return Counter(json.loads(told) if status == 0 else {"traceback": 1})
    code = 1
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + LIMIT, hard))
        signal.signal(signal.SIGPROF, _stop)
        found, draw = Counter[str](), random.Random(f"{seed} {kind.name}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kind.name
            kind.make(path)
            content = path.read_bytes()
            assert outcome(kind, path) == "accepted", f"{kind.name} as it was made"
            for number in range(count):
                path.write_bytes(mutated(content, kind.name, draw))
                what = outcome(kind, path)
                found[what] += 1
                if what in ("traceback", "over limit"):
                    print(f"{kind.name}, file {number}: {what}", file=sys.stderr)
        os.write(writing, json.dumps(found).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _stop(*_: object) -> None:
    raise TooLongError


def main(count: int = 500, seed: int = 0) -> int:
    """Print the table; 1 if anything went wrong."""
    columns = ("line", "accepted", "traceback", "over limit")
    print(f"{'kind':<22}" + "".join(f"{column:>12}" for column in columns))
    bad = 0
    for kind in [*KINDS, CLIP]:
        found = fuzz(kind, count, seed)
        print(f"{kind.name:<22}" + "".join(f"{found[column]:>12}" for column in columns), flush=True)
        bad += found["traceback"] + found["over limit"]
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
