"""Segments and how they join: a kill costs a segment, and the film is whole to the frame."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from expportrait_cli.errors import OutputError
from expportrait_cli.media import ffmpeg, writer
from expportrait_cli.media.video import frame_count, probe, read_frames
from expportrait_cli.media.writer import join

pytestmark = pytest.mark.slow

COUNT = writer.SEGMENT * 2 + 17


def paint(first: int):
    for index in range(first, COUNT):
        yield np.full((64, 64, 3), index % 200, np.uint8)


def write(folder, paint=paint, rate=Fraction(30000, 1001)):
    return writer.write_segments(paint, folder, frame_count=COUNT, rate=rate, progress=lambda done, total: None)


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(25), Fraction(24000, 1001), Fraction(60)])
def test_the_joined_film_has_every_frame_at_its_time(rate, tmp_path):
    out = tmp_path / "film.mp4"
    writer = write(tmp_path / "it's segments", rate=rate)
    join(writer, out, rate=rate, frame_count=COUNT)
    info = probe(out)
    assert info.rate == rate and not info.variable_rate and info.start_s == 0
    shades = [int(frame[32, 32, 0]) for frame in read_frames(out)]
    assert len(shades) == COUNT
    assert max(abs(shade - index % 200) for index, shade in enumerate(shades)) <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "it's segments"]
    assert sorted(writer[0].parent.iterdir()) == writer


def test_sound_and_tags_go_with_it(tmp_path):
    sound = tmp_path / "sound.m4a"
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=60", "-y", str(sound))
    out = tmp_path / "film.mp4"
    tags = {"comment": "AI-generated: a test"}
    join(write(tmp_path / "parts"), out, rate=Fraction(30000, 1001), frame_count=COUNT, audio=sound, metadata=tags)
    assert probe(out).has_audio
    assert frame_count(out) == COUNT
    report = ffmpeg.run(*ffmpeg.input_file(out))[2]
    assert "AI-generated: a test" in report
    # Cut to the film, which is 8.6 s long: within one packet of sound.
    assert "Duration: 00:00:08.5" in report or "Duration: 00:00:08.6" in report


@pytest.mark.parametrize(("start_s", "is_copied"), [(0.0, True), (1.234, False)])
def test_sound_is_copied_unless_it_starts_inside_a_packet(start_s, is_copied, tmp_path):
    sound = tmp_path / "sound.mp3"
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=20", "-y", str(sound))
    out = tmp_path / "film.mp4"
    rate = Fraction(25)
    join(write(tmp_path / "parts", rate=rate), out, rate=rate, frame_count=COUNT, audio=sound, audio_start_s=start_s)
    assert ("Audio: mp3" in ffmpeg.run(*ffmpeg.input_file(out))[2]) == is_copied


def test_a_killed_run_goes_on_with_the_segment_that_it_was_in(tmp_path):
    def killed(first):
        for index, frame in enumerate(paint(first), first):
            if index == writer.SEGMENT + 40:
                raise KeyboardInterrupt
            yield frame

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, killed)
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["00000000-"]
    starts = []
    paths = write(tmp_path, lambda first: starts.append(first) or paint(first))
    assert starts == [writer.SEGMENT]
    assert [frame_count(path) for path in paths] == [writer.SEGMENT, writer.SEGMENT, 17]
    assert write(tmp_path, lambda first: pytest.fail("painted again")) == paths


def test_too_few_frames_are_a_fault(tmp_path):
    with pytest.raises(RuntimeError, match="expected 17"):
        write(tmp_path, lambda first: (frame for frame, _ in zip(paint(first), range(COUNT - 1), strict=False)))


def test_segments_of_other_settings_are_removed(tmp_path):
    old, new = (writer.segments_folder(tmp_path, digit * 64) for digit in "ab")
    foreign = tmp_path / "segments-mine"
    for folder in (old, new, foreign):
        folder.mkdir()
    writer.forget_others(new)
    assert sorted(tmp_path.iterdir()) == sorted([new, foreign])


def packet_steps(path) -> tuple[set[int], set[int], int]:
    """Steps between decoding times and between presentation times of a film's pictures, and how many there are."""
    report = ffmpeg.run(*ffmpeg.input_file(path), "-map", "0:v", "-c", "copy", "-f", "framecrc", "-")[1]
    rows = [line.split(",") for line in report.splitlines() if line.startswith("0")]
    times = [sorted(int(row[column]) for row in rows) for column in (1, 2)]
    return *({b - a for a, b in pairwise(column)} for column in times), len(rows)


LENGTHS = [1, 2, 3, 4, 5, 7, 119, *range(120, 126), 135, 136, 137, *range(239, 246), 250]


@pytest.mark.parametrize("count", LENGTHS)
def test_pictures_follow_each_other_without_a_gap_at_every_length(count, tmp_path):
    rate = (Fraction(25), Fraction(24000, 1001), Fraction(30000, 1001), Fraction(60000, 1001))[count % 4]
    frames = [np.full((32, 32, 3), index % 200, np.uint8) for index in range(count)]
    parts = writer.write_segments(
        lambda first: iter(frames[first:]), tmp_path / "parts", frame_count=count, rate=rate, progress=lambda *_: None
    )
    out = tmp_path / "film.mp4"
    join(parts, out, rate=rate, frame_count=count)
    decoding, showing, found = packet_steps(out)
    assert found == count and len(decoding) <= 1 and len(showing) <= 1
    assert frame_count(out) == count
    if count > 1:
        assert probe(out).rate == rate


@pytest.mark.parametrize("damage", ["cut", "empty", "short", "flipped"])
def test_a_segment_that_a_power_cut_tore_is_painted_again(damage, tmp_path, caplog):
    paths = write(tmp_path)
    content = paths[1].read_bytes()
    if damage == "short":
        with writer.VideoWriter(paths[1], rate=Fraction(30000, 1001)) as film:
            film.write(np.zeros((64, 64, 3), np.uint8))
    elif damage == "flipped":
        middle = len(content) // 2
        paths[1].write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        paths[1].write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    starts = []
    again = write(tmp_path, lambda first: starts.append(first) or paint(first))
    assert starts == [writer.SEGMENT] and [frame_count(path) for path in again] == [writer.SEGMENT, writer.SEGMENT, 17]
    assert "is damaged" in caplog.text and again == paths
    join(again, tmp_path / "film.mp4", rate=Fraction(30000, 1001), frame_count=COUNT)
    again[-1].unlink()
    with pytest.raises(OutputError):
        join(again[:-1], tmp_path / "film.mp4", rate=Fraction(30000, 1001), frame_count=COUNT)
