"""Photos written byte by byte: what no library that the tests have would write."""

import struct
import zlib

import numpy as np

D50 = np.array([0.9642, 1.0, 0.8249])
# Linear RGB to XYZ under D50, and the curve that encodes linear light; published figures (Lindbloom; SMPTE EG 432).
TO_XYZ = {
    "sRGB": [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]],
    "AdobeRGB": [
        [0.6097559, 0.2052401, 0.1492240],
        [0.3111242, 0.6256560, 0.0632197],
        [0.0194811, 0.0608902, 0.7448387],
    ],
    "ProPhoto": [[0.7976749, 0.1351917, 0.0313534], [0.2880402, 0.7118741, 0.0000857], [0.0, 0.0, 0.8252100]],
    "P3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
}


def light(rgb: np.ndarray) -> np.ndarray:
    """Linear light of 8-bit sRGB."""
    v = rgb / 255
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def srgb(linear: np.ndarray) -> np.ndarray:
    v = np.clip(linear, 0, 1)
    return np.where(v <= 0.0031308, 12.92 * v, 1.055 * v ** (1 / 2.4) - 0.055)


def in_space(rgb: np.ndarray, space: str, gamma: float | None) -> np.ndarray:
    """The colours of an 8-bit sRGB picture in another space, 0 to 1; without a gamma, by the curve of sRGB."""
    linear = light(rgb) @ (np.linalg.inv(TO_XYZ[space]) @ np.array(TO_XYZ["sRGB"])).T
    linear = np.clip(linear, 0, 1)
    return srgb(linear) if gamma is None else linear ** (1 / gamma)


def _tag_xyz(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))


def _tag_curve(gamma: float | None) -> bytes:
    if gamma is None:
        values = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        return b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, *(round(v * 65536) for v in values))
    if gamma == 1:
        return b"curv\0\0\0\0" + struct.pack(">I", 0)
    points = np.rint(65535 * np.linspace(0, 1, 1024) ** gamma).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", 1024) + points.tobytes()


def _tag_text(kind: bytes, text: str) -> bytes:
    if kind == b"desc":
        return b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text.encode() + b"\0" + bytes(78)
    return b"text\0\0\0\0" + text.encode() + b"\0"


def profile(space: str = "sRGB", gamma: float | None = None, *, grey: bool = False, more: dict | None = None) -> bytes:
    """An ICC profile of version 2 (4 when a curve has parameters) made of curves and a matrix."""
    tags = {b"desc": _tag_text(b"desc", space), b"cprt": _tag_text(b"text", "none"), b"wtpt": _tag_xyz(D50)}
    names = [b"kTRC"] if grey else [b"rTRC", b"gTRC", b"bTRC"]
    tags |= dict.fromkeys(names, _tag_curve(gamma))
    if not grey:
        tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_tag_xyz, np.array(TO_XYZ[space]).T), strict=True))
    tags |= more or {}
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, at + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    head = struct.pack(
        ">I4sI4s4s4s12s4s4sIIIQI3i48s",
        at + len(body),
        b"\0\0\0\0",
        0x02400000 if gamma is not None else 0x04200000,
        b"mntr",
        b"GRAY" if grey else b"RGB ",
        b"XYZ ",
        bytes(12),
        b"acsp",
        *(b"\0\0\0\0", 0, 0, 0, 0, 0),
        *(round(v * 65536) for v in D50),
        bytes(48),
    )
    return head[:128] + table + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: np.ndarray, *chunks: bytes, icc: bytes = b"", end: bytes = b"") -> bytes:
    """A PNG of 8- or 16-bit samples of 1 to 4 bands; `chunks` come before the pixels."""
    height, width, bands = samples.shape
    depth = 16 if samples.dtype == np.uint16 else 8
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[bands]
    rows = samples.astype(">u2" if depth == 16 else np.uint8).reshape(height, -1).view(np.uint8).reshape(height, -1)
    data = zlib.compress(np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes(), 1)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    icc = chunk(b"iCCP", b"photo\0\0" + zlib.compress(icc)) if icc else b""
    whole = [b"\x89PNG\r\n\x1a\n", head, icc, *chunks, chunk(b"IDAT", data), end, chunk(b"IEND", b"")]
    return b"".join(whole)


def deep(values: np.ndarray) -> np.ndarray:
    return np.rint(65535 * values).astype(np.uint16)


def shallow(values: np.ndarray) -> np.ndarray:
    return np.rint(255 * values).astype(np.uint8)


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIE Lab under D50 of linear sRGB."""
    ratio = linear @ np.array(TO_XYZ["sRGB"]).T / D50
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (24389 / 27 * ratio + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def printed(inks: np.ndarray) -> np.ndarray:
    """The 8-bit sRGB of inks from 0 to 1 by `ink_profile`: brighter than without a profile."""
    return np.rint(255 * ((1 - inks[..., :3]) * (1 - inks[..., 3:])) ** 0.7)


def ink_profile(points: int = 13) -> bytes:
    """An ICC profile of CMYK, made of a table with `points` to an axis (`mft2`, Lab in the coding of version 2)."""
    axes = np.stack(np.meshgrid(*[np.linspace(0, 1, points)] * 4, indexing="ij"), -1)
    lab = _lab(light(printed(axes)))
    coded = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], -1)
    unit = struct.pack(">9i", *(65536 if k % 4 == 0 else 0 for k in range(9)))
    table = b"mft2\0\0\0\0" + bytes([4, 3, points, 0]) + unit + struct.pack(">HH", 2, 2)
    table += np.array([0, 65535] * 4, ">u2").tobytes()
    table += np.clip(np.rint(coded), 0, 65535).astype(">u2").tobytes() + np.array([0, 65535] * 3, ">u2").tobytes()
    made = bytearray(profile("sRGB", 2.2, grey=True, more={b"A2B0": table}))
    made[12:24] = b"prtrCMYKLab "
    return bytes(made)
