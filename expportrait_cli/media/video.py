"""Reading of clips, and of frames of a photo or a clip by their index."""

import io
import logging
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Int64, UInt8

from expportrait_cli.artifacts.files import check_file
from expportrait_cli.errors import InputError
from expportrait_cli.media import clip_colour, ffmpeg
from expportrait_cli.media.image import is_image, read_image


def read_frame(source: str | Path, index: int) -> UInt8[np.ndarray, "H W 3"]:
    """Read frame `index`, upright; a photo has one frame."""
    if is_image(source):
        return read_image(source)
    return next(iter(read_frames(source, start=index, end=index + 1)))


def read_pictures(source: str | Path, rows: Int64[np.ndarray, " R"]) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Read some frames of a photo or a clip in one pass; `rows` must be in rising order."""
    if is_image(source):
        yield from (read_image(source) for _ in rows)
        return
    wanted = set(rows.tolist())
    start, end = int(rows[0]), int(rows[-1]) + 1
    for index, frame in enumerate(read_frames(source, start=start, end=end), start):
        if index in wanted:
            yield frame


log = logging.getLogger(__name__)

SHOWINFO = re.compile(
    r"n: *0 .*?pts_time:(?P<start>\S+).*? fmt:(?P<format>\S+) .*?"
    r"sar:(?P<sar>\d+/\d+) s:(?P<width>\d+)x(?P<height>\d+) i:(?P<fields>\w)"
)


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a clip, and of the frames that `read_frames` yields."""

    path: str
    stream: int
    """Index of the stream among the file's video streams, cover pictures not counted, from 0."""
    width: int
    """Width of the upright frames with square pixels, px."""
    height: int
    """Height of the upright frames with square pixels, px."""
    stored: tuple[int, int, float]
    """Width, height and pixel aspect of the first decoded picture, after rotation."""
    is_turned: bool
    """True if ffmpeg rotates or mirrors the pictures."""
    rate: Fraction
    """Exact frame rate, e.g. 30000/1001; for a variable rate, the constant rate that the clip is read at."""
    has_audio: bool
    codec: str
    pix_fmt: str
    variable_rate: bool
    """True if frames are not evenly spaced; they are then repeated or dropped while reading, to keep their times."""
    repeated: int
    """Number of frames missing in an even spacing, for which the one before is repeated."""
    is_interlaced: bool
    duration_s: float
    start_s: float
    """Time of the first frame from the start of the file, s (the sound may start before)."""
    matrix: str
    """YUV matrix, ffmpeg's name; the usual one for the size if the file does not state it."""
    primaries: str
    transfer: str


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the clip's properties, from one decoded frame and the time stamps of all packets.

    Attached cover pictures do not count as video. Rotation and pixel aspect are applied to width and height. For an
    animated AVIF or HEIC, which contains a still picture too, the animation is taken.

    Raises:
        InputError: the file is missing, no clip, without a picture, too large, or its time stamps are damaged.
    """
    check_file(path)
    found = Path(path).stat()
    return _probe(os.fspath(path), (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(64)
def _probe(path: str, state: tuple[int, ...]) -> VideoInfo:
    """Probe a file; cached as long as its `state` (inode, size, time) does not change."""
    stream, (status, stamps, report) = 0, _look(path, 0)
    source, _, decoded = report.partition("Stream mapping:")
    pictures = list(ffmpeg.PICTURES.finditer(source))
    if len(pictures) > 1 and len(ffmpeg.packets(stamps)) < 2:
        every = ["-map", "0:V", "-c", "copy", "-f", "framecrc", "-"]
        counts = Counter(int(row[0]) for row in ffmpeg.packets(ffmpeg.run(*ffmpeg.input_file(path), *every)[1]))
        if counts and (longest := max(counts, key=lambda index: counts[index])):
            stream, (status, stamps, report) = longest, _look(path, longest)
            source, _, decoded = report.partition("Stream mapping:")
    frame = SHOWINFO.search(decoded)
    if frame is None or "profile: 5, level" in source:
        raise InputError(ffmpeg.refusal(path, status, report, source))
    timing = ffmpeg.timing(path, stamps, decoded, source)
    width, height = _square_size(path, int(frame["width"]), int(frame["height"]), frame["sar"])
    colours = dict(re.findall(r"color_(space|primaries|trc):(\S+)", decoded))
    aspect = [int(part) for part in frame["sar"].split("/")]
    return VideoInfo(
        path=path,
        stream=stream,
        width=width,
        height=height,
        stored=(int(frame["width"]), int(frame["height"]), aspect[0] / aspect[1] if all(aspect) else 1.0),
        is_turned="displaymatrix" in source,
        rate=timing.rate,
        has_audio=": Audio: " in source,
        codec=pictures[stream]["codec"],
        pix_fmt=frame["format"],
        variable_rate=timing.variable,
        repeated=timing.repeated,
        is_interlaced=frame["fields"] != "P"
        or re.search(r"(top|bottom)( coded)? first", pictures[stream]["form"]) is not None,
        duration_s=timing.duration_s,
        start_s=max(0.0, float(frame["start"])),
        matrix=_matrix(colours, width, height),
        primaries=colours.get("primaries", "unknown"),
        transfer=colours.get("trc", "unknown"),
    )


def _look(path: str, stream: int) -> tuple[int, str, str]:
    """Decode one frame and list all packets: exit status, a row for each packet, ffmpeg's report."""
    video = ["-map", f"0:V:{stream}"]
    first_frame = [*video, "-frames:v", "1", "-vf", "showinfo=checksum=0", "-f", "null", "-"]
    # Statistics would break the lines of the report.
    return ffmpeg.run("-nostats", *ffmpeg.input_file(path), *first_frame, *video, "-c", "copy", "-f", "framecrc", "-")


def _matrix(colours: dict[str, str], width: int, height: int) -> str:
    """YUV matrix from the tags, or the one that players assume without tags."""
    named = colours.get("space", "unknown")
    if named == "gbr" or named not in ("unknown", "unspecified", "reserved"):
        return named
    if colours.get("trc") in clip_colour.HDR or colours.get("primaries") == "bt2020":
        return "bt2020nc"
    return "bt709" if min(width, height) > 576 or max(width, height) >= 1280 else "smpte170m"


def read_frames(
    path: str | os.PathLike[str], *, start: int = 0, end: int | None = None, size: tuple[int, int] | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield RGB frames upright and with square pixels, in constant memory.

    `start` and `end` are frame numbers of the whole clip; `size`: width and height to scale to, of any aspect.
    HDR and wide gamut are converted to BT.709, interlaced frames are deinterlaced, and a picture of another size than
    the first is fitted into it with black borders; each is logged. A damaged or truncated file yields the frames that
    can be decoded, with one warning. Closing the iterator stops ffmpeg.

    Raises:
        InputError: nothing of the file can be decoded.
    """
    info = probe(path)
    width, height = size or (info.width, info.height)
    log.debug("reading %s", info)
    if info.variable_rate:
        gaps = f", {info.repeated} missing frames filled by the one before" if info.repeated else ""
        ffmpeg.say_once(
            f"{path} has a variable frame rate: read at {info.rate} frames/s{gaps}, in sync with its audio."
        )
    if info.is_interlaced:
        ffmpeg.say_once(f"{path} is interlaced: each of its frames is deinterlaced.")
    # RGB and grey clips have no YUV matrix, and swscale rejects one for them.
    is_yuv = info.pix_fmt.startswith(("yuv", "nv", "p0", "y2"))
    tags = info.matrix if is_yuv else "gbr", info.primaries, info.transfer
    scale, pad = _fit(info, width, height)
    with tempfile.NamedTemporaryFile(suffix=".cube") as table:
        if tags[0] not in ZSCALE_MATRICES and tags[1] in USUAL_PRIMARIES and tags[2] in USUAL_TRANSFERS:
            matrix = f":in_color_matrix={SWSCALE_MATRIX.get(info.matrix, 'auto')}" if is_yuv else ""
            filters = [f"{scale}{matrix}:out_range=pc", "format=rgb24", pad]
        else:
            what = clip_colour.HDR.get(info.transfer) or f"{info.matrix}, {info.primaries}, {info.transfer}"
            ffmpeg.say_once(f"The colours of {path} ({what}) are converted to those of a usual clip (BT.709).")
            if clip_colour.HDR.get(info.transfer) == "HLG":
                table.write(clip_colour.hlg_table(info.primaries))
                table.flush()
            filters = [scale, *clip_colour.conversion(*tags, pix_fmt=info.pix_fmt, table=table.name), pad]
        yield from _decode(info, filters, np.dtype(np.uint8), (height, width, 3), start, end)


USUAL_TRANSFERS = frozenset((*clip_colour.GAMMA_709, "iec61966-2-1"))
USUAL_PRIMARIES = frozenset(("unknown", "reserved", "bt709", "smpte170m", "smpte240m"))
ZSCALE_MATRICES = frozenset(("ycgco", "ictcp"))
SWSCALE_MATRIX = {
    "bt709": "bt709",
    "smpte170m": "smpte170m",
    "bt470bg": "bt470",
    "fcc": "fcc",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
}


def frame_count(path: str | os.PathLike[str], *, start: int = 0, end: int | None = None) -> int:
    """Number of frames that `read_frames` yields, by decoding the clip once; 0 if it ends before `start`."""
    info = probe(path)
    status, out, report = ffmpeg.run(
        *["-loglevel", "error", *_opened(info), *_cadence(info, start, end, [])],
        *["-f", "null", "-progress", "-", "-"],
    )
    counts = re.findall(r"^frame=(\d+)", out, re.MULTILINE) or (["0"] if status == 0 else [])
    if not counts:
        raise InputError(f"{path} could not be decoded: {ffmpeg.complaint(report)}.")
    return int(counts[-1])


def _decode(
    info: VideoInfo, filters: list[str], dtype: np.dtype, shape: tuple[int, ...], start: int, end: int | None
) -> Iterator[np.ndarray]:
    if end is not None and end <= start:
        return
    with tempfile.TemporaryFile() as errors:
        process = ffmpeg.start(
            *["-nostats", "-loglevel", "level+info", *_opened(info), *_cadence(info, start, end, filters)],
            *["-f", "rawvideo", "-"],
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        count = 0
        try:
            pipe = cast(io.BufferedReader, process.stdout)
            while True:
                frame = np.empty(shape, dtype)
                if pipe.readinto(frame.data.cast("B")) < frame.nbytes:
                    break
                yield frame
                count += 1
            process.wait()
            errors.seek(0)
            _report(info, start, count, errors.read(1 << 20).decode(errors="replace"))
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
            process.wait()


def _opened(info: VideoInfo) -> list[str]:
    # The filters accept pictures of changing size, so that the graph is not rebuilt, which would count frames from 0
    # again; only the filters that ffmpeg inserts for rotation need that.
    return ["-reinit_filter", str(int(info.is_turned)), *ffmpeg.input_file(info.path), "-map", f"0:V:{info.stream}"]


def _fit(info: VideoInfo, width: int, height: int) -> tuple[str, str]:
    """Filters that scale pictures to a size, and pad those of another aspect than the first with black."""
    stored_width, stored_height, pixel = info.stored
    wider = f"(iw*sar/ih/{stored_width * pixel / stored_height:.12g})"
    size = f"w='round({width}*min(1,{wider}))':h='round({height}*min(1,1/{wider}))'"
    return f"scale={size}:eval=frame:flags={ffmpeg.SCALE_FLAGS}", f"pad={width}:{height}:-1:-1:eval=frame"


def _cadence(info: VideoInfo, start: int, end: int | None, filters: list[str]) -> list[str]:
    """Options with filters that deinterlace, resample a variable rate to even spacing, and cut the range.

    Only frames that are flagged as interlaced are deinterlaced. `filters` follow at the end.
    """
    width, height, _ = info.stored
    # swscale rejects colours that it cannot convert, although nothing is converted here.
    is_known = info.transfer in USUAL_TRANSFERS and info.matrix not in ZSCALE_MATRICES
    chain = [] if is_known else ["setparams=color_trc=unknown:colorspace=unknown"]
    # bwdif accepts neither changing sizes nor sides that are no whole number of chroma samples.
    if re.match(r"yuva?j?4(20|22|40|44)p", info.pix_fmt) and width % 2 == height % 2 == 0:
        chain += [*_fit(info, width, height), "bwdif=mode=send_frame:deint=interlaced"]
    if info.variable_rate:
        chain += ["setpts=PTS-STARTPTS", f"fps={info.rate}"]
        last = round(info.duration_s * info.rate)
        end = last if end is None else min(end, last)
    if start or end is not None:
        chain.append(f"trim=start_frame={start}" + (f":end_frame={end}" if end is not None else ""))
    return ["-fps_mode", "passthrough", "-vf", ",".join([*chain, *filters]) or "null"]


RESIZED = re.compile(
    r"incoming frame - w: (?P<width>\d+) h: (?P<height>\d+).*?pts_time: (?P<time>\S+)"
    r"|video parameters changed to .*?, (?P<turned_width>\d+)x(?P<turned_height>\d+)"
)


def _report(info: VideoInfo, start: int, count: int, said: str) -> None:
    """Log damage of a clip, or changes of its picture size, from ffmpeg's report.

    Raises:
        InputError: no frame could be decoded.
    """
    errors = "\n".join(line for line in said.splitlines() if re.search(r"\[(error|fatal|panic)\] ", line))
    if count == 0 and start == 0:
        raise InputError(
            f"{info.path} could not be decoded: {ffmpeg.complaint(errors)}. Convert it to H.264 and try again."
        )
    width, height, _ = info.stored
    for change in RESIZED.finditer(said):
        size = change["width"] or change["turned_width"], change["height"] or change["turned_height"]
        if size != (str(width), str(height)):
            when = f" at {float(change['time']):.2f} s" if change["time"] else ""
            ffmpeg.say_once(
                f"The pictures of {info.path} change to {'x'.join(size)} px{when}: "
                f"they are fitted into {width}x{height} px with black borders."
            )
            break
    if errors:
        log.warning(
            "%s is damaged: %d frames could be decoded (%s).", info.path, start + count, ffmpeg.complaint(errors)
        )


def _square_size(path: str | os.PathLike[str], width: int, height: int, sar: str) -> tuple[int, int]:
    """Width and height with square pixels, by stretching in the pixel's longer direction, so that no detail is lost."""
    numerator, denominator = map(int, sar.split("/"))
    # Within 1 % it is the rounding error of an earlier resize, not an anamorphic picture.
    if numerator and denominator and abs(numerator / denominator - 1) >= 0.01:
        if numerator > denominator:
            width = round(width * numerator / denominator)
        else:
            height = round(height * denominator / numerator)
    if width * height > ffmpeg.MAX_PIXELS:
        raise InputError(ffmpeg.too_large(path, f"{width}x{height}"))
    if min(width, height) < 16:
        raise InputError(f"{path} is {width}x{height} px: too small to show a face. Give a clip of 256 px or more.")
    return width, height
