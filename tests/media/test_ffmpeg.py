"""Which files are opened, which sound is taken, and what time stamps say."""

import logging
import subprocess
from fractions import Fraction

import imageio_ffmpeg
import numpy as np
import pytest

from expportrait_cli.errors import InputError
from expportrait_cli.media.ffmpeg import check_sound, choose_track
from expportrait_cli.media.video import probe, read_frames
from expportrait_cli.media.writer import VideoWriter

X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")


def run(*options):
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-y", *map(str, options)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def sounding(path, *sounds, options=()):
    """A clip of 1 s with sound tracks, each of the given source of ffmpeg's."""
    inputs = [word for source in sounds for word in ("-f", "lavfi", "-i", source)]
    maps = [word for index in range(len(sounds) + 1) for word in ("-map", str(index))]
    run("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1", *inputs, *maps, *X264, *options, path)
    return path


def tones(path):
    """Loudest frequency of each channel of the only sound track, Hz."""
    raw = run("-i", path, "-map", "0:a:0", "-ar", "8000", "-f", "s16le", "-c:a", "pcm_s16le", "-ac", "2", "-")
    samples = np.frombuffer(raw, np.int16).reshape(-1, 2)[1000:7000]
    return (np.abs(np.fft.rfft(samples * np.hanning(len(samples))[:, None], axis=0)).argmax(0) * 8000 / 6000).tolist()


def film(path, audio):
    with VideoWriter(path, rate=Fraction(25), audio=audio) as writer:
        for _ in range(25):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    return path


LOW, HIGH = "sine=440:duration=1:sample_rate=48000", "sine=880:duration=1:sample_rate=48000"


def spoil_first_track(path):
    """Name a codec that nothing decodes, as phones write beside the usual one."""
    content = bytearray(path.read_bytes())
    at = content.find(b"mp4a", content.find(b"soun"))
    content[at : at + 4] = b"apac"
    inner = content.find(b"esds", at)
    content[inner : inner + 4] = b"dapa"
    spoilt = path.with_name("spoilt.mov")
    spoilt.write_bytes(content)
    return spoilt


@pytest.mark.parametrize("suffix", ["mkv", "mov"])
def test_the_default_track_is_taken(tmp_path, caplog, suffix):
    options = ("-c:a", "aac", "-disposition:a:0", "0", "-disposition:a:1", "default")
    clip = sounding(tmp_path / f"a.{suffix}", LOW, HIGH, options=options)
    check_sound(clip)
    assert not caplog.records
    assert np.allclose(tones(film(tmp_path / "film.mp4", clip)), 880, atol=2)


def test_another_track_is_taken_for_one_that_nothing_decodes(tmp_path, caplog):
    clip = spoil_first_track(sounding(tmp_path / "a.mov", LOW, HIGH, options=("-c:a", "aac")))
    assert probe(clip).has_audio
    check_sound(clip)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Sound track 2" in caplog.text and "cannot be used" in caplog.text
    assert np.allclose(tones(film(tmp_path / "film.mp4", clip)), 880, atol=2)


def test_sound_that_nothing_decodes_is_refused(tmp_path):
    clip = spoil_first_track(sounding(tmp_path / "a.mov", LOW, options=("-c:a", "aac")))
    assert probe(clip).has_audio
    with pytest.raises(InputError, match=r"sound that cannot be used .*`audio=none`") as error:
        check_sound(clip)
    assert "\n" not in str(error.value)


# All channels sound at 440 Hz but the second, at 880 Hz: their number, how they are written, what is heard left and
# right, and the note.
MANY = {
    "hexadecagonal": (16, ("-c:a", "pcm_s16le"), (440, 440), "All channels of the sound"),
    "nothing known": (9, ("-c:a", "pcm_s16le"), (440, 880), "The first channels of the sound"),
    "ambisonic 1": (4, ("-c:a", "libopus", "-mapping_family", "2"), (440, 440), "become mono"),
}


@pytest.mark.parametrize("layout", MANY)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_channels_that_no_encoder_takes_are_mixed(tmp_path, caplog, layout, suffix):
    count, coding, heard, said = MANY[layout]
    time = np.arange(48000) / 48000
    channels = [9000 * np.sin(2 * np.pi * (880 if index == 1 else 440) * time) for index in range(count)]
    (tmp_path / "a.raw").write_bytes(np.stack(channels, 1).astype("<i2").tobytes())
    named = [] if layout == "nothing known" else ["-channel_layout", layout]
    raw = ["-guess_layout_max", "0", "-f", "s16le", "-ar", "48000", "-ac", count, *named, "-i", tmp_path / "a.raw"]
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1"]
    run(*source, *raw, "-map", "0", "-map", "1", *X264, *coding, tmp_path / "a.mkv")
    check_sound(tmp_path / "a.mkv")
    assert said in caplog.text
    assert np.allclose(tones(film(tmp_path / f"film.{suffix}", tmp_path / "a.mkv")), heard, atol=2)


def test_a_file_without_sound_has_no_track(make_clip):
    assert choose_track(make_clip("silent.mp4", *X264)) is None


PLAYLISTS = {
    "hls.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "hls.mp4": "\n#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile real.mp4\n",
    "dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet><Representation id="1" bandwidth="1" mimeType="video/mp4"><BaseURL>real.mp4</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "dash.mkv": '<MPD type="static"><Period/></MPD>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_nothing(make_clip, tmp_path, name):
    (tmp_path / "real.mp4").write_bytes(make_clip("real.mp4", *X264).read_bytes())
    (tmp_path / name).write_text(PLAYLISTS[name])
    for read in (probe, lambda path: next(read_frames(path))):
        with pytest.raises(InputError, match="is a playlist, not a clip"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.avs", b"Version()\n"), ("a.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>')],
)
def test_scripts_are_no_clips(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="is not a clip"):
        probe(tmp_path / name)


@pytest.mark.parametrize("begin", [b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\1\0\0\0WEBPVP8 "])
def test_a_broken_photo_is_called_one(tmp_path, begin):
    (tmp_path / "a.jpg").write_bytes(begin + bytes(200))
    with pytest.raises(InputError, match="photo that is damaged"):
        probe(tmp_path / "a.jpg")


DROPS = {"one": [12], "the second": [1], "two together": [20, 21], "five": [3, 11, 12, 30, 40]}
ENCODERS = {
    "mp4": ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2"),
    "mkv": ("-c:v", "libx264", "-preset", "ultrafast"),
    "webm": ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "16"),
    "avi": ("-c:v", "mjpeg"),
    "ts": ("-c:v", "libx264", "-preset", "ultrafast"),
}


def dropped(path, rate, drops, count=45):
    chosen = "*".join(f"not(eq(n\\,{index}))" for index in drops) or "1"
    source = ["-f", "lavfi", "-i", f"testsrc2=size=64x64:rate={rate}", "-frames:v", count - len(drops)]
    filters = f"trim=end_frame={count},select='{chosen}',format=yuv420p"
    run(*source, "-vf", filters, "-fps_mode", "passthrough", *ENCODERS[path.suffix[1:]], path)
    return path


@pytest.mark.parametrize("rate", ["25", "30000/1001"])
@pytest.mark.parametrize("suffix", ENCODERS)
@pytest.mark.parametrize("name", DROPS)
def test_dropped_frames_change_neither_rate_nor_time(tmp_path, rate, suffix, name):
    check_drops(dropped(tmp_path / f"a.{suffix}", rate, DROPS[name]), rate, DROPS[name])


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["24000/1001", "24", "30", "50", "60000/1001", "60", "12.5", "15"])
@pytest.mark.parametrize(("suffix", "name"), [("mp4", "five"), ("mkv", "two together"), ("ts", "one")])
def test_dropped_frames_at_other_rates(tmp_path, rate, suffix, name):
    check_drops(dropped(tmp_path / f"a.{suffix}", rate, DROPS[name]), rate, DROPS[name])


def check_drops(clip, rate, drops):
    info = probe(clip)
    frames = [frame.tobytes() for frame in read_frames(clip)]
    assert (info.rate, info.repeated, len(frames)) == (Fraction(rate), len(drops), 45)
    assert [index for index in range(1, 45) if frames[index] == frames[index - 1]] == drops


def shifted(path, seconds, *options):
    """A clip whose time stamps jump by some seconds at frame 10."""
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1"]
    run(*source, "-vf", f"setpts='PTS+if(gte(N,10),{seconds}/TB,0)'", "-fps_mode", "passthrough", *options, *X264, path)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("seconds", [3600, 100_000])
def test_an_absurd_gap_is_refused(tmp_path, suffix, seconds):
    clip = shifted(tmp_path / f"a.{suffix}", seconds, "-enc_time_base", "1/1000")
    with pytest.raises(InputError, match=f"no new picture for {seconds} s after frame 9"):
        probe(clip)


def test_a_pause_is_filled(tmp_path):
    clip = shifted(tmp_path / "a.mp4", 2)
    assert (probe(clip).rate, probe(clip).repeated, len(list(read_frames(clip)))) == (25, 50, 75)


def test_equal_time_stamps(tmp_path, caplog):
    source = ["-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=1", "-vf", "setpts=0"]
    run(*source, "-fps_mode", "passthrough", "-c:v", "ffv1", tmp_path / "a.mkv")
    with caplog.at_level(logging.INFO):
        assert len({frame.tobytes() for frame in read_frames(tmp_path / "a.mkv")}) == 25
    assert "equal time stamps" in caplog.text
    run(*source, "-fps_mode", "passthrough", "-c:v", "ffv1", tmp_path / "a.nut")
    with pytest.raises(InputError, match="time stamps are damaged"):
        probe(tmp_path / "a.nut")


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "compatible"), [(5, 0), (8, 4)])
def test_dolby_vision_without_a_usual_base_is_refused(tmp_path, profile, compatible):
    """ETSI TS 103 572: what the box `dvcC` says; here it is put behind the `hvcC` of an HLG clip."""
    tags = ["-vf", "format=yuv420p10le,setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc"]
    coding = ["-c:v", "libx265", "-x265-params", "log-level=none"]
    run("-f", "lavfi", "-i", "testsrc2=size=64x64:rate=25:duration=0.2", *tags, *coding, tmp_path / "hlg.mp4")
    content = bytearray((tmp_path / "hlg.mp4").read_bytes())
    at = content.find(b"hvcC") - 4
    after = at + int.from_bytes(content[at : at + 4], "big")
    said = bytes([1, 0]) + ((profile << 9) | (6 << 3) | 0b101).to_bytes(2, "big") + bytes([compatible << 4, *bytes(19)])
    box = (8 + len(said)).to_bytes(4, "big") + (b"dvcC" if profile <= 7 else b"dvvC") + said
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hev1"):
        size = content.rfind(parent, 0, at) - 4
        content[size : size + 4] = (int.from_bytes(content[size : size + 4], "big") + len(box)).to_bytes(4, "big")
    content[after:after] = box
    (tmp_path / "a.mp4").write_bytes(content)
    if profile == 5:
        with pytest.raises(InputError, match="Dolby Vision of profile 5"):
            probe(tmp_path / "a.mp4")
    else:
        assert np.array_equal(list(read_frames(tmp_path / "a.mp4")), list(read_frames(tmp_path / "hlg.mp4")))


def test_an_ffmpeg_that_is_not_there_is_told_in_a_line(monkeypatch, tmp_path):
    film = sounding(tmp_path / "film.mp4")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"ffmpeg cannot be run from \S+none.*Unset IMAGEIO_FFMPEG_EXE\.$"):
        probe(film)
