import subprocess
import sys
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import pytest
from skimage import data
from support.media_files import read_gray16

from expportrait_cli.errors import OutputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.video import frame_count, probe, read_frames
from expportrait_cli.media.writer import VideoWriter

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")
NTSC = Fraction(30000, 1001)


def moving(picture: np.ndarray, count: int) -> list[np.ndarray]:
    return [np.ascontiguousarray(picture[k % 20 : k % 20 + 96, k % 30 : k % 30 + 128]) for k in range(count)]


def write(path, frames, rate=NTSC, **options):
    with VideoWriter(path, rate=rate, **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def samples(path) -> np.ndarray:
    """First audio track from the film's time zero on, mono, 48 kHz, silence where there is none."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-i", str(path), "-map", "0:a:0"]
    options = ["-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", "48000", "-f", "s16le", "-"]
    return np.frombuffer(subprocess.run([*command, *options], capture_output=True, check=True).stdout, np.int16)


def psnr(a, b) -> float:
    return float(20 * np.log10(255 / np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2))))


@pytest.mark.parametrize("rate", ["30000/1001", "24000/1001", "25", "60", "12.5"])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_rate_and_count_are_kept(tmp_path, picture, rate, suffix):
    path = write(tmp_path / "new folder" / f"a.{suffix}", moving(picture, 40), Fraction(rate))
    info = probe(path)
    assert info.rate == Fraction(rate)
    assert frame_count(path) == 40
    assert (info.width, info.height, info.codec, info.pix_fmt) == (128, 96, "h264", "yuv420p")
    assert info.matrix == "bt709"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("width", "height"), [(127, 96), (128, 95), (51, 33)])
def test_odd_sizes_are_kept(tmp_path, picture, width, height):
    frame = np.ascontiguousarray(picture[:height, :width])
    path = write(tmp_path / "a.mp4", [frame] * 3)
    assert probe(path).pix_fmt == "yuv444p"
    assert psnr(next(read_frames(path)), frame) > 40


def test_decode_encode_decode_is_neutral(tmp_path, make_clip, picture):
    first = list(read_frames(write(tmp_path / "a.mp4", moving(picture, 10))))
    second = list(read_frames(write(tmp_path / "b.mp4", first)))
    assert psnr(first, moving(picture, 10)) > 40
    assert psnr(second, first) > 40
    # No drift of the mean: range and matrix are the same on both ways.
    assert np.abs(np.mean(second, (0, 1, 2)) - np.mean(first, (0, 1, 2))).max() < 0.3


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 150, 120)])
def test_plain_colours_come_back(tmp_path, colour):
    frame = np.full((64, 64, 3), colour, np.uint8)
    assert np.abs(next(read_frames(write(tmp_path / "a.mp4", [frame]))).astype(int) - frame).max() <= 2


def test_lossless_is_bit_exact(tmp_path):
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (33, 47, 3), np.uint8) for _ in range(5)]
    path = write(tmp_path / "a.mkv", frames, lossless=True)
    assert probe(path).rate == NTSC
    assert all(np.array_equal(a, b) for a, b in zip(read_frames(path), frames, strict=True))
    depths = [random.integers(0, 65536, (33, 47), np.uint16) for _ in range(5)]
    path = write(tmp_path / "d.mkv", depths, lossless=True)
    assert all(np.array_equal(a, b) for a, b in zip(read_gray16(path), depths, strict=True))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_ntsc_sound_does_not_drift(tmp_path, make_clip, suffix):
    clip = make_clip("ntsc.mp4", *X264, "-c:a", "aac", rate="30000/1001", seconds=6.006, audio=True)
    info = probe(clip)
    path = write(tmp_path / f"a.{suffix}", read_frames(clip), info.rate, audio=clip, audio_start_s=info.start_s)
    assert frame_count(path) == frame_count(clip) == 180
    assert probe(path).rate == NTSC
    a, b = samples(clip), samples(path)
    assert abs(len(a) - len(b)) <= 2048
    # The same samples at the same times: copied packets, or FLAC.
    assert np.abs(a[: 5 * 48000].astype(int) - b[: 5 * 48000]).max() <= 1


def test_sound_is_cut_to_the_film_and_never_the_film_to_the_sound(tmp_path, make_clip, picture):
    long = make_clip("long.mp4", *X264, "-c:a", "aac", seconds=5, audio=True)
    short = make_clip("short.mp4", *X264, "-c:a", "aac", seconds=0.5, audio=True)
    film = write(tmp_path / "long.mp4", moving(picture, 50), Fraction(25), audio=long)
    assert frame_count(film) == 50
    assert 1.95 < len(samples(film)) / 48000 < 2.05
    film = write(tmp_path / "short.mp4", moving(picture, 50), Fraction(25), audio=short)
    assert frame_count(film) == 50
    assert 0.45 < len(samples(film)) / 48000 < 0.6


def test_sound_without_a_place_in_mp4_becomes_aac(tmp_path, make_clip, picture):
    clip = make_clip("pcm.avi", "-c:v", "mjpeg", "-c:a", "pcm_s16le", audio=True)
    film = write(tmp_path / "a.mp4", moving(picture, 50), Fraction(25), audio=clip)
    _, _, report = ffmpeg.run(*ffmpeg.input_file(film))
    assert "Audio: aac" in report
    assert 1.95 < len(samples(film)) / 48000 < 2.05


def test_a_driver_without_sound_is_fine(tmp_path, make_clip, picture):
    film = write(tmp_path / "a.mp4", moving(picture, 5), Fraction(25), audio=make_clip("mute.mp4", *X264))
    assert not probe(film).has_audio
    assert frame_count(film) == 5


def test_sound_of_a_range_starts_at_the_range(tmp_path, make_clip, picture):
    tone = ["-f", "lavfi", "-i", "aevalsrc='if(gte(t,1.5),0.5*sin(2764*t),0)':s=48000:d=3"]
    clip = make_clip("late.mp4", *tone, "-map", "0:v", "-map", "1:a", *X264, "-c:a", "aac", seconds=3)
    film = write(tmp_path / "a.mp4", moving(picture, 50), Fraction(25), audio=clip, audio_start_s=1.0)
    onset = np.argmax(np.abs(samples(film).astype(int)) > 2000) / 48000
    assert abs(onset - 0.5) < 0.03


def test_comment_is_kept_next_to_the_sound(tmp_path, make_clip, picture):
    clip = make_clip("tone.mp4", *X264, "-c:a", "aac", audio=True)
    for name, audio in (("a.mp4", None), ("b.mp4", clip), ("c.mkv", clip)):
        film = write(tmp_path / name, moving(picture, 3), audio=audio, metadata={"comment": "synthetic; a=b"})
        assert "synthetic; a=b" in ffmpeg.run(*ffmpeg.input_file(film))[2]


def test_index_is_in_front(tmp_path, picture):
    content = write(tmp_path / "a.mp4", moving(picture, 3)).read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_parallel_writers_in_one_folder_keep_apart(tmp_path, make_clip, picture):
    clip = make_clip("both.mp4", *X264, "-c:a", "aac", audio=True)
    light, dark = moving(picture, 12), [frame // 4 for frame in moving(picture, 12)]
    with (
        VideoWriter(tmp_path / "a.mp4", rate=NTSC, audio=clip) as first,
        VideoWriter(tmp_path / "b.mp4", rate=NTSC, audio=clip) as second,
        VideoWriter(tmp_path / "b.mp4", rate=NTSC, audio=clip) as same_name,
    ):
        for a, b in zip(light, dark, strict=True):
            first.write(a)
            second.write(b)
            same_name.write(b)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]
    assert psnr(list(read_frames(tmp_path / "a.mp4")), light) > 35
    assert psnr(list(read_frames(tmp_path / "b.mp4")), dark) > 35


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("has_audio", [False, True])
def test_leaving_early_removes_the_partial_and_keeps_the_old_film(tmp_path, make_clip, picture, error, has_audio):
    (tmp_path / "a.mp4").write_bytes(b"old")
    clip = make_clip("leave.mp4", *X264, "-c:a", "aac", audio=True) if has_audio else None
    with pytest.raises(error), VideoWriter(tmp_path / "a.mp4", rate=NTSC, audio=clip) as writer:
        for frame in moving(picture, 30):
            writer.write(frame)
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_other_errors_inside_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), VideoWriter(tmp_path / "a.mp4", rate=NTSC):
        (tmp_path / "weights").read_bytes()


def test_refusals(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.mp4").mkdir()
    frame = np.zeros((16, 16, 3), np.uint8)
    for name, said in [("file/a.mp4", "could not be written"), ("folder.mp4", "is a folder"), ("a.avi", ".mp4, .mov")]:
        with pytest.raises(OutputError, match=said) as error:
            write(tmp_path / name, [frame])
        assert "\n" not in str(error.value)
    with pytest.raises(OutputError, match=r"\.mkv"):
        write(tmp_path / "a.mp4", [frame], lossless=True)
    with pytest.raises(OutputError, match="no frames"):
        write(tmp_path / "a.mp4", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


@pytest.mark.parametrize("count", [2, 400])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, count):
    # Files of this process and of its children may not pass 20 kB.
    script = (
        "import resource, sys, numpy as np; from fractions import Fraction\n"
        "from expportrait_cli.media.writer import VideoWriter\n"
        "from expportrait_cli.errors import OutputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "noise = np.random.default_rng(0)\n"
        "try:\n"
        "    with VideoWriter(sys.argv[1], rate=Fraction(25)) as writer:\n"
        f"        for _ in range({count}): writer.write(noise.integers(0, 256, (128, 128, 3), np.uint8))\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.mp4")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "could not be written" in out.stdout
    assert out.stdout.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_size_may_not_change(tmp_path, picture):
    with pytest.raises(ValueError, match="the film is"):
        write(tmp_path / "a.mp4", [picture[:64, :64], picture[:64, :32]])


def test_a_small_film_is_smaller_and_as_near(tmp_path):
    frames = moving(data.astronaut()[60:240, 150:330], 24)
    found = {}
    for encode in ("fast", "small"):
        path = write(tmp_path / f"{encode}.mp4", frames, encode=encode)
        found[encode] = path.stat().st_size, psnr(list(read_frames(path)), frames)
    assert found["fast"][0] > 1.1 * found["small"][0]
    assert found["fast"][1] == pytest.approx(found["small"][1], abs=0.5) and found["small"][1] > 37
