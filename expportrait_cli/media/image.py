"""Reading of photos as upright 8-bit sRGB."""

import io
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from expportrait_cli.artifacts.files import check_file
from expportrait_cli.errors import InputError, one_line
from expportrait_cli.media import colour

MAX_PIXELS = 8192 * 8192
MAX_SCANS = 100
UNKNOWN = 1 << 62

ORIENTATION = 0x0112
# Transposition that inverts each EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Beginnings of files, as regular expressions, by Pillow's name of the format.
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
RAW = "a camera's raw picture. Develop it and export it as a JPEG or a 16-bit TIFF file"
# Beginnings of refused files, with their kind and a remedy; the first match is used.
REFUSED = {
    rb"II\x2a\0.{4}CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|FOVb|\0MRM": RAW,
    rb"\s*(\xef\xbb\xbf)?\s*<(svg|[?!][^\0]*?<svg)": "an SVG drawing. Export it as a PNG file",
    rb"%!PS|\xc5\xd0\xd3\xc6": "a PostScript drawing. Export it as a PNG file",
    rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF": "a Windows metafile. Export it as a PNG file",
    rb"%PDF-": "a PDF document. Export its page as a PNG file",
    rb"8BPS": "a Photoshop file. Export it as a PNG or TIFF file",
    rb"gimp xcf": "a GIMP file. Export it as a PNG or TIFF file",
    rb"\0\0[\x01\x02]\0[^\0]\0|icns": "an icon. Give a photo",
    rb"\xff\x0a|\0\0\0\x0cJXL \r\n": "a JPEG XL file. Convert it to PNG, e.g. with djxl",
    rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51": "a JPEG 2000 file. Convert it to PNG",
    rb"#\?R|\x76\x2f\x31\x01": "an HDR picture. Export it as SDR, e.g. as a PNG file in sRGB",
    rb"II\xbc\x01|P[1-7FfP]\s|qoif|DDS |SIMPLE  =|\x0a[\x02-\x05]\x01[\x01\x02\x04\x08]|\x59\xa6\x6a\x95|BPG\xfb|FLIF"
    rb"|[SX]DP[XS]|\x8a[MJ]NG\r\n|.{128}DICM": "a picture of a kind that is not read. Convert it to PNG",
    rb"PK\x03\x04|\x1f\x8b": "an archive. Unpack it and give the photo inside",
    rb"(?i:\s*<(!doctype )?html)": "a web page. Save the photo itself",
    rb"(?!YUV4MPEG2)[\t\n\r\x20-\x7e\x80-\xff]+$": "a text file. Give a photo or a clip",
}
# TIFF tags and values, TIFF 6.0 and DNG 1.7.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, PREDICTOR = 254, 258, 259, 262, 277, 284, 317
EXTRA_SAMPLES, SAMPLE_FORMAT, DNG_VERSION, PIECES = 338, 339, 50706, ((273, 279), (324, 325))
RAW_PHOTOMETRIC, RAW_COMPRESSION = (32803, 34892), (34713, 32767, 32769, 65535, 65000, 262)


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Read a photo as upright sRGB; its format is recognised by content, not by name.

    EXIF orientation is applied, also mirrored ones. Transparent pixels are blended with white: they are often black and
    would leave a dark fringe. Colours are converted by the photo's profile or other colour tags, at its bit depth;
    16-bit samples are then scaled to 8, not clipped. Of several pages or an animation the first picture is read. Such
    choices are logged once.

    Raises:
        InputError: the file is missing, empty, no photo, of an unsupported kind, cut off, HDR, too small or too large.
    """
    form = _form(path)
    if not form:
        raise InputError(f"{path} is not a photo. Give a PNG, JPEG, TIFF, WebP or HEIC file.")
    with _opened(path, form) as image:
        if form != "GIF" and getattr(image, "is_animated", False):
            colour.say(path, f"holds several pictures: the {'main' if form == 'HEIF' else 'first'} one is read.")
        try:
            deep = _deep(path, form, image)
        except colour.BROKEN as error:
            raise _refusal(path, form, error) from error
        if deep is None:
            _load(path, form, image)
        meaning = colour.declared(path, image)
        rgb = colour.to_srgb(path, image, meaning) if deep is None else colour.deep_to_srgb(path, *deep, meaning)
        del deep
        turn = TURNS.get(colour.exif(image).get(ORIENTATION, 1))
        return np.array(rgb if turn is None else rgb.transpose(turn))


def is_image(path: str | os.PathLike[str]) -> bool:
    """True if the content of a file is a photo; an animated GIF, PNG or AVIF is a clip.

    Raises:
        InputError: the file is missing, a photo that cannot be opened or of an unsupported kind, or an animated WebP,
            which cannot be read as a clip.
    """
    form = _form(path)
    if not form:
        return False
    with _opened(path, form) as image:
        is_animated = getattr(image, "is_animated", False)
        frames = getattr(image, "n_frames", 1) if form == "WEBP" else 1
    if frames > 1:
        raise InputError(f"{path} is an animation of {frames} pictures. Convert it to a GIF, an animated PNG or MP4.")
    # Other files of several pictures, such as TIFF, are photos: the first picture is read.
    return not is_animated or form not in ("GIF", "PNG", "AVIF")


def _form(path: str | os.PathLike[str]) -> str:
    """Pillow's name of a photo's format, empty for another file; raises InputError for refused kinds."""
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
                raise InputError(f"{path} is {what}.")
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
        except colour.BROKEN as error:
            raise _refusal(path, form, error) from error
        with image:
            size = f"{path} is {image.width}x{image.height} px"
            if min(image.size) < 16:
                raise InputError(f"{size}: too small to show a face. Give a photo of 256 px or more.")
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{size}, more than {MAX_PIXELS // 10**6} megapixels. Scale it down.")
            yield image


def _load(path: str | os.PathLike[str], form: str, image: Image.Image) -> None:
    if form == "JPEG":
        # In coded samples 0xff is never followed by 0xda, the marker of a scan; decoding a scan visits all pixels.
        data = np.fromfile(path, np.uint8)
        pairs = (data[start : len(data) - (len(data) - start) % 2].view("<u2") for start in (0, 1))
        scans = sum(int(np.count_nonzero(pair == 0xDAFF)) for pair in pairs)
        if scans > MAX_SCANS or scans * image.width * image.height > 30 * MAX_PIXELS:
            raise InputError(f"{path} is coded in {scans} scans, a usual JPEG in 10. Save it anew, or as a PNG file.")
    # Pillow checks the checksums of all chunks except these.
    if form == "PNG" and any(
        chunk[:4] == b"IDAT" and zlib.crc32(chunk) != given for chunk, given in colour.png_chunks(path)
    ):
        raise InputError(f"{path} is damaged: its pixels differ from their checksum. Copy or download it again.")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # With a file name Pillow may map the file into memory, and then confuses the sides of rotated pictures.
        image.filename = ""
    try:
        image.load()
    except colour.BROKEN as error:
        raise _refusal(path, form, error, image) from error


def _refusal(path: str | os.PathLike[str], form: str, error: Exception, image: Image.Image | None = None) -> InputError:
    data = Path(path).read_bytes()
    length, said = _whole_length(form, data), one_line(error)
    if len(data) >= length and "truncated" not in said:
        if form == "TIFF" and (isinstance(error, UnidentifiedImageError) or "mode" in said):
            return InputError(f"{path} is a TIFF file of a kind that is not read. Save it as 8-bit RGB, or as PNG.")
        what = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else said
        return InputError(f"{path} is damaged ({what}). Copy or download it again.")
    missing = f"{len(data)} of its {length} bytes are there" if len(data) < length < UNKNOWN else "its end is missing"
    # `image.im` would fail without pixels. Rows that were not decoded are still empty.
    pixels = getattr(image, "_im", None)
    if image is not None and pixels is not None and form not in ("BMP", "GIF") and not image.info.get("interlace"):
        share = 1 - (pixels.getbbox() or (0, 0, 0, image.height))[3] / image.height
        missing = f"the lower {share:.0%} of the picture are missing" if 0.005 < share < 1 else missing
    return InputError(f"{path} is cut off: {missing}. Copy or download it again.")


def _whole_length(form: str, data: bytes) -> int:
    """Length that a file states in its header; without one, 0 if the file ends properly, else `UNKNOWN`."""
    match form:
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8
        case "BMP":
            return int.from_bytes(data[2:6], "little")
        case "AVIF" | "HEIF":
            at = 0
            while at + 8 <= len(data) and (length := int.from_bytes(data[at : at + 4], "big")) > 1:
                at += length
            return at if b"mdat" in data else UNKNOWN
        case "TIFF":
            tags = _tiff_tags(data)
            return max(map(sum, zip(*_pieces(tags), strict=False)), default=UNKNOWN)
    is_whole = data.endswith(b";") if form == "GIF" else {"PNG": b"IEND", "JPEG": b"\xff\xd9"}[form] in data[-64:]
    return 0 if is_whole else UNKNOWN


Tags = TiffImagePlugin.ImageFileDirectory_v2


def _tiff_tags(data: bytes) -> Tags:
    """Tags of the first page, as far as they can be read."""
    head = data[:16].ljust(16, b"\0")
    tags = Tags(head if 43 in head[2:4] else head[:8])
    stream = io.BytesIO(data)
    stream.seek(min(tags.next, len(data)))
    tags.load(stream)
    return tags


def _list(tags: Tags, tag: int, default: int = 0) -> list[int]:
    try:
        value = tags.get(tag, default)
        return [int(number) for number in (value if isinstance(value, tuple) else (value,))] or [default]
    except colour.BROKEN:
        return [default]


def _pieces(tags: Tags) -> tuple[list[int], list[int]]:
    """Offsets of the strips or tiles in the file, and their lengths, bytes."""
    pair = next((pair for pair in PIECES if pair[0] in tags), None)
    return (_list(tags, pair[0]), _list(tags, pair[1])) if pair else ([], [])


def _check_tiff(path: str | os.PathLike[str]) -> None:
    """Raise InputError for raw pictures, of which Pillow would read the thumbnail, and for samples of unknown range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags = _tiff_tags(Path(path).read_bytes())
    # Raw pictures begin with a thumbnail, other TIFFs hardly ever.
    is_thumbnail = _list(tags, SUBFILE)[0] & 1
    is_raw = _list(tags, PHOTOMETRIC)[0] in RAW_PHOTOMETRIC or _list(tags, COMPRESSION)[0] in RAW_COMPRESSION
    bits, kind = max(_list(tags, BITS, 1)), _list(tags, SAMPLE_FORMAT, 1)[0]
    if is_thumbnail or is_raw or DNG_VERSION in tags:
        raise InputError(f"{path} is {RAW}.")
    if bits > 16 or kind in (2, 3):
        name = {2: "signed", 3: "floating-point"}.get(kind, "whole-number")
        raise InputError(f"{path} holds {name} samples of {bits} bits. Save it with 8 or 16 bits, without a sign.")


def _deep(path: str | os.PathLike[str], form: str, image: Image.Image) -> tuple[tuple[int, int], colour.Rows] | None:
    """Size, and a function for the rows, of a photo of 16-bit samples, which Pillow reads only in grey; or None."""
    args = image.tile[0].args if isinstance(image, ImageFile.ImageFile) and image.tile else None
    raw = str(args[0] if isinstance(args, tuple) else args)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else Tags()
    is_grey, is_planar = image.mode.startswith("I"), _list(tags, PLANAR)[0] == 2 and _list(tags, BITS)[0] == 16
    if is_grey:
        pictures = [image]
    elif is_planar:
        pictures = [Image.open(plane, formats=["TIFF"]) for plane in _planes(tags, Path(path).read_bytes())]
    elif raw.startswith("LA;16"):
        # 16-bit grey with alpha has the same bytes as four 8-bit bands, except for the header.
        data = bytearray(Path(path).read_bytes())
        data[24:26] = 8, 6
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
        pictures = [Image.open(io.BytesIO(data), formats=["PNG"])]
    elif ";16" in raw:
        # Pillow keeps the high byte of each sample; with the other byte order set, it keeps the low one.
        raw = raw.replace("RGBa", "RGBA")
        other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
        pictures = [_with_raw(image, raw), _with_raw(Image.open(path, formats=[form]), raw[:-1] + other[raw[-1]])]
    else:
        return None
    for picture in pictures:
        _load(path, form, picture)
    hidden, scale = image.info.get("transparency"), 65535 // 4095 if _list(tags, BITS)[0] == 12 else 1

    def rows(top: int, bottom: int) -> UInt16[np.ndarray, "H W C"]:
        parts = [np.asarray(part.crop((0, top, part.width, bottom))) for part in pictures]
        if is_grey or is_planar:
            samples = np.stack(parts, -1).astype(np.uint16) * np.uint16(scale)
            samples = 65535 - samples if is_grey and _list(tags, PHOTOMETRIC, 1)[0] == 0 else samples
        else:
            first, second = parts[0].astype(np.uint16), parts[-1]
            samples = first[..., ::2] << 8 | second[..., 1::2] if len(parts) == 1 else first << 8 | second
        if image.mode == "RGBA":
            return _on_white(samples, is_multiplied=_list(tags, EXTRA_SAMPLES)[0] == 1)
        samples = samples[..., : 1 if is_grey else len(image.getbands())]
        is_seen = hidden is None or (samples != np.array(hidden)).any(-1, keepdims=True)
        return samples if is_seen is True else np.where(is_seen, samples, np.uint16(65535))

    return pictures[0].size, rows


def _with_raw(image: Image.Image, raw: str) -> Image.Image:
    if isinstance(image, ImageFile.ImageFile):
        tiles = [(tile, tile.args[1:] if isinstance(tile.args, tuple) else None) for tile in image.tile]
        image.tile = [tile._replace(args=raw if rest is None else (raw, *rest)) for tile, rest in tiles]
    return image


def _planes(tags: Tags, data: bytes) -> Iterator[io.BytesIO]:
    """Yield each plane of a planar TIFF as a grey TIFF, because Pillow reads only 8 of 16 bits of planar ones."""
    order = "<" if tags.prefix == b"II" else ">"
    pair = PIECES[0] if PIECES[0][0] in tags else PIECES[1]
    starts, lengths = _pieces(tags)
    count = len(starts) // _list(tags, SAMPLES, 1)[0]
    kept = {tag: _list(tags, tag) for tag in (256, 257, COMPRESSION, 266, 278, PREDICTOR, 322, 323) if tag in tags}
    for first in range(0, len(starts) - count + 1, count):
        body, places = bytearray(8), []
        for start, length in zip(starts[first : first + count], lengths[first : first + count], strict=True):
            places.append(len(body))
            body += data[start : start + length]
        plane = kept | {BITS: [16], PHOTOMETRIC: [1], SAMPLES: [1]}
        plane |= {pair[0]: places, pair[1]: lengths[first : first + count]}
        entries = b""
        for tag, values in sorted(plane.items()):
            packed = struct.pack(f"{order}{len(values)}I", *values)
            entries += struct.pack(f"{order}HHI", tag, 4, len(values))
            entries += packed if len(values) == 1 else struct.pack(f"{order}I", len(body))
            body += b"" if len(values) == 1 else packed
        body[:8] = struct.pack(f"{order}2sHI", tags.prefix, 42, len(body))
        yield io.BytesIO(body + struct.pack(f"{order}H", len(plane)) + entries + bytes(4))


def _on_white(samples: np.ndarray, *, is_multiplied: bool) -> UInt16[np.ndarray, "H W C"]:
    colours, alpha = samples[..., :-1].astype(np.float32), samples[..., -1:].astype(np.float32) / 65535
    mixed = (colours if is_multiplied else colours * alpha) + 65535 * (1 - alpha)
    return np.rint(np.minimum(mixed, 65535)).astype(np.uint16)
