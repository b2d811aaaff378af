"""Clips of high dynamic range and wide gamut, encoded here by the standards' formulas, come back as the SDR picture."""

import logging
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest

from expportrait_cli.media.video import probe, read_frames

pytestmark = pytest.mark.slow
"""Many small pictures, half a minute of them together."""

WHITE_POINT = (0.3127, 0.3290)
CHROMATICITIES = {
    "bt709": [(0.640, 0.330), (0.300, 0.600), (0.150, 0.060)],
    "bt2020": [(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)],
    "smpte432": [(0.680, 0.320), (0.265, 0.690), (0.150, 0.060)],
    "bt470bg": [(0.640, 0.330), (0.290, 0.600), (0.150, 0.060)],
}
# The largest is below the light from which on highlights are compressed.
PATCHES = np.array(
    [
        *[(206, 156, 134), (224, 189, 170), (141, 85, 60), (90, 60, 50), (60, 38, 30)],
        *[(16, 16, 16), (64, 64, 64), (128, 128, 128), (192, 192, 192), (230, 230, 230)],
        *[(200, 60, 40), (40, 120, 60), (50, 70, 160), (120, 180, 210), (220, 200, 60), (150, 60, 140)],
    ],
    np.float64,
)


def to_xyz(name):
    """SMPTE RP 177: columns are the primaries, scaled so that they add up to white."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in CHROMATICITIES[name]]).T
    x, y = WHITE_POINT
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def in_primaries(light, name):
    return light @ np.linalg.solve(to_xyz(name), to_xyz("bt709")).T


def hlg(light, weights=(0.2627, 0.6780, 0.0593)):
    """BT.2100, table 5: inverse OOTF of a 1000 cd/m2 display, then OETF; reference white is at 203 cd/m2 (BT.2408)."""
    shown = light * 203 / 1000
    scene = shown * np.maximum(shown @ np.array(weights), 1e-12)[:, None] ** ((1 - 1.2) / 1.2)
    a, b = 0.17883277, 1 - 4 * 0.17883277
    c = 0.5 - a * np.log(4 * a)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-12)) + c)


def pq(light):
    """SMPTE ST 2084, equation 5.2."""
    y = (np.maximum(light, 0) * 203 / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def srgb_light(signal):
    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def write_patches(path, signal, *, matrix=(0.2627, 0.6780, 0.0593), name="bt2020nc", **tags):
    """One square for each row of `signal`."""
    luma = signal @ np.array(matrix)
    blue, red = (signal[:, 2] - luma) / (2 - 2 * matrix[2]), (signal[:, 0] - luma) / (2 - 2 * matrix[0])
    return write_planes(path, luma, blue, red, name=name, **tags)


def write_planes(path, luma, blue, red, *, primaries, transfer, name, full=False):
    """10-bit YUV 4:4:4 of one 32 x 32 px square for each colour, tagged."""
    planes = [luma * 876 + 64, *(chroma * 896 + 512 for chroma in (blue, red))]
    if full:
        planes = [luma * 1023, *(chroma * 1023 + 512 for chroma in (blue, red))]
    squares = [np.tile(np.repeat(np.clip(np.rint(plane), 0, 1023), 32), (32, 1)).astype("<u2") for plane in planes]
    span = ["-color_range", "pc" if full else "tv"]
    tags = f"setparams=color_primaries={primaries}:color_trc={transfer}:colorspace={name}"
    raw = ["-f", "rawvideo", "-pix_fmt", "yuv444p10le", *span, "-s", f"{32 * len(luma)}x32", "-i", "-"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", *raw, "-vf", tags, "-c:v", "ffv1", *span]
    subprocess.run([*command, str(path)], input=b"".join(map(np.ndarray.tobytes, squares)), check=True)
    return path


def read_patches(path):
    return next(read_frames(path))[16, 16::32].astype(int)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("transfer", "encode"), [("arib-std-b67", hlg), ("smpte2084", pq)])
def test_sdr_inside_hdr_comes_back(tmp_path, caplog, transfer, encode, full):
    signal = encode(in_primaries((PATCHES / 255) ** 2.4, "bt2020"))
    path = write_patches(tmp_path / "a.mkv", signal, primaries="bt2020", transfer=transfer, full=full)
    with caplog.at_level(logging.INFO):
        found = read_patches(path)
    assert np.abs(found - PATCHES).max() <= 1.5
    assert "are converted to those of a usual clip" in caplog.text


def test_hdr_without_other_tags_is_bt2020(tmp_path):
    signal = hlg(in_primaries((PATCHES / 255) ** 2.4, "bt2020"))
    path = write_patches(tmp_path / "a.mkv", signal, primaries="unknown", transfer="arib-std-b67", name="unknown")
    assert probe(path).matrix == "bt2020nc"
    assert np.abs(read_patches(path) - PATCHES).max() <= 1.5


def test_hlg_in_the_primaries_of_a_display(tmp_path):
    weights = tuple(to_xyz("smpte432")[1])
    signal = hlg(in_primaries((PATCHES / 255) ** 2.4, "smpte432"), weights)
    path = write_patches(tmp_path / "a.mkv", signal, primaries="smpte432", transfer="arib-std-b67")
    assert np.abs(read_patches(path) - PATCHES).max() <= 1.5


def test_hdr_of_odd_size_with_subsampled_chroma(tmp_path, make_clip):
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    clip = make_clip("odd.mkv", "-vf", f"format=yuv420p10le,{tags}", "-c:v", "ffv1", size="131x97", seconds=0.1)
    assert next(read_frames(clip)).shape == (97, 131, 3)
    assert next(read_frames(clip, size=(64, 32))).shape == (32, 64, 3)


@pytest.mark.parametrize(("transfer", "encode"), [("arib-std-b67", hlg), ("smpte2084", pq)])
def test_bright_light_keeps_its_hue_and_its_order(tmp_path, transfer, encode):
    skin = np.array([206, 156, 134]) / 255
    light = skin**2.4 * np.array([1, 1.5, 2, 3, 4])[:, None]
    signal = encode(in_primaries(light, "bt2020"))
    found = read_patches(write_patches(tmp_path / "a.mkv", signal, primaries="bt2020", transfer=transfer))
    assert (np.diff(found[:, 0]) > 0).all() and found[1, 0] > 232 and found[-1, 0] <= 255
    ratios = (found / found[:, :1]) - skin / skin[0]
    assert np.abs(ratios).max() < 0.01


@pytest.mark.parametrize("primaries", ["bt2020", "smpte432", "bt470bg"])
@pytest.mark.parametrize("transfer", ["bt709", "iec61966-2-1"])
def test_wide_gamut(tmp_path, primaries, transfer):
    decode, encode = (
        (srgb_light, lambda v: np.where(v <= 0.0031308, 12.92 * v, 1.055 * np.abs(v) ** (1 / 2.4) - 0.055))
        if transfer == "iec61966-2-1"
        else (lambda v: v**2.4, lambda v: np.abs(v) ** (1 / 2.4))
    )
    signal = encode(in_primaries(decode(PATCHES / 255), primaries))
    bt709 = (0.2126, 0.7152, 0.0722)
    path = write_patches(tmp_path / "a.mkv", signal, primaries=primaries, transfer=transfer, matrix=bt709, name="bt709")
    assert np.abs(read_patches(path) - PATCHES).max() <= 1.5


@pytest.mark.parametrize(
    ("transfer", "encode", "tolerance"),
    # 10 bits of linear light are coarse in the shadows.
    [
        ("linear", lambda v: v, 4),
        ("log100", lambda v: 1 + np.log10(v) / 2, 2),
    ],
)
def test_other_transfer_functions_become_srgb(tmp_path, transfer, encode, tolerance):
    patches = PATCHES[PATCHES.min(1) >= 38]
    signal = encode(srgb_light(patches / 255))
    bt709 = (0.2126, 0.7152, 0.0722)
    path = write_patches(tmp_path / "a.mkv", signal, primaries="bt709", transfer=transfer, matrix=bt709, name="bt709")
    assert np.abs(read_patches(path) - patches).max() <= tolerance


@pytest.mark.parametrize("transfer", ["bt709", "smpte170m", "bt470m", "bt470bg", "bt2020-10", "unknown"])
@pytest.mark.parametrize("primaries", ["bt709", "smpte170m", "unknown"])
def test_usual_tags_change_nothing(tmp_path, transfer, primaries):
    bt709 = (0.2126, 0.7152, 0.0722)
    tagged, plain = (
        write_patches(tmp_path / f"{name}.mkv", PATCHES / 255, primaries=p, transfer=t, matrix=bt709, name="bt709")
        for name, p, t in [("tagged", primaries, transfer), ("plain", "unknown", "unknown")]
    )
    found = next(read_frames(tagged))
    assert np.array_equal(found, next(read_frames(plain)))
    assert np.abs(found[16, 16::32] - PATCHES).max() <= 1


def test_ictcp(tmp_path):
    """BT.2100, table 7, with PQ."""
    light = in_primaries((PATCHES / 255) ** 2.4, "bt2020")
    to_lms = np.array([[1688, 2146, 262], [683, 2951, 462], [99, 309, 3688]]) / 4096
    planes = np.array([[2048, 2048, 0], [6610, -13613, 7003], [17933, -17390, -543]]) / 4096 @ pq(light @ to_lms.T).T
    path = write_planes(tmp_path / "a.mkv", *planes, primaries="bt2020", transfer="smpte2084", name="ictcp")
    assert np.abs(read_patches(path) - PATCHES).max() <= 2


def test_ycgco(tmp_path):
    """ITU-T H.273, matrix 8."""
    planes = np.array([[1, 2, 1], [-1, 2, -1], [2, 0, -2]]) / 4 @ (PATCHES / 255).T
    path = write_planes(tmp_path / "a.mkv", *planes, primaries="bt709", transfer="bt709", name="ycgco")
    assert np.abs(read_patches(path) - PATCHES).max() <= 2
