"""Which files are photos, by what is in them, and how they lie in memory."""

import io
import resource
import struct
import sys
import zlib

import numpy as np
import pillow_heif as heif
import pytest
import tifffile
from PIL import Image
from support import photo_files as made

from expportrait_cli.cli import app
from expportrait_cli.errors import InputError
from expportrait_cli.media.image import is_image, read_image
from expportrait_cli.media.video import read_frames

TURNS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: np.rot90,
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def coded(picture, form: str, **options) -> bytes:
    file = io.BytesIO()
    if form == "HEIF":
        heif.from_pillow(Image.fromarray(picture)).save(file, quality=-1, chroma=444, **options)
    else:
        Image.fromarray(picture).save(file, format=form, **options)
    return file.getvalue()


def write(path, content: bytes):
    path.write_bytes(content)
    return path


def refusal(path) -> str:
    with pytest.raises(InputError) as read:
        read_image(path)
    said = str(read.value)
    assert path.name in said and "\n" not in said and "H.264" not in said
    return said


def turned(picture, orientation):
    return np.ascontiguousarray(TURNS[orientation](picture))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_and_grey_pictures_are_made_upright(tmp_path, picture, orientation):
    stored = made.deep(turned(picture, orientation) / 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    chunk = made.chunk(b"eXIf", exif.tobytes()[6:])
    tag = {"extratags": [(274, 3, 1, orientation, True)]}
    write(tmp_path / "a.png", made.png(stored, chunk))
    write(tmp_path / "b.png", made.png(stored, end=chunk))
    tifffile.imwrite(tmp_path / "c.tif", stored, photometric="rgb", **tag)
    tifffile.imwrite(tmp_path / "d.tif", np.moveaxis(stored, -1, 0), photometric="rgb", planarconfig="separate", **tag)
    for name in ("a.png", "b.png", "c.tif", "d.tif"):
        assert np.array_equal(read_image(tmp_path / name), picture), name
    tifffile.imwrite(tmp_path / "e.tif", stored[..., 0], photometric="minisblack", **tag)
    tifffile.imwrite(tmp_path / "f.tif", turned(picture, orientation)[..., 0], photometric="minisblack", **tag)
    for name in ("e.tif", "f.tif"):
        assert np.array_equal(read_image(tmp_path / name), np.repeat(picture[..., :1], 3, 2)), name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("form", "largest"), [("HEIF", 2), ("AVIF", 8)])
def test_heic_and_avif_are_turned_once(tmp_path, picture, orientation, form, largest):
    exif = Image.Exif()
    exif[0x0112] = orientation
    heif.register_heif_opener()
    options = {"quality": -1, "chroma": 444} if form == "HEIF" else {"quality": 100, "subsampling": "4:4:4"}
    Image.fromarray(turned(picture, orientation)).save(tmp_path / "a", format=form, exif=exif.tobytes(), **options)
    # Both write the turn into the container as well as into EXIF.
    assert orientation == 1 or b"irot" in (tmp_path / "a").read_bytes() or b"imir" in (tmp_path / "a").read_bytes()
    assert np.abs(read_image(tmp_path / "a").astype(int) - picture).max() <= largest


def test_every_tile_of_a_heic_is_read(tmp_path, picture):
    large = np.asarray(Image.fromarray(picture).resize((600, 450), Image.Resampling.BICUBIC))
    content = coded(large, "HEIF", tile_size=256)
    if b"grid" not in content:
        pytest.skip("this pillow-heif writes no tiles")
    assert np.abs(read_image(write(tmp_path / "a.jpg", content)).astype(int) - large).max() <= 2


def test_ten_bits_and_the_main_picture_of_a_heic(tmp_path, picture, caplog):
    deep = heif.from_bytes("RGB;16", picture.shape[1::-1], (picture.astype(np.uint16) * 257).tobytes())
    deep.save(tmp_path / "a.heic", quality=-1, chroma=444)
    assert np.abs(read_image(tmp_path / "a.heic").astype(int) - picture).max() <= 1
    several = heif.from_pillow(Image.fromarray(255 - picture))
    several.add_from_pillow(Image.fromarray(picture))
    several.save(tmp_path / "b.heic", quality=-1, chroma=444, primary_index=1)
    with caplog.at_level("INFO"):
        assert np.abs(read_image(tmp_path / "b.heic").astype(int) - picture).max() <= 2
    assert "several pictures: the main one" in caplog.text


def test_the_first_of_several_pictures_is_read_with_a_note(tmp_path, picture, caplog):
    pages = [Image.fromarray(picture), Image.fromarray(255 - picture)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    tifffile.imwrite(tmp_path / "b.tif", made.deep(np.stack([picture, 255 - picture]) / 255), photometric="rgb")
    pages[0].save(tmp_path / "c.jpg", format="MPO", save_all=True, append_images=pages[1:], quality=98)
    for name, largest in [("a.tif", 0), ("b.tif", 0), ("c.jpg", 12)]:
        caplog.clear()
        with caplog.at_level("INFO"):
            assert is_image(tmp_path / name)
            assert np.abs(read_image(tmp_path / name).astype(int) - picture).max() <= largest
        assert caplog.text.count("several pictures: the first one") == 1


@pytest.mark.parametrize(
    "options", [{"tile": (32, 32)}, {"bigtiff": True}, {"byteorder": ">"}, {"compression": "zlib"}]
)
@pytest.mark.parametrize("planar", [False, True])
def test_deep_tiffs_of_every_layout(tmp_path, picture, options, planar):
    deep = made.deep(picture / 255)
    where = "separate" if planar else "contig"
    samples = np.moveaxis(deep, -1, 0) if planar else deep
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="rgb", planarconfig=where, **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), picture)


@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha", "unspecified"])
@pytest.mark.parametrize("planar", [False, True])
def test_deep_transparency_lies_on_white(tmp_path, picture, extra, planar):
    alpha = np.broadcast_to(np.linspace(0, 1, picture.shape[1])[None, :, None], (*picture.shape[:2], 1))
    page = np.rint(picture * alpha + 255 * (1 - alpha))
    samples = made.deep(np.dstack([picture / 255 * (alpha if extra == "assocalpha" else 1), alpha]))
    where = {"planarconfig": "separate" if planar else "contig"}
    stored = np.moveaxis(samples, -1, 0) if planar else samples
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[extra], **where)
    expected = picture if extra == "unspecified" else page
    assert np.abs(read_image(tmp_path / "a.tif") - expected).max() <= 1
    if extra == "unassalpha":
        assert np.abs(read_image(write(tmp_path / "a.png", made.png(samples))) - page).max() <= 1
        grey = made.png(np.ascontiguousarray(samples[..., [0, 3]]))
        assert np.abs(read_image(write(tmp_path / "b.png", grey)) - page[..., :1]).max() <= 1


def test_a_deep_transparent_colour_lies_on_white(tmp_path, picture):
    deep = made.deep(picture / 255)
    for samples in (deep, deep[..., :1]):
        key = samples[20, 30]
        found = read_image(
            write(tmp_path / "a.png", made.png(samples, made.chunk(b"tRNS", key.astype(">u2").tobytes())))
        )
        hidden = (samples == key).all(-1)
        assert hidden.any() and (found[hidden] == 255).all()
        assert np.array_equal(found[~hidden], np.broadcast_to(samples // 257, found.shape)[~hidden])


def _tiff(*tags: tuple[int, int], body: bytes = bytes(32 * 32)) -> bytes:
    base = {256: 32, 257: 32, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 32, 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted((base | dict(tags)).items()))
    head = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    return head + body + struct.pack("<H", len(entries) // 12) + entries + bytes(4)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a --><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"\n <svg width='9'/>", "SVG"),
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1" + bytes(60), "Photoshop"),
        (b"\0\0\1\0\1\0\x10\x10" + bytes(50), "icon"),
        (b"\xff\x0a" + bytes(range(60)), "JPEG XL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(50), "raw picture"),
        (b"\0\0\0\x18ftypcrx " + bytes(50), "raw picture"),
        (b"FUJIFILMCCD-RAW 0201" + bytes(90), "raw picture"),
        # DNG; Nikon's compression; a colour filter array; a thumbnail before the raw picture, as in NEF and ARW.
        (_tiff((50706, 1)), "raw picture"),
        (_tiff((259, 34713)), "raw picture"),
        (_tiff((262, 32803)), "raw picture"),
        (_tiff((254, 1), (330, 8)), "raw picture"),
        (_tiff((254, 1)), "raw picture"),
        (_tiff((258, 32), (339, 3)), "floating-point samples of 32 bits"),
        (_tiff((258, 16), (339, 2)), "signed samples of 16 bits"),
        (_tiff((262, 9)), "of a kind that is not read"),
        (b"P6\n32 32 255\n" + bytes(3072), "of a kind that is not read"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\3\4" + bytes(80), "archive"),
        ("Grüße\n#EXTM3U\n".encode(), "text file"),
    ],
)
def test_what_is_no_photo_hears_what_it_is(tmp_path, content, said):
    path = write(tmp_path / "a.png", content)
    assert said in refusal(path)
    with pytest.raises(InputError, match=said):
        is_image(path)


def test_what_looks_like_nothing_known_is_left_to_the_reader_of_clips(tmp_path):
    assert not is_image(write(tmp_path / "a.y4m", b"YUV4MPEG2 W32 H32\nFRAME\n" + b"\x80" * 1536))
    assert not is_image(write(tmp_path / "a.mp4", b"\0\0\0\x18ftypisom" + bytes(50)))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        *[("PNG", {}), ("JPEG", {}), ("GIF", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {}), ("AVIF", {}), ("HEIF", {})],
        *[("TIFF", {"compression": "tiff_lzw"}), ("JPEG", {"progressive": True})],
    ],
)
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_photo_that_is_cut_off_hears_so(tmp_path, picture, form, options, kept):
    content = coded(picture, form, **options)
    said = refusal(write(tmp_path / "a.jpg", content[: int(kept * len(content))]))
    assert "is cut off: " in said
    assert "missing" in said or "bytes are there" in said


def test_how_much_is_missing(tmp_path, picture):
    raw = coded(picture, "TIFF")
    assert "the lower 51% of the picture are missing" in refusal(write(tmp_path / "a.tif", raw[: len(raw) // 2]))
    photo = coded(picture, "WEBP", lossless=True)
    assert f"1000 of its {len(photo)} bytes are there" in refusal(write(tmp_path / "b.webp", photo[:1000]))


def test_one_wrong_byte_in_the_pixels_of_a_png_is_found(tmp_path, picture):
    content = bytearray(coded(picture, "PNG"))
    content[content.index(b"IDAT") + 200] ^= 0x40
    assert "is damaged: its pixels differ from their checksum" in refusal(write(tmp_path / "a.png", bytes(content)))


def test_a_jpeg_of_absurdly_many_scans_is_refused_before_decoding(tmp_path, picture):
    content = coded(picture, "JPEG", progressive=True)
    usual = content.count(b"\xff\xda")
    last = content[content.rindex(b"\xff\xda") : -2]
    assert read_image(write(tmp_path / "a.jpg", content)).shape == picture.shape
    assert f"coded in {usual + 200} scans" in refusal(
        write(tmp_path / "b.jpg", content[:-2] + 200 * last + content[-2:])
    )


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG", "AVIF", "HEIF"])
def test_pixels_are_counted_before_they_are_decoded(tmp_path, picture, form, monkeypatch):
    path = write(tmp_path / "a", coded(picture, form))
    monkeypatch.setattr("expportrait_cli.media.image.MAX_PIXELS", 1000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    assert "160x120 px, more than" in refusal(path)


def test_an_animated_avif_is_a_clip(tmp_path, picture):
    frames = [Image.fromarray(np.roll(picture, 4 * index, 1)) for index in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:])
    assert not is_image(tmp_path / "a.avif")
    assert len(list(read_frames(tmp_path / "a.avif"))) == 3


@pytest.mark.slow
def test_a_small_file_of_many_deep_pixels_takes_little_memory(tmp_path):
    side, pack = 8000, zlib.compressobj(9)
    row = b"\0" + bytes(side * 6)
    data = b"".join([*(pack.compress(row) for _ in range(side)), pack.flush()])
    head = made.chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, 2, 0, 0, 0))
    body = made.chunk(b"IDAT", data) + made.chunk(b"IEND", b"")
    path = write(tmp_path / "a.png", b"\x89PNG\r\n\x1a\n" + head + body)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not read_image(path).any()
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 1.1e9


@pytest.mark.parametrize(("driver", "said"), [("a.heic", "bytes are there"), ("a.jpg", "is cut off"), ("a.svg", "SVG")])
def test_photos_that_cannot_serve_are_found_before_the_work(tmp_path, picture, capsys, driver, said):
    write(tmp_path / "a.png", coded(picture, "PNG"))
    write(tmp_path / "a.heic", coded(picture, "HEIF")[:-900])
    write(tmp_path / "a.jpg", coded(picture, "JPEG")[:-300])
    write(tmp_path / "a.svg", b"<svg/>")
    before = set(tmp_path.iterdir())
    for names in ([str(tmp_path / "a.png"), str(tmp_path / driver)], [str(tmp_path / driver), str(tmp_path / "a.png")]):
        assert app.run(["generate", *names, "-o", str(tmp_path / "film.mp4")]) == 3
        (line,) = capsys.readouterr().err.splitlines()
        assert driver in line and said in line and "H.264" not in line
    assert set(tmp_path.iterdir()) == before
