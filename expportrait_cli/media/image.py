"""Photos in, pictures out."""

import io
import logging
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from expportrait_cli.artifacts.files import atomic_path, check_file
from expportrait_cli.errors import InputError, one_line
from expportrait_cli.media import colour

log = logging.getLogger(__name__)

MAX_PIXELS = 8192 * 8192
MAX_SCANS = 100
PIECE_ROWS = 64
"""Rows of deep pictures that are converted at a time, so that no second copy of the picture is held."""

ORIENTATION = 0x0112
# What undoes each EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Beginnings of files, as regular expressions, by the name that Pillow has for the format.
READ = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "TIFF": rb"II[\x2a\x2b]\0(?!.{4}CR)|MM\0[\x2a\x2b]",
    "AVIF": rb"....ftyp(avi[fs]|(mif1|msf1|miaf).{4}(.{4}){0,9}?avi[fs])",
    "HEIF": rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)",
}
# Beginnings of other files, and what they are with what to do about it; the first that fits counts.
REFUSED = {
    rb"II\x2a\0.{4}CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM": "RAW",
    rb"\s*(\xef\xbb\xbf)?\s*<(svg|[?!][^\0]*?<svg)": "an SVG drawing. Export it as a PNG file",
    rb"%!PS|\xc5\xd0\xd3\xc6": "a PostScript drawing. Export it as a PNG file",
    rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF": "a Windows metafile. Export it as a PNG file",
    rb"%PDF-": "a PDF document. Export its page as a PNG file",
    rb"8BPS": "a Photoshop file. Export it as a PNG or TIFF file",
    rb"gimp xcf": "a GIMP file. Export it as a PNG or TIFF file",
    rb"\0\0[\x01\x02]\0[^\0]\0|icns": "an icon. Give a photo",
    rb"\xff\x0a|\0\0\0\x0cJXL \r\n": "a JPEG XL file. Convert it to PNG, e.g. with djxl",
    rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51": "a JPEG 2000 file. Convert it to PNG",
    rb"II\xbc\x01": "a JPEG XR file. Convert it to PNG",
    rb"#\?R|\x76\x2f\x31\x01": "a picture in HDR. Export it as SDR, e.g. as a PNG file in sRGB",
    rb"P[1-7FfP]\s|qoif|DDS |SIMPLE  =|\x0a[\x02-\x05]\x01[\x01\x02\x04\x08]|\x59\xa6\x6a\x95|BPG\xfb|FLIF|[SX]DP[XS]"
    rb"|\x8a[MJ]NG\r\n|.{128}DICM": "a picture of a kind that is not read. Convert it to PNG",
    rb"PK\x03\x04|\x1f\x8b": "an archive. Unpack it and give the photo inside",
    rb"(?i:\s*<(!doctype )?html)": "a web page. Save the photo itself",
    rb"(?!YUV4MPEG2)[\t\n\r\x20-\x7e\x80-\xff]+$": "a text file. Give a photo or a clip",
}
RAW = "a camera's raw picture. Develop it and export it as a JPEG or a 16-bit TIFF file"
# TIFF tags and values, TIFF 6.0 and DNG 1.7.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, PREDICTOR = 254, 258, 259, 262, 277, 284, 317
SUB_PICTURES, EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION = 330, 338, 339, 50706
PIECES = ((273, 279), (324, 325))
"""Where strips or tiles lie, and how long they are."""
RAW_PHOTOMETRIC, RAW_COMPRESSION = (32803, 34892), (34713, 32767, 32769, 65535, 65000, 262)
# What Pillow and pillow-heif raise on broken files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, KeyError, IndexError, TypeError, struct.error)


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Read a photo as upright sRGB, whatever its name ends in.

    EXIF orientation is applied, mirrored ones too. Transparency is laid on white, as a page would show it: pixels
    under it are often black and would leave a dark fringe. Colours go through the profile of the photo, or what else
    it says of them, at the depth that it has; 16-bit samples are then scaled to 8, not clipped. Of several pages or
    an animation, the first. What had to be chosen is said once, in a line of the log.

    Raises:
        InputError: missing, empty, no photo, of a kind that is not read, cut off, HDR, too small or too large.
    """
    form = _form(path)
    if not form:
        raise InputError(f"{path} is not a photo. Give a PNG, JPEG, TIFF, WebP or HEIC file.")
    with _opened(path, form) as image:
        if form != "GIF" and getattr(image, "is_animated", False):
            _say(path, f"holds several pictures: the {'main' if form == 'HEIF' else 'first'} one is read.")
        deep = _deep(path, form, image)
        if deep is None:
            _load(path, form, image)
        meaning = colour.declared(path, image)
        rgb = _to_rgb(path, image, meaning) if deep is None else _from_deep(path, *deep, meaning)
        del deep
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        return np.array(rgb if turn is None else rgb.transpose(turn))


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tell a photo from everything else by its content; an animated GIF or PNG is a clip.

    Raises:
        InputError: missing, a photo that cannot be opened or of a kind that is not read, or an animated WebP or AVIF,
            which nothing here can read: taken for a photo it would be a film of one frame.
    """
    form = _form(path)
    if not form:
        return False
    with _opened(path, form) as image:
        is_animated = getattr(image, "is_animated", False)
        frames = getattr(image, "n_frames", 1) if form in ("WEBP", "AVIF") else 1
    if frames > 1:
        raise InputError(
            f"{path} is an animation of {frames} pictures. Convert it to a GIF, an animated PNG or an MP4."
        )
    # Of a TIFF of several pages and the like, the first is the photo.
    return not is_animated or form not in ("GIF", "PNG")


def write_png(path: str | os.PathLike[str], rgb: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a PNG; it is there in full or not at all."""
    with atomic_path(path) as partial:
        Image.fromarray(np.ascontiguousarray(rgb)).save(partial, format="PNG")
    return Path(path)


@lru_cache(maxsize=1024)
def _say(path: str | os.PathLike[str], what: str) -> None:
    """Say it once, however often the photo is read."""
    log.info("%s %s", path, what)


def _form(path: str | os.PathLike[str]) -> str:
    """The format of a photo, empty when it is something else."""
    check_file(path)
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} could not be read: {error.strerror}.") from error
    form = next((name for name, start in READ.items() if re.match(start, head, re.DOTALL)), "")
    if form == "TIFF":
        _check_tiff(path)
    if not form:
        for start, what in REFUSED.items():
            if re.match(start, head, re.DOTALL):
                raise InputError(f"{path} is {RAW if what == 'RAW' else what}.")
    return form


@contextmanager
def _opened(path: str | os.PathLike[str], form: str) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        try:
            image = Image.open(path, formats=[form])
        except Image.DecompressionBombError:
            raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels. Scale it down.") from None
        except BROKEN as error:
            raise _refusal(path, form, error) from error
        with image:
            _check_size(path, *image.size)
            yield image


def _check_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    if min(width, height) < 16:
        raise InputError(f"{path} is {width}x{height} px: too small to show a face. Give a photo of 256 px or more.")
    if width * height > MAX_PIXELS:
        raise InputError(f"{path} is {width}x{height} px, more than {MAX_PIXELS // 10**6} megapixels. Scale it down.")


def _load(path: str | os.PathLike[str], form: str, image: Image.Image) -> None:
    if form == "JPEG":
        # In coded samples 0xff is never followed by the marker of a scan, 0xda; every scan goes over all pixels.
        data = np.fromfile(path, np.uint8)
        pairs = (data[start : len(data) - (len(data) - start) % 2].view("<u2") for start in (0, 1))
        scans = sum(int(np.count_nonzero(pair == 0xDAFF)) for pair in pairs)
        if scans > MAX_SCANS or scans * image.width * image.height > 30 * MAX_PIXELS:
            raise InputError(f"{path} is coded in {scans} scans, a usual JPEG in 10. Save it anew, or as a PNG file.")
    try:
        image.load()
    except BROKEN as error:
        raise _refusal(path, form, error, image) from error


def _refusal(path: str | os.PathLike[str], form: str, error: Exception, image: Image.Image | None = None) -> InputError:
    data = Path(path).read_bytes()
    length = _whole_length(form, data)
    if len(data) >= length:
        if form == "TIFF" and isinstance(error, UnidentifiedImageError):
            return InputError(f"{path} is a TIFF file of a kind that is not read. Save it as 8-bit RGB, or as PNG.")
        what = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else one_line(error)
        return InputError(f"{path} is damaged ({what}). Copy or download it again.")
    missing = f"{len(data)} of its {length} bytes are there" if length < UNKNOWN else "its end is missing"
    if image is not None and image.im is not None and not image.info.get("interlace"):
        # Rows that were not decoded are still empty.
        box = image.im.getbbox()
        share = 1 - box[3] / image.height if box else 0.0
        missing = f"the lower {share:.0%} of the picture are missing" if 0.005 < share < 1 else missing
    return InputError(f"{path} is cut off: {missing}. Copy or download it again.")


UNKNOWN = 1 << 62


def _whole_length(form: str, data: bytes) -> int:
    """How long the file is by its own account; `UNKNOWN` when only its end is missing, 0 when it is whole."""
    match form:
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8
        case "BMP":
            return int.from_bytes(data[2:6], "little")
        case "AVIF" | "HEIF":
            at = 0
            while at + 8 <= len(data) and (length := int.from_bytes(data[at : at + 4], "big")) > 1:
                at += length
            return at
        case "TIFF":
            tags = _tiff_tags(data)
            ends = [sum(piece) for pair in PIECES for piece in zip(*_lists(tags, pair), strict=False)]
            return max(ends, default=UNKNOWN)
    end = {"PNG": b"IEND", "GIF": b";", "JPEG": b"\xff\xd9"}[form]
    return 0 if end in data[-64:] else UNKNOWN


Tags = TiffImagePlugin.ImageFileDirectory_v2


def _tiff_tags(data: bytes) -> Tags:
    """The tags of the first page, as far as they can be read."""
    tags = Tags(data[:16])
    stream = io.BytesIO(data)
    stream.seek(min(tags.next, len(data)))
    tags.load(stream)
    return tags


def _list(tags: Tags, tag: int, default: int = 0) -> list[int]:
    value = tags.get(tag, default)
    return [int(number) for number in value] if isinstance(value, tuple) else [int(value)]


def _lists(tags: Tags, pair: tuple[int, int]) -> tuple[list[int], list[int]]:
    return _list(tags, pair[0]), _list(tags, pair[1])


def _check_tiff(path: str | os.PathLike[str]) -> None:
    """Refuse raw pictures, of which Pillow would take the thumbnail, and samples of unknown range."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tags = _tiff_tags(Path(path).read_bytes())
            is_thumbnail = _list(tags, SUBFILE)[0] & 1 and SUB_PICTURES in tags
            is_raw = _list(tags, PHOTOMETRIC)[0] in RAW_PHOTOMETRIC or _list(tags, COMPRESSION)[0] in RAW_COMPRESSION
            bits, kind = max(_list(tags, BITS, 1)), _list(tags, SAMPLE_FORMAT, 1)[0]
    except BROKEN:
        # Whoever opens it says what is wrong.
        return
    if is_thumbnail or is_raw or DNG_VERSION in tags:
        raise InputError(f"{path} is {RAW}.")
    if bits > 16 or kind in (2, 3):
        name = {2: "signed", 3: "floating-point"}.get(kind, "whole-number")
        raise InputError(f"{path} holds {name} samples of {bits} bits. Save it with 8 or 16 bits, without a sign.")


Rows = Callable[[int, int], UInt16[np.ndarray, "H W C"]]
"""Grey, RGB or CMYK samples from one row to before another."""


def _deep(path: str | os.PathLike[str], form: str, image: Image.Image) -> tuple[tuple[int, int], Rows] | None:
    """Width, height and rows of a photo of 16-bit samples, which Pillow holds in grey only; None for 8 bits."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw = str(args[0] if isinstance(args, tuple) else args)
    if ";16" not in raw and not image.mode.startswith("I"):
        return None
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else None
    is_planar = tags is not None and _list(tags, PLANAR, 1)[0] == 2
    if image.mode.startswith("I"):
        pictures = [image]
    elif is_planar:
        pictures = [Image.open(plane, formats=["TIFF"]) for plane in _planes(tags, Path(path).read_bytes())]
    elif image.mode == "LA":
        pictures = [Image.open(_as_bytes(path), formats=["PNG"])]
    else:
        # Pillow keeps the first byte of each sample. Told the other byte order, it keeps the second.
        raw = raw.replace("RGBa", "RGBA")
        other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
        pictures = [_with_raw(image, raw), _with_raw(Image.open(path, formats=[form]), raw[:-1] + other[raw[-1]])]
    for picture in pictures:
        _load(path, form, picture)

    def rows(top: int, bottom: int) -> UInt16[np.ndarray, "H W C"]:
        parts = [np.asarray(part.crop((0, top, part.width, bottom))) for part in pictures]
        if image.mode.startswith("I"):
            return _grey(parts[0], image, tags)
        if image.mode == "LA":
            return _on_white(np.ascontiguousarray(parts[0]).view(">u2"), is_multiplied=False)
        samples = np.stack(parts, -1) if is_planar else parts[0].astype(np.uint16) << 8 | parts[1]
        if image.mode == "RGBA":
            return _on_white(samples, is_multiplied=tags is not None and _list(tags, EXTRA_SAMPLES)[0] == 1)
        samples = samples[..., : len(image.getbands())].astype(np.uint16)
        return _without(samples, image.info.get("transparency"))

    return pictures[0].size, rows


def _with_raw(image: Image.Image, raw: str) -> Image.Image:
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
    return image


def _as_bytes(path: str | os.PathLike[str]) -> io.BytesIO:
    """A PNG of 16-bit grey and alpha as one of four 8-bit bands, which is the same but for the header."""
    data = bytearray(Path(path).read_bytes())
    data[24:26] = 8, 6
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return io.BytesIO(data)


def _planes(tags: Tags, data: bytes) -> Iterator[io.BytesIO]:
    """Each plane of a TIFF of separate planes as a TIFF of its own; Pillow reads 8 of their 16 bits."""
    starts, lengths = next(_lists(tags, pair) for pair in PIECES if pair[0] in tags)
    count = len(starts) // _list(tags, SAMPLES)[0]
    for first in range(0, len(starts) - count + 1, count):
        plane, body, places = Tags(prefix=tags.prefix), bytearray(8), []
        for start, length in zip(starts[first : first + count], lengths[first : first + count], strict=True):
            places.append(len(body))
            body += data[start : start + length]
        for tag in (256, 257, COMPRESSION, 266, 278, PREDICTOR, 322, 323):
            if tag in tags:
                plane[tag] = tags[tag]
        plane[BITS], plane[PHOTOMETRIC], plane[SAMPLES] = 16, 1, 1
        pair = PIECES[0] if PIECES[0][0] in tags else PIECES[1]
        plane[pair[0]], plane[pair[1]] = tuple(places), tuple(lengths[first : first + count])
        body[:8] = struct.pack("<2sHI" if tags.prefix == b"II" else ">2sHI", tags.prefix, 42, len(body))
        yield io.BytesIO(body + plane.tobytes(len(body)))


def _grey(samples: np.ndarray, image: Image.Image, tags: Tags | None) -> UInt16[np.ndarray, "H W 1"]:
    samples = samples[..., None].astype(np.uint16)
    if tags is not None and _list(tags, BITS, 16)[0] == 12:
        samples = (samples.astype(np.uint32) * 65535 // 4095).astype(np.uint16)
    if tags is not None and _list(tags, PHOTOMETRIC, 1)[0] == 0:
        samples = 65535 - samples
    return _without(samples, image.info.get("transparency"))


def _without(samples: UInt16[np.ndarray, "H W C"], hidden: object) -> UInt16[np.ndarray, "H W C"]:
    """White where the samples are those of the transparent colour."""
    if hidden is None:
        return samples
    return np.where((samples == np.array(hidden)).all(-1, keepdims=True), np.uint16(65535), samples)


def _on_white(samples: np.ndarray, *, is_multiplied: bool) -> UInt16[np.ndarray, "H W C"]:
    colours, alpha = samples[..., :-1].astype(np.float32), samples[..., -1:].astype(np.float32) / 65535
    mixed = (colours if is_multiplied else colours * alpha) + 65535 * (1 - alpha)
    return np.rint(np.minimum(mixed, 65535)).astype(np.uint16)


def _from_deep(
    path: str | os.PathLike[str], size: tuple[int, int], rows: Rows, meaning: bytes | colour.Space | None
) -> Image.Image:
    """Bring 16-bit samples to sRGB; profiles made of tables get them rounded to 8 bits."""
    width, height = size
    bands = rows(0, 1).shape[2]
    space = meaning
    if isinstance(meaning, bytes) and bands < 4:
        try:
            space = colour.profile_space(meaning, is_grey=bands == 1)
        except ValueError:
            space = None
    out = np.empty((height, width, 3 if isinstance(space, colour.Space) else bands), np.uint8)
    for top in range(0, height, PIECE_ROWS):
        samples = rows(top, min(top + PIECE_ROWS, height))
        out[top : top + PIECE_ROWS] = (
            colour.converted(samples, space) if isinstance(space, colour.Space) else np.rint(samples / np.float32(257))
        )
    if isinstance(space, colour.Space):
        return Image.fromarray(out)
    picture = Image.frombytes({1: "L", 3: "RGB", 4: "CMYK"}[bands], size, out.tobytes())
    return _to_rgb(path, picture, meaning)


def _to_rgb(path: str | os.PathLike[str], image: Image.Image, meaning: bytes | colour.Space | None) -> Image.Image:
    is_grey = image.mode in ("1", "L", "LA", "La")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    if isinstance(meaning, bytes) and image.mode != "LAB":
        try:
            return colour.through_profile(image.convert("L") if is_grey else image, meaning)
        except ValueError as error:
            _say(path, f"has a colour profile that cannot be used ({error}): it is read as sRGB.")
    elif image.mode == "CMYK":
        _say(path, "is CMYK without a colour profile: its colours are near what they should be, no more.")
    image = image.convert("RGB")
    if isinstance(meaning, colour.Space):
        samples = np.asarray(image)
        pieces = [
            colour.converted(samples[top : top + PIECE_ROWS], meaning) for top in range(0, len(samples), PIECE_ROWS)
        ]
        return Image.fromarray(np.concatenate(pieces))
    return image
