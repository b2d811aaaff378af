import logging
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest

from expportrait_cli.errors import InputError
from expportrait_cli.media.video import frame_count, probe, read_frames

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def bursts(path, target):
    """Drop two of three frames of every second half second: the rate varies, time does not."""
    drop = ["-vf", "select='lt(mod(t,1),0.5)+not(mod(n,3))'", "-fps_mode", "vfr"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-i", str(path), *drop]
    subprocess.run([*command, *X264, "-c:a", "copy", str(target)], check=True)


@pytest.mark.parametrize("rate", ["24000/1001", "30000/1001", "60000/1001", "25", "23", "12.5", "50"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rate_is_exact_and_every_frame_comes_once(make_clip, rate, suffix):
    clip = make_clip(f"rate_{rate.replace('/', '_')}.{suffix}", *X264, rate=rate)
    info = probe(clip)
    expected = Fraction(rate)
    assert info.rate == expected
    assert not info.variable_rate
    frames = list(read_frames(clip))
    assert len(frames) == frame_count(clip) == -(-2 * expected.numerator // expected.denominator)
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    assert frames[0].shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-pix_fmt", "yuv420p")),
        ("av1.mp4", ("-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", "-pix_fmt", "yuv420p")),
        ("hevc10.mp4", ("-c:v", "libx265", "-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none")),
        ("h264_10.mp4", ("-c:v", "libx264", "-pix_fmt", "yuv420p10le")),
        ("mjpeg.avi", ("-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj422p")),
        ("mpeg4.avi", ("-c:v", "mpeg4", "-q:v", "3", "-bf", "2")),
        ("ts.ts", X264),
        ("ffv1.mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0")),
        ("animated.gif", ()),
    ],
)
def test_codecs_agree_on_the_colours(make_clip, name, options):
    clip = make_clip(name, *options, seconds=0.6)
    reference = list(read_frames(make_clip("reference.mkv", "-c:v", "ffv1", "-pix_fmt", "bgr0", seconds=0.6)))
    frames = list(read_frames(clip))
    assert len(frames) == len(reference) == 15
    # Averages over 8 x 8 px, because 4:2:0 chroma smears the picture's hard edges; a wrong matrix or range costs 8.
    found, expected = (cv2.resize(a, (16, 12), interpolation=cv2.INTER_AREA) for a in (frames[7], reference[7]))
    assert np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("size", ["320x240", "1280x720"])
def test_untagged_yuv_is_read_by_the_usual_matrix_for_its_size(make_clip, size):
    matrix = "bt709" if size == "1280x720" else "smpte170m"
    filters = ("-vf", f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv444p,setparams=colorspace=unknown")
    clip = make_clip(f"untagged_{size}.mp4", *filters, "-c:v", "libx264", "-crf", "1", size=size, seconds=0.1)
    exact = make_clip(f"exact_{size}.mkv", "-c:v", "ffv1", "-pix_fmt", "bgr0", size=size, seconds=0.1)
    found, expected = next(read_frames(clip)).astype(int), next(read_frames(exact)).astype(int)
    assert np.abs(found - expected).mean() < 1.5


def test_variable_rate_keeps_time(make_clip, tmp_path, caplog):
    clip = make_clip("constant.mp4", *X264, "-c:a", "aac", seconds=4, audio=True)
    bursts(clip, tmp_path / "vfr.mp4")
    info = probe(tmp_path / "vfr.mp4")
    assert info.variable_rate
    assert info.rate == 25
    with caplog.at_level(logging.INFO):
        varying = list(read_frames(tmp_path / "vfr.mp4"))
    assert "variable frame rate" in caplog.text
    steady = list(read_frames(clip))
    assert len(varying) == frame_count(tmp_path / "vfr.mp4")
    assert abs(len(varying) - len(steady)) <= 2
    # Where frames were kept, the picture at a time is the one of the original; k / 25 s, first half of each second.
    for index in (0, 5, 26, 52, 80):
        assert np.abs(varying[index].astype(int) - steady[index]).mean() < 4


def test_ranges_are_exact(make_clip):
    clip = make_clip("range.mp4", *X264, "-g", "12")
    frames = list(read_frames(clip))
    part = list(read_frames(clip, start=17, end=23))
    assert len(part) == 6
    assert all(np.array_equal(a, b) for a, b in zip(part, frames[17:23], strict=True))
    assert len(list(read_frames(clip, start=45))) == 5
    assert list(read_frames(clip, start=5, end=5)) == []


def test_size_is_width_then_height(make_clip):
    assert next(read_frames(make_clip("size.mp4", *X264), size=(64, 32))).shape == (32, 64, 3)


def test_rotation_and_pixel_aspect_are_applied(make_clip, tmp_path):
    clip = make_clip("lying.mp4", *X264, size="96x64")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-display_rotation", "90"]
    subprocess.run([*command, "-i", str(clip), "-c", "copy", str(tmp_path / "turned.mp4")], check=True)
    info = probe(tmp_path / "turned.mp4")
    assert (info.width, info.height) == (64, 96)
    turned, lying = next(read_frames(tmp_path / "turned.mp4")), next(read_frames(clip))
    assert np.abs(turned.astype(int) - np.rot90(lying)).mean() < 3
    squeezed = make_clip("squeezed.mp4", "-vf", "setsar=4/3", *X264, size="96x128")
    assert (probe(squeezed).width, probe(squeezed).height) == (128, 128)
    assert next(read_frames(squeezed)).shape == (128, 128, 3)


# How ffmpeg's options turn a stored picture, in numpy's terms. Its rotation is clockwise.
TURNS = {
    ("-display_rotation", "90"): np.rot90,
    ("-display_rotation", "180"): lambda a: np.rot90(a, 2),
    ("-display_rotation", "270"): lambda a: np.rot90(a, 3),
    ("-display_hflip",): np.fliplr,
    ("-display_vflip",): np.flipud,
    ("-display_rotation", "90", "-display_hflip"): lambda a: np.rot90(a)[:, ::-1],
}


@pytest.mark.parametrize("options", TURNS)
def test_turned_and_mirrored_clips_are_upright(make_clip, tmp_path, options):
    clip = make_clip("to_turn.mp4", *X264, "-crf", "1", size="96x64", seconds=0.2)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *options]
    subprocess.run([*command, "-i", str(clip), "-c", "copy", str(tmp_path / "a.mp4")], check=True)
    found, stored = next(read_frames(tmp_path / "a.mp4")).astype(int), next(read_frames(clip)).astype(int)
    errors = [np.abs(found - turn(stored)).mean() for turn in TURNS.values() if turn(stored).shape == found.shape]
    assert np.abs(found - TURNS[options](stored)).mean() < 3 and sorted(errors)[1] > 20
    assert (probe(tmp_path / "a.mp4").width, probe(tmp_path / "a.mp4").height) == found.shape[1::-1]


def test_time_stamps_below_zero(make_clip, tmp_path):
    clip = make_clip("from_zero.mp4", *X264, "-bf", "0")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-itsoffset", "-0.4", "-i", str(clip)]
    options = ["-c", "copy", "-copyts", "-avoid_negative_ts", "disabled", "-use_editlist", "0"]
    subprocess.run([*command, *options, str(tmp_path / "a.mov")], check=True)
    assert (probe(tmp_path / "a.mov").rate, probe(tmp_path / "a.mov").start_s) == (25, 0)
    found, expected = list(read_frames(tmp_path / "a.mov")), list(read_frames(clip))
    assert np.array_equal(found, expected[-len(found) :]) and len(found) in (40, 50)


def sweep(path, *options, size="128x96", rate="50"):
    """A bar of 8 px that moves by 2 px a field."""
    source = f"color=black:size={size}:rate={rate}:duration=1,format=rgb24"
    bar = "geq=r='255*between(X-2*N,4,11)':g='255*between(X-2*N,4,11)':b='255*between(X-2*N,4,11)'"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source]
    subprocess.run([*command, "-vf", ",".join([bar, *options[:1]]), *options[1:], str(path)], check=True)
    return path


@pytest.mark.parametrize("first", ["top", "bottom"])
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", ("-c:v", "libx264", "-crf", "1", "-flags", "+ilme+ildct")),
        ("a.ts", ("-c:v", "mpeg2video", "-q:v", "2", "-flags", "+ilme+ildct")),
        ("a.mov", ("-c:v", "prores_ks", "-flags", "+ildct")),
    ],
)
def test_interlaced_frames_have_no_combs(tmp_path, caplog, first, name, codec):
    weave = f"tinterlace=interleave_{first},setfield={first[0]}ff,format=yuv422p10le"
    if "prores_ks" not in codec:
        weave = weave.replace("yuv422p10le", "yuv420p")
    clip = sweep(tmp_path / name, weave, *codec)
    assert probe(clip).is_interlaced
    with caplog.at_level(logging.INFO):
        frames = list(read_frames(clip))
    assert "interlaced" in caplog.text
    assert len(frames) == frame_count(clip) == 25
    # The bar stands where it was in the frame's first field, in all rows alike.
    centres = np.array([(row * np.arange(128)).sum() / row.sum() for row in frames[10][20:-20, :, 1].astype(float)])
    assert np.ptp(centres) < 0.5
    assert abs(centres.mean() - (4 + 3.5 + 2 * 20)) < 0.5


def test_usual_frames_are_what_ffmpeg_alone_gives(make_clip):
    plain = make_clip("plain_progressive.mp4", *X264, seconds=1)
    info = probe(plain)
    assert not info.is_interlaced and info.repeated == 0
    raw = ["-i", str(plain), "-vf", "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp,format=rgb24"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *raw, "-f", "rawvideo", "-"]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"".join(
        frame.tobytes() for frame in read_frames(plain)
    )


@pytest.mark.parametrize(("first", "second"), [("128x96", "64x96"), ("64x96", "128x96"), ("127x95", "64x96")])
def test_a_change_of_size_keeps_the_shape(make_clip, tmp_path, caplog, first, second):
    """As calls that adapt their resolution and phones that are turned write them."""
    lossless = ("-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv444p", "-bf", "0")
    parts = [make_clip(f"part_{size}.ts", *lossless, size=size, seconds=1) for size in (first, second)]
    (tmp_path / "a.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    with caplog.at_level(logging.INFO):
        frames = list(read_frames(tmp_path / "a.ts"))
    assert f"change to {second} px" in caplog.text and "black borders" in caplog.text
    assert len(frames) == 50
    assert np.array_equal(frames[:24], list(read_frames(parts[0]))[:24])
    (width, height), (w, h) = (map(int, size.split("x")) for size in (first, second))
    scale = min(width / w, height / h)
    inner = round(w * scale), round(h * scale)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    whole = next(read_frames(parts[1], start=10, size=inner)).astype(int)
    found = frames[35][top : top + inner[1], left : left + inner[0]].astype(int)
    assert np.abs(found - whole)[:, 4:-4].mean() < 3
    border = np.ones((height, width), bool)
    border[max(0, top - 4) : top + inner[1] + 4, max(0, left - 4) : left + inner[0] + 4] = False
    assert border.any() and frames[35][border].max() <= 2
    # Counting goes on, whatever the size.
    part = list(read_frames(tmp_path / "a.ts", start=30, end=34))
    assert np.array_equal(part, frames[30:34])


@pytest.mark.parametrize("rate", ["10", "12.5"])
def test_animated_avif_is_a_clip(make_clip, rate):
    clip = make_clip(
        f"a{rate}.avif", "-c:v", "libaom-av1", "-cpu-used", "8", "-usage", "realtime", rate=rate, seconds=0.8
    )
    info = probe(clip)
    frames = [frame.tobytes() for frame in read_frames(clip)]
    assert info.rate == Fraction(rate)
    assert len(frames) == len(set(frames)) == frame_count(clip) == round(0.8 * float(rate))


def test_animated_png_and_gif_keep_their_time(make_clip):
    for name in ("a.gif", "a.apng"):
        clip = make_clip(name, rate="10", seconds=1)
        assert (probe(clip).rate, len({frame.tobytes() for frame in read_frames(clip)})) == (10, 10)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_huge_pictures_are_refused_before_they_are_decoded(make_clip, suffix):
    squeezed = make_clip(
        f"squeezed.{suffix}", "-vf", "setsar=1/250:max=1000", "-c:v", "libx264", size="640x480", seconds=0.1
    )
    with pytest.raises(InputError, match="640x120000 px, more than 35 megapixels"):
        probe(squeezed)
    large = make_clip(f"large.{suffix}", "-c:v", "libx264", "-preset", "ultrafast", size="8200x4400", seconds=0.04)
    with pytest.raises(InputError, match="8200x4400 px, more than 35 megapixels"):
        probe(large)


def test_cover_picture_is_not_the_clip(make_clip, tmp_path, picture):
    from expportrait_cli.media.writer import write_png

    clip = make_clip("for_cover.mp4", *X264)
    cover = write_png(tmp_path / "cover.png", picture)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-i", str(cover), "-i", str(clip)]
    options = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic"]
    subprocess.run([*command, *options, str(tmp_path / "covered.mp4")], check=True)
    info = probe(tmp_path / "covered.mp4")
    assert (info.width, info.height, info.codec) == (128, 96, "h264")
    assert frame_count(tmp_path / "covered.mp4") == 50


@pytest.mark.parametrize("name", ["-y.mp4", "a b é 面 (1) 100%d 'q'.mp4", "a:b.mp4"])
def test_odd_names(make_clip, tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(make_clip("plain.mp4", *X264, seconds=0.2).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(list(read_frames(name))) == 5


def test_truncated_clip_yields_what_decodes_with_one_warning(make_clip, tmp_path, caplog):
    whole = make_clip("faststart.mp4", *X264, "-g", "12", "-movflags", "+faststart", seconds=4).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with caplog.at_level(logging.WARNING):
        frames = list(read_frames(tmp_path / "cut.mp4"))
    assert 30 < len(frames) < 95
    assert len(frames) == frame_count(tmp_path / "cut.mp4")
    assert len(caplog.records) == 1
    assert f"{len(frames)} frames" in caplog.text


def test_refusals(make_clip, tmp_path):
    whole = make_clip("moov_last.mp4", *X264).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a clip\n" * 300)
    sound = make_clip("sound.m4a", "-vn", "-c:a", "aac", audio=True)
    cases = [
        (tmp_path / "cut.mp4", "cut off before its index"),
        (tmp_path / "empty.mp4", "0 bytes"),
        (tmp_path / "text.mp4", "is not a clip"),
        (tmp_path / "none.mp4", "does not exist"),
        (tmp_path, "folder"),
        (sound, "sound but no picture"),
    ]
    for path, said in cases:
        for read in (probe, frame_count, lambda p: next(read_frames(p))):
            with pytest.raises(InputError, match=said) as error:
                read(path)
            assert "\n" not in str(error.value)


def test_sound_that_starts_before_the_picture_is_told(make_clip, tmp_path):
    clip = make_clip("sync.mkv", *X264, "-c:a", "aac", audio=True)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-itsoffset", "0.4", "-i", str(clip)]
    options = ["-i", str(clip), "-map", "0:v", "-map", "1:a", "-c", "copy"]
    subprocess.run([*command, *options, str(tmp_path / "late.mkv")], check=True)
    assert abs(probe(tmp_path / "late.mkv").start_s - 0.4) < 0.03
    assert frame_count(tmp_path / "late.mkv") == 50


def test_closing_early_stops_ffmpeg_and_nothing_lies_beside_the_clip(make_clip, tmp_path):
    # Another test of this process may have left a helper of multiprocessing.
    before = set(_children())
    clip = tmp_path / "a.mp4"
    clip.write_bytes(make_clip("long.mp4", *X264, size="640x480", seconds=8).read_bytes())
    clip.chmod(0o444)
    frames = read_frames(clip)
    next(frames)
    assert set(_children()) > before
    frames.close()
    assert set(_children()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def _children() -> list[str]:
    return " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/children")).split()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(make_clip):
    short = make_clip("short.mp4", *X264, size="640x480", seconds=4)
    long = make_clip("very_long.mp4", *X264, size="640x480", seconds=40)
    script = (
        "import resource, sys; from expportrait_cli.media.video import read_frames\n"
        "n = sum(1 for _ in read_frames(sys.argv[1]))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    used = []
    for clip, count in ((short, 100), (long, 1000)):
        out = subprocess.run([sys.executable, "-c", script, str(clip)], capture_output=True, text=True, check=True)
        assert int(out.stdout.split()[0]) == count
        used.append(int(out.stdout.split()[1]))
    assert used[1] < used[0] + 5_000
