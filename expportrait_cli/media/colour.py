"""Colour spaces of photos, and their conversion to sRGB."""

import io
import logging
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8, UInt16
from PIL import Image, ImageCms

from expportrait_cli.errors import InputError, one_line

log = logging.getLogger(__name__)

Samples = UInt8[np.ndarray, "H W C"] | UInt16[np.ndarray, "H W C"]
Rows = Callable[[int, int], Samples]
"""Function that returns grey, RGB or CMYK samples from a first row to before an end row."""
PIECE_ROWS = 64
"""Number of rows that are converted at a time, to avoid a second copy of a 16-bit picture."""
Curve = Callable[[Float64[np.ndarray, " N"]], Float64[np.ndarray, " N"]]

D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
# Colour primaries and white by their code in ITU-T H.273, table 2; code 2 means unspecified.
PRIMARIES = {
    1: (SRGB, D65),
    2: (SRGB, D65),
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), (0.310, 0.316)),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: (((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), D65),
    7: (((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), D65),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    11: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), (0.314, 0.351)),
    12: (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65),
    22: (((0.63, 0.34), (0.295, 0.605), (0.155, 0.077)), D65),
}
HDR = {16: "PQ", 18: "HLG"}
# Exceptions of Pillow and pillow-heif for damaged files.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
)
EXIF, COLOUR_SPACE, INTEROPERABILITY = 0x8769, 0xA001, 0xA005


@lru_cache(maxsize=1024)
def say(path: str | os.PathLike[str], what: str) -> None:
    """Log a note about a photo only the first time that it occurs."""
    log.info("%s %s", path, what)


@dataclass(frozen=True)
class Space:
    """An RGB space: the curves map samples (0..1) to linear light, then the matrix maps them to linear sRGB."""

    curves: tuple[Curve, Curve, Curve]
    matrix: Float64[np.ndarray, "3 3"]


def linear_srgb(samples: np.ndarray) -> np.ndarray:
    """Linear light (0..1) of sRGB samples (0..1), IEC 61966-2-1."""
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def xyz(primaries: Sequence[Sequence[float]], white: Sequence[float]) -> Float64[np.ndarray, "3 3"]:
    """Matrix from linear RGB to XYZ under D50, adapted by Bradford's method as in ICC profiles."""
    columns = np.array([(x / y, 1.0, (1 - x - y) / y) for x, y in (*primaries, white, D50)]).T
    to_xyz = columns[:, :3] * np.linalg.solve(columns[:, :3], columns[:, 3])
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gains = (bradford @ columns[:, 4]) / (bradford @ columns[:, 3])
    return np.linalg.inv(bradford) @ (gains[:, None] * bradford) @ to_xyz


TO_SRGB = np.linalg.inv(xyz(SRGB, D65))


def space(primaries: Sequence[Sequence[float]], white: Sequence[float], curve: Curve) -> Space:
    """Make a space from the chromaticities of primaries and white, and one curve."""
    return Space((curve, curve, curve), TO_SRGB @ xyz(primaries, white))


def power(gamma: float) -> Curve:
    """Make the curve x^gamma."""
    return lambda samples: samples**gamma


def declared(path: str | os.PathLike[str], image: Image.Image) -> bytes | Space | None:
    """Colour space of a loaded photo from its tags: an ICC profile, else a space; None for sRGB.

    The order is that of the PNG specification, 3rd edition: cICP, iCCP, sRGB, gAMA and cHRM. Without any of them,
    Adobe RGB may be stated in EXIF.

    Raises:
        InputError: the photo is HDR, whose conversion needs a choice of the user.
    """
    profile = image.info.get("icc_profile") or (_bmp_profile(path) if image.format == "BMP" else None)
    if not profile and "icc_profile" in image.info:
        say(path, "has a colour profile that cannot be used (it is damaged): it is read as sRGB.")
    code = _code_points(path, image)
    # The tag `cicp` of ICC profiles from version 4.4 on.
    transfer = code[1] if code else int.from_bytes(_profile_tags(profile or b"").get(b"cicp", b"")[9:10], "big")
    if transfer in HDR:
        raise InputError(f"{path} is an HDR photo ({HDR[transfer]}). Export it as SDR, e.g. as a JPEG file in sRGB.")
    if profile and not (code and image.format == "PNG"):
        return profile
    if code:
        return _coded(code)
    if image.format == "PNG" and "srgb" not in image.info and ("gamma" in image.info or "chromaticity" in image.info):
        return _calibrated(image.info.get("gamma"), image.info.get("chromaticity"))
    return space(ADOBE, D65, power(563 / 256)) if _is_adobe_by_exif(image) else None


def exif(image: Image.Image) -> Image.Exif:
    """EXIF of a photo; empty if it is damaged, because the picture can still be read."""
    try:
        return image.getexif()
    except BROKEN:
        return Image.Exif()


def _is_adobe_by_exif(image: Image.Image) -> bool:
    tags = exif(image)
    try:
        index = str(tags.get_ifd(INTEROPERABILITY).get(1)) if tags else ""
        return index.strip("\0 ") == "R03" or tags.get_ifd(EXIF).get(COLOUR_SPACE) == 2
    except BROKEN:
        return False


def _calibrated(gamma: float | None, chromaticity: Sequence[float] | None) -> Space | None:
    """Colour space from gAMA and cHRM; None if they describe sRGB, within libpng's tolerance of 5 %."""
    usual = (*D65, *sum(SRGB, ()))
    flat = tuple(chromaticity or usual)
    is_usual = gamma is None or not 0.01 < gamma < 10 or abs(gamma * 2.2 - 1) < 0.05
    curve = linear_srgb if gamma is None or not 0.01 < gamma < 10 else power(1 / gamma)
    if is_usual and np.allclose(flat, usual, rtol=0, atol=0.005):
        return None
    white, *primaries = zip(flat[::2], flat[1::2], strict=True)
    corners = np.array([(x, y, 1) for x, y in primaries])
    if min(y for _, y in (white, *primaries)) <= 0.001 or abs(np.linalg.det(corners)) < 1e-3:
        return None if is_usual else space(SRGB, D65, curve)
    return space(primaries, white, curve)


def _coded(code: tuple[int, int]) -> Space | None:
    """Colour space from the H.273 codes of primaries and transfer; the curves of SDR video are read as sRGB's."""
    primaries, white = PRIMARIES.get(code[0], PRIMARIES[1])
    curve = {4: power(2.2), 5: power(2.8), 8: power(1.0)}.get(code[1], linear_srgb)
    return None if primaries == SRGB and curve is linear_srgb else space(primaries, white, curve)


def _code_points(path: str | os.PathLike[str], image: Image.Image) -> tuple[int, int] | None:
    match image.format:
        case "PNG":
            chunk = next((chunk for chunk, _ in png_chunks(path) if chunk[:4] == b"cICP"), b"")
            if len(chunk) == 8 and chunk[7] == 0:
                raise InputError(f"{path} holds samples of video range. Export it as a usual PNG or JPEG file.")
            return (chunk[4], chunk[5]) if len(chunk) == 8 else None
        case "HEIF":
            nclx = image.info.get("nclx_profile")
            return (int(nclx["color_primaries"]), int(nclx["transfer_characteristics"])) if nclx else None
        case "AVIF":
            return _avif_code(Path(path).read_bytes())
    return None


def png_chunks(path: str | os.PathLike[str]) -> Iterator[tuple[memoryview, int]]:
    """Yield name and body of each complete chunk of a PNG, and its stored checksum."""
    data, at = memoryview(Path(path).read_bytes()), 8
    while (end := at + 8 + int.from_bytes(data[at : at + 4], "big")) + 4 <= len(data):
        yield data[at + 4 : end], int.from_bytes(data[end : end + 4], "big")
        at = end + 4


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield type and body of consecutive ISO 14496-12 boxes, up to the first incomplete one."""
    at = 0
    while at + 8 <= len(data):
        length, start = int.from_bytes(data[at : at + 4], "big"), at + 8
        if length == 1:
            length, start = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = len(data) if length == 0 else at + length
        if not start <= end <= len(data):
            return
        yield data[at + 4 : at + 8], data[start:end]
        at = end


def _avif_code(data: bytes) -> tuple[int, int] | None:
    """H.273 codes of primaries and transfer in the `nclx` property of the primary item (ISO 23008-12); else None."""
    meta = dict(boxes(dict(boxes(data)).get(b"meta", b"")[4:]))
    pitm, properties = meta.get(b"pitm", b""), dict(boxes(meta.get(b"iprp", b"")))
    listed = list(boxes(properties.get(b"ipco", b"")))
    primary = int.from_bytes(pitm[4:], "big")
    try:
        mine = _associated(properties.get(b"ipma", b""), primary)
    except (IndexError, struct.error):
        return None
    for kind, body in (listed[index - 1] for index in mine if 0 < index <= len(listed)):
        if kind == b"colr" and body[:4] == b"nclx" and len(body) >= 8:
            return struct.unpack_from(">HH", body, 4)
    return None


def _associated(ipma: bytes, item: int) -> list[int]:
    """Indices, from 1, of an item's properties."""
    version, wide, at = ipma[0], ipma[3] & 1, 8
    for _ in range(struct.unpack_from(">I", ipma, 4)[0]):
        found = struct.unpack_from(">I" if version else ">H", ipma, at)[0]
        at += 4 if version else 2
        count, step = ipma[at], 2 if wide else 1
        numbers = [int.from_bytes(ipma[at + 1 + k * step : at + 1 + (k + 1) * step], "big") for k in range(count)]
        if found == item:
            return [number & (0x7FFF if wide else 0x7F) for number in numbers]
        at += 1 + count * step
    return []


def _bmp_profile(path: str | os.PathLike[str]) -> bytes | None:
    data = Path(path).read_bytes()
    if len(data) < 138 or struct.unpack_from("<I", data, 14)[0] != 124 or data[70:74] != b"DEBM":
        return None
    offset, size = struct.unpack_from("<II", data, 126)
    return data[14 + offset : 14 + offset + size]


def _profile_tags(profile: bytes) -> dict[bytes, bytes]:
    tags = {}
    count = int.from_bytes(profile[128:132], "big")
    for at in range(132, min(132 + 12 * count, len(profile) - 11), 12):
        name, offset, size = struct.unpack_from(">4sII", profile, at)
        tags[name] = profile[offset : offset + size]
    return tags


def profile_space(profile: bytes, *, is_grey: bool) -> Space | None:
    """Space of an ICC profile of curves and matrix (ICC.1:2022, 9.2); None for one of tables, damaged or unsuitable."""
    tags, kind = _profile_tags(profile), profile[16:24]
    if any(name in tags for name in (b"A2B0", b"A2B1", b"D2B0", b"D2B1")):
        return None
    try:
        if kind == b"GRAYXYZ " and is_grey:
            curve = _curve(tags[b"kTRC"])
            return Space((curve, curve, curve), np.eye(3))
        if kind != b"RGB XYZ ":
            return None
        red, green, blue = (_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
        columns = [struct.unpack_from(">3i", tags[name], 8) for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
    except (KeyError, IndexError, struct.error):
        return None
    return Space((red, green, blue), TO_SRGB @ (np.array(columns, np.float64).T / 65536))


def _curve(tag: bytes) -> Curve:
    if tag[:4] == b"curv":
        count = struct.unpack_from(">I", tag, 8)[0]
        points = np.array(struct.unpack_from(f">{count}H", tag, 12))
        if count < 2:
            return power(points[0] / 256 if count else 1.0)
        return lambda samples: np.interp(samples, np.linspace(0, 1, count), points / 65535)
    kind = struct.unpack_from(">H", tag, 8)[0]
    g, *rest = (value / 65536 for value in struct.unpack_from(f">{(1, 3, 4, 5, 7)[kind]}i", tag, 12))
    # Every kind as y = (a x + b)^g + e from x = d on, and c x + f below; ICC.1:2022, table 68.
    a, b, c, d, e, f = (*rest, 0, 0, 0)[:6] if kind >= 3 else (*(rest[:2] or (1, 0)), 0, 0, *(rest[2:] * 2 or (0, 0)))
    d = -b / a if kind in (1, 2) and a else d
    return lambda x: np.where(x >= d, np.maximum(a * x + b, 0) ** g + e, c * x + f)


@lru_cache(maxsize=1)
def _encoded() -> UInt8[np.ndarray, " N"]:
    """Lookup table from 16-bit linear samples to 8-bit sRGB."""
    linear = np.linspace(0, 1, 65536)
    bent = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * bent).astype(np.uint8)


@lru_cache(maxsize=1)
def _rounded() -> UInt8[np.ndarray, " N"]:
    """Lookup table that rounds 16-bit samples to 8 bits."""
    return np.rint(np.arange(65536) / 257).astype(np.uint8)


def converted(samples: Samples, meaning: Space) -> UInt8[np.ndarray, "H W 3"]:
    """Convert grey or RGB samples to sRGB; needs several times their memory, so convert rows in pieces."""
    depth = 256 if samples.dtype == np.uint8 else 65536
    tables = [_table(curve, depth) for curve in meaning.curves]
    channels = [table[samples[..., min(k, samples.shape[2] - 1)]] for k, table in enumerate(tables)]
    linear = np.stack(channels, -1) @ meaning.matrix.T.astype(np.float32)
    return _encoded()[np.rint(np.clip(linear, 0, 1) * 65535).astype(np.uint16)]


@lru_cache(maxsize=6)
def _table(curve: Curve, depth: int) -> Float32[np.ndarray, " N"]:
    with np.errstate(all="ignore"):
        return np.clip(np.nan_to_num(curve(np.linspace(0, 1, depth))), 0, 1).astype(np.float32)


def deep_to_srgb(
    path: str | os.PathLike[str], size: tuple[int, int], rows: Rows, meaning: bytes | Space | None
) -> Image.Image:
    """Convert 16-bit samples to sRGB; for profiles of tables they are rounded to 8 bits first."""
    width, height = size
    bands = rows(0, 1).shape[2]
    meant = profile_space(meaning, is_grey=bands == 1) if isinstance(meaning, bytes) and bands < 4 else meaning
    out = np.empty((height, width, 3 if isinstance(meant, Space) else bands), np.uint8)
    for top in range(0, height, PIECE_ROWS):
        samples = rows(top, min(top + PIECE_ROWS, height))
        out[top : top + PIECE_ROWS] = converted(samples, meant) if isinstance(meant, Space) else _rounded()[samples]
    if isinstance(meant, Space):
        return Image.fromarray(out)
    return to_srgb(path, Image.frombuffer({1: "L", 3: "RGB", 4: "CMYK"}[bands], size, out), meaning)


def to_srgb(path: str | os.PathLike[str], image: Image.Image, meaning: bytes | Space | None) -> Image.Image:
    """Convert an 8-bit picture to sRGB, and blend transparent pixels with white."""
    is_grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    if isinstance(meaning, bytes) and image.mode != "LAB":
        try:
            if image.mode != "CMYK":
                image = image.convert("L" if is_grey and meaning[16:20] == b"GRAY" else "RGB")
            source = ImageCms.ImageCmsProfile(io.BytesIO(meaning))
            found = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return found or image.convert("RGB")
        except (ImageCms.PyCMSError, OSError) as error:
            say(path, f"has a colour profile that cannot be used ({one_line(error)}): it is read as sRGB.")
    elif image.mode == "CMYK":
        say(path, "is CMYK without a colour profile: its colours are near what they should be, no more.")
    image = image if image.mode == "RGB" else image.convert("RGB")
    if not isinstance(meaning, Space):
        return image
    samples = np.asarray(image)
    return deep_to_srgb(path, image.size, lambda top, bottom: samples[top:bottom], meaning)
