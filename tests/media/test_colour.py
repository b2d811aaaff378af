"""Photos in other colour spaces become what the 8-bit sRGB file of the same picture is."""

import io
import struct

import numpy as np
import pillow_heif as heif
import pytest
import tifffile
from PIL import Image, ImageCms
from support import photo_files as made

from expportrait_cli.errors import InputError
from expportrait_cli.media.colour import profile_space
from expportrait_cli.media.image import read_image

pytestmark = pytest.mark.slow
"""Many small pictures, half a minute of them together."""

SPACES = [("AdobeRGB", 563 / 256), ("ProPhoto", 1.8), ("P3", None), ("sRGB", 1.0), ("sRGB", 1.8), ("sRGB", None)]
WIDE, NARROW = made.deep, made.shallow


@pytest.fixture(scope="module")
def shown() -> np.ndarray:
    """Colours that every space of these tests holds, without symmetry."""
    x, y = np.meshgrid(np.linspace(0, 1, 96), np.linspace(0, 1, 70))
    rgb = np.stack([40 + 180 * x, 30 + 200 * y, 40 + 160 * (1 - x) * (0.5 + 0.5 * np.sin(5 * y))], -1)
    return np.rint(rgb).astype(np.uint8)


@pytest.fixture(scope="module")
def grey(shown) -> np.ndarray:
    return np.repeat(shown[..., :1], 3, 2)


def assert_close(path, shown, mean=0.5, largest=2):
    found = read_image(path)
    assert found.dtype == np.uint8 and found.shape == shown.shape
    error = np.abs(found.astype(float) - shown)
    assert error.mean() <= mean and error.max() <= largest


def tiff(path, samples, *, planar=False, **options):
    samples = np.moveaxis(samples, -1, 0) if planar else samples
    photometric = {"photometric": "rgb"} if samples.ndim == 3 else {}
    where = {"planarconfig": "separate" if planar else "contig"} if samples.ndim == 3 else {}
    tifffile.imwrite(path, samples, **{**photometric, **where, "rowsperstrip": 16, **options})
    return path


@pytest.mark.parametrize(("space", "gamma"), SPACES)
@pytest.mark.parametrize("alpha", [False, True])
def test_a_deep_png_through_its_profile(tmp_path, shown, space, gamma, alpha):
    values = made.in_space(shown, space, gamma)
    values = np.dstack([values, np.ones(values.shape[:2])]) if alpha else values
    (tmp_path / "a.png").write_bytes(made.png(WIDE(values), icc=made.profile(space, gamma)))
    assert_close(tmp_path / "a.png", shown, mean=0.2, largest=1)


@pytest.mark.parametrize(("space", "gamma"), SPACES)
@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_deep_tiff_through_its_profile(tmp_path, shown, space, gamma, byteorder, planar, compression):
    values, icc = made.in_space(shown, space, gamma), made.profile(space, gamma)
    options = {"iccprofile": icc, "byteorder": byteorder, "compression": compression}
    assert_close(tiff(tmp_path / "a.tif", WIDE(values), planar=planar, **options), shown, mean=0.2, largest=1)


@pytest.mark.parametrize(("space", "gamma"), [("AdobeRGB", 563 / 256), ("P3", None), ("sRGB", 1.8)])
def test_8_bits_through_their_profile_in_every_format(tmp_path, shown, space, gamma):
    image, icc = Image.fromarray(NARROW(made.in_space(shown, space, gamma))), made.profile(space, gamma)
    for name, options in [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True})]:
        image.save(tmp_path / name, icc_profile=icc, **options)
        assert_close(tmp_path / name, shown, mean=0.5, largest=4)
    image.save(tmp_path / "a.jpg", icc_profile=icc, quality=99, subsampling=0)
    assert_close(tmp_path / "a.jpg", shown, mean=1.2, largest=20)
    tiff(tmp_path / "b.tif", np.asarray(image), planar=True, iccprofile=icc)
    assert_close(tmp_path / "b.tif", shown, mean=0.5, largest=4)


@pytest.mark.parametrize("gamma", [1.8, 1.0, 2.2])
# Eight bits of linear light are coarse in the dark.
@pytest.mark.parametrize(("samples", "mean", "largest"), [(NARROW, 0.6, 9), (WIDE, 0.2, 1)])
def test_grey_through_its_profile(tmp_path, grey, gamma, samples, mean, largest):
    values = samples(made.light(grey[..., :1]) ** (1 / gamma))
    opaque = samples(np.dstack([values / np.iinfo(values.dtype).max, np.ones(values.shape[:2])]))
    for icc in (made.profile("sRGB", gamma, grey=True), made.profile("sRGB", gamma)):
        (tmp_path / "a.png").write_bytes(made.png(values, icc=icc))
        (tmp_path / "b.png").write_bytes(made.png(opaque, icc=icc))
        tiff(tmp_path / "c.tif", values[..., 0], iccprofile=icc, byteorder=">")
        inverse = np.iinfo(values.dtype).max - values[..., 0]
        tiff(tmp_path / "d.tif", inverse, iccprofile=icc, photometric="miniswhite")
        for name in ("a.png", "b.png", "c.tif", "d.tif"):
            assert_close(tmp_path / name, grey, mean, largest)


def test_a_palette_goes_through_its_profile(tmp_path, shown):
    few = shown // 64 * 64 + 20
    image = Image.fromarray(NARROW(made.in_space(few, "P3", None))).quantize(256)
    image.save(tmp_path / "a.png", icc_profile=made.profile("P3"))
    assert_close(tmp_path / "a.png", few, mean=0.7, largest=4)


@pytest.mark.parametrize(("samples", "mean"), [(NARROW, 0.5), (WIDE, 0.5)])
def test_inks_go_through_their_profile(tmp_path, shown, samples, mean):
    inks = np.dstack([1 - shown / 255, np.full(shown.shape[:2], 0.2)])
    expected, icc = made.printed(inks), made.ink_profile()
    for planar in (False, True):
        tiff(tmp_path / "a.tif", samples(inks), planar=planar, photometric="separated", iccprofile=icc)
        assert_close(tmp_path / "a.tif", expected, mean)
    # Pillow writes inks inverted, as Adobe does.
    image = Image.frombytes("CMYK", shown.shape[1::-1], NARROW(inks).tobytes())
    image.save(tmp_path / "a.jpg", quality=99, subsampling=0, icc_profile=icc)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    assert_close(tmp_path / "a.jpg", expected, mean, largest=4)


def test_inks_without_a_profile_are_read_with_a_note(tmp_path, shown, caplog):
    inks = np.dstack([1 - shown / 255, np.zeros(shown.shape[:2])])
    tiff(tmp_path / "a.tif", WIDE(inks), photometric="separated")
    with caplog.at_level("INFO"):
        assert_close(tmp_path / "a.tif", shown)
        assert_close(tmp_path / "a.tif", shown)
    assert [record.getMessage().split(" ", 1)[1][:30] for record in caplog.records] == [
        "is CMYK without a colour profi"
    ]


def test_lab(tmp_path, shown):
    lab = ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(Image.fromarray(shown), ImageCms.createProfile("sRGB"), lab, outputMode="LAB").save(
        tmp_path / "a.tif"
    )
    assert_close(tmp_path / "a.tif", shown, mean=1.2, largest=15)


def _number(*values: float) -> bytes:
    return struct.pack(f">{len(values)}I", *(round(1e5 * value) for value in values))


ADOBE = made.chunk(b"cHRM", _number(0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06))
USUAL = made.chunk(b"cHRM", _number(0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06))


@pytest.mark.parametrize(("samples", "largest"), [(NARROW, 9), (WIDE, 1)])
@pytest.mark.parametrize(
    ("space", "gamma", "chunks"),
    [
        ("AdobeRGB", 2.2, [made.chunk(b"gAMA", _number(1 / 2.2)), ADOBE]),
        ("AdobeRGB", None, [ADOBE]),
        ("sRGB", 1.0, [made.chunk(b"gAMA", _number(1))]),
        ("sRGB", None, [made.chunk(b"gAMA", _number(1 / 2.2)), USUAL]),
        ("sRGB", None, [made.chunk(b"sRGB", b"\0"), made.chunk(b"gAMA", _number(1))]),
        ("P3", None, [made.chunk(b"cICP", bytes([12, 13, 0, 1])), made.chunk(b"gAMA", _number(1))]),
        ("sRGB", 1.0, [made.chunk(b"cICP", bytes([1, 8, 0, 1]))]),
    ],
)
def test_what_a_png_says_of_its_colours(tmp_path, shown, samples, largest, space, gamma, chunks):
    (tmp_path / "a.png").write_bytes(made.png(samples(made.in_space(shown, space, gamma)), *chunks))
    assert_close(tmp_path / "a.png", shown, largest=largest)


def test_gamma_that_repeats_srgb_changes_no_bit(tmp_path, shown):
    (tmp_path / "a.png").write_bytes(made.png(shown, made.chunk(b"gAMA", _number(0.45455)), USUAL))
    assert np.array_equal(read_image(tmp_path / "a.png"), shown)


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_refused(tmp_path, shown, transfer, name):

    code = made.png(shown, made.chunk(b"cICP", bytes([9, transfer, 0, 1])))
    tag = b"cicp\0\0\0\0" + bytes([9, transfer, 0, 1])
    (tmp_path / "a.png").write_bytes(code)
    (tmp_path / "b.png").write_bytes(made.png(WIDE(shown / 255), icc=made.profile(more={b"cicp": tag})))
    options = {"color_primaries": 9, "transfer_characteristics": transfer, "save_nclx_profile": True}
    heif.from_pillow(Image.fromarray(shown)).save(tmp_path / "c.heic", matrix_coefficients=9, **options)
    (tmp_path / "d.avif").write_bytes(_avif(shown, 9, transfer))
    for path in tmp_path.iterdir():
        with pytest.raises(InputError, match=rf"HDR photo \({name}\)"):
            read_image(path)


def _avif(rgb, primaries: int, transfer: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, format="AVIF", quality=100, subsampling="4:4:4")
    data = file.getvalue()
    at = data.index(b"nclx") + 4
    return data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]


def test_heic_and_avif_in_p3(tmp_path, shown):

    shown = np.asarray(Image.fromarray(shown).resize((192, 140), Image.Resampling.BICUBIC))
    values, icc = NARROW(made.in_space(shown, "P3", None)), made.profile("P3")
    whole = {"quality": -1, "chroma": 444}
    coded = {"color_primaries": 12, "transfer_characteristics": 13, "save_nclx_profile": True}
    heif.from_pillow(Image.fromarray(values)).save(tmp_path / "a.heic", matrix_coefficients=6, **whole, **coded)
    image = heif.from_pillow(Image.fromarray(values))
    image.info["icc_profile"] = icc
    image.save(tmp_path / "b.heic", **whole)
    Image.fromarray(values).save(tmp_path / "c.avif", quality=100, subsampling="4:4:4", icc_profile=icc)
    (tmp_path / "d.avif").write_bytes(_avif(values, 12, 13))
    for path in sorted(tmp_path.iterdir()):
        assert_close(path, shown, mean=1.2, largest=20)


@pytest.mark.parametrize(("index", "space", "gamma"), [("R03", "AdobeRGB", 563 / 256), ("R98", "sRGB", None)])
def test_adobe_rgb_by_exif_alone(tmp_path, shown, index, space, gamma):
    exif = Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: 65535, 0xA005: {1: index}})
    image = Image.fromarray(NARROW(made.in_space(shown, space, gamma)))
    image.save(tmp_path / "a.jpg", quality=99, subsampling=0, exif=exif.tobytes())
    assert_close(tmp_path / "a.jpg", shown, mean=1.0, largest=20)


@pytest.mark.parametrize("icc", [b"not a profile", made.profile("ProPhoto", 1.8)[:300], made.profile("P3", grey=True)])
@pytest.mark.parametrize("samples", [NARROW, WIDE])
def test_a_profile_that_cannot_be_used_is_said_and_read_as_srgb(tmp_path, shown, caplog, icc, samples):
    (tmp_path / "a.png").write_bytes(made.png(samples(shown / 255), icc=icc))
    with caplog.at_level("INFO"):
        assert np.array_equal(read_image(tmp_path / "a.png"), shown)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "colour profile that cannot be used" in said and "\n" not in said


def test_a_profile_that_cannot_be_unpacked_is_said(tmp_path, shown, caplog):
    (tmp_path / "a.png").write_bytes(made.png(shown, made.chunk(b"iCCP", b"a\0\0not zlib")))
    with caplog.at_level("INFO"):
        assert np.array_equal(read_image(tmp_path / "a.png"), shown)
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        (0, [2.0], lambda x: x**2),
        (1, [2.0, 1.25, -0.25], lambda x: np.where(x >= 0.2, (1.25 * x - 0.25) ** 2, 0)),
        (2, [2.0, 0.75, 0.0, 0.25], lambda x: (0.75 * x) ** 2 + 0.25),
        (4, [2.0, 0.5, 0.25, 0.5, 0.5, 0.125, 0.0], lambda x: np.where(x >= 0.5, (0.5 * x + 0.25) ** 2 + 0.125, x / 2)),
    ],
)
def test_curves_by_their_parameters(kind, numbers, expected):
    tag = b"para\0\0\0\0" + struct.pack(f">HH{len(numbers)}i", kind, 0, *(round(v * 65536) for v in numbers))
    found = profile_space(made.profile(more=dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), tag)), is_grey=False)
    x = np.linspace(0, 1, 9)
    assert found is not None
    assert np.allclose(found.curves[0](x), expected(x), atol=1e-4)
    assert np.allclose(found.matrix, np.eye(3), atol=1e-3)
