"""Writing of pictures, of films, and of films in segments that a killed run can resume and that are then joined."""

import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, PngImagePlugin

from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.config import EncodeQuality, GenerateConfig
from expportrait_cli.errors import OutputError
from expportrait_cli.media import ffmpeg
from expportrait_cli.media.ffmpeg import Sound, sound
from expportrait_cli.runtime import Progress

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
X264 = {"fast": ("veryfast", "14"), "small": ("medium", "17")}
"""Preset and CRF of x264. At 512 px `fast` takes half the processor time of `small` (7 ms a frame instead of 14), with
less than 0.5 dB of difference in PSNR, and files half as large again."""
THREADS = "4"
"""Threads of the encoder, the same on every machine, because the encoded bytes depend on their number."""


class VideoWriter:
    """Write a film frame by frame; a context manager.

    RGB frames are encoded as H.264, yuv420p, BT.709, or yuv444p if a side is odd, because 4:2:0 needs even sides. With
    `lossless` they are encoded as FFV1 in .mkv, bit-exact; uint16 frames as 16-bit grey FFV1. The size is that of the
    first frame. The film is written under a partial name and renamed at the end; after an exception, Ctrl-C included,
    it is removed.

    Raises:
        OutputError: the file could not be written, or no frame came.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        rate: Fraction,
        audio: str | os.PathLike[str] | None = None,
        audio_start_s: float = 0.0,
        metadata: Mapping[str, str] | None = None,
        encode: EncodeQuality = GenerateConfig.encode_quality,
        lossless: bool = False,
    ) -> None:
        """Set the film's properties.

        Args:
            path: .mp4, .m4v, .mov or .mkv; lossless films are .mkv.
            rate: exact frames per second.
            audio: file whose sound (`ffmpeg.choose_track`) is added, cut to the film's length; copied if the container
                supports that, else AAC, in .mkv FLAC. The file may have no sound.
            audio_start_s: time in that file of frame 0, s: `VideoInfo.start_s`, plus the start of a range.
            metadata: tags of the container, such as title, comment, description.
            encode: fast encoding, or small files.
            lossless: encode without loss.
        """
        suffix = Path(path).suffix.lower()
        if suffix not in FORMATS or (lossless and suffix != ".mkv"):
            expected = ".mkv" if lossless else ".mp4, .mov or .mkv"
            raise OutputError(f"{path} cannot be written: films of this kind end in {expected}.")
        self.path = Path(path)
        self.frame_count = 0
        self._format = FORMATS[suffix]
        self._rate = rate
        self._audio = audio
        self._audio_start_s = audio_start_s
        self._metadata = [f"{key}={value}" for key, value in (metadata or {}).items()]
        self._encode, self._lossless = X264[encode], lossless
        self._shape: tuple[int, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "VideoWriter":
        """Create the folder and the partial file, so that an error of the path is raised at once."""
        with ExitStack() as stack:
            self._final = stack.enter_context(atomic_path(self.path))
            self._film = self._final
            if self._audio:
                self._film = self._final.with_suffix(".film.partial")
                stack.callback(self._film.unlink, missing_ok=True)
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._stack = stack.pop_all()
        return self

    def write(self, frame: UInt8[np.ndarray, "H W 3"] | UInt16[np.ndarray, "H W"]) -> None:
        """Append a frame."""
        if self._process is None:
            self._process = self._start(frame)
        if frame.shape != self._shape:
            raise ValueError(f"frame {self.frame_count} is {frame.shape}, the film is {self._shape}")
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frame).data)
        except BrokenPipeError:
            raise self._failure() from None
        self.frame_count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish and rename the film, or after an error remove the partial file."""
        try:
            if kind is None:
                self._finish()
        except BaseException as failure:
            self._kill()
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._kill()
        self._stack.__exit__(kind, error, trace)

    def _start(self, frame: np.ndarray) -> subprocess.Popen[bytes]:
        self._shape = frame.shape
        height, width = frame.shape[:2]
        if frame.dtype == np.uint16 and not self._lossless:
            raise ValueError("16-bit frames need lossless=True")
        pixels = "gray16le" if frame.dtype == np.uint16 else "rgb24"
        raw = ["-f", "rawvideo", "-pixel_format", pixels, "-video_size", f"{width}x{height}"]
        if self._lossless:
            grey = "gray16le" if pixels == "gray16le" else "bgr0"
            codec = ["-c:v", "ffv1", "-level", "3", "-g", "1", "-pix_fmt", grey]
        else:
            chroma = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
            to_yuv = f"scale=flags={ffmpeg.SCALE_FLAGS}:out_color_matrix=bt709:out_range=tv,format={chroma}"
            tags = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
            preset, crf = self._encode
            x264 = ["-c:v", "libx264", "-preset", preset, "-crf", crf, "-threads", THREADS]
            codec = ["-vf", f"{to_yuv},{tags}", *x264]
        last = [] if self._audio else self._container()
        return ffmpeg.start(
            *[
                "-loglevel",
                "error",
                *raw,
                "-framerate",
                str(self._rate),
                "-i",
                "pipe:0",
                *codec,
                *last,
                "-f",
                self._format,
                "-y",
                f"file:{self._film}",
            ],
            stdin=subprocess.PIPE,
            stderr=self._errors,
        )

    def _container(self) -> list[str]:
        options = [word for pair in self._metadata for word in ("-metadata", pair)]
        # Without this flag a Matroska film contains a random identifier.
        return [*options, *(["-fflags", "+bitexact"] if self._format == "matroska" else ["-movflags", "+faststart"])]

    def _finish(self) -> None:
        if self._process is None:
            raise OutputError(f"{self.path} was not written: it would have no frames.")
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            raise self._failure() from None
        if self._process.wait() != 0:
            raise self._failure()
        if self._audio:
            self._add_audio()

    def _add_audio(self) -> None:
        """Join film and sound in a second file, because the film's length is known only at the end."""
        assert self._audio is not None
        length_s = float(self.frame_count / self._rate)
        track = sound(self._audio, start_s=self._audio_start_s, length_s=length_s, container=self._format)
        status, _, errors = ffmpeg.run(
            *["-loglevel", "error", *ffmpeg.input_file(self._film), *track.opening, "-map", "0:v:0", *track.taking],
            *["-map_metadata", "0", "-map_chapters", "-1", "-c:v", "copy"],
            *[*self._container(), "-f", self._format, "-y", f"file:{self._final}"],
        )
        if status != 0:
            raise OutputError(f"{self.path} could not be written: {ffmpeg.complaint(errors)}.")

    def _failure(self) -> OutputError:
        assert self._process is not None
        self._process.wait()
        self._errors.seek(0)
        reason = ffmpeg.complaint(self._errors.read(4096).decode(errors="replace"))
        return OutputError(f"{self.path} could not be written: {reason}. Free space or choose another folder.")

    def _kill(self) -> None:
        if self._process is None or self._process.stdin is None:
            return
        self._process.kill()
        self._process.wait()
        # The rest of the buffer cannot be written any more.
        with suppress(BrokenPipeError):
            self._process.stdin.close()


def join(
    segments: Sequence[Path],
    path: str | os.PathLike[str],
    *,
    rate: Fraction,
    frame_count: int,
    audio: str | os.PathLike[str] | None = None,
    audio_start_s: float = 0.0,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Join segments of `VideoWriter`, of one rate, to an .mp4 without encoding; audio, metadata and errors as there."""
    # Inside quotes only the quote itself must be escaped: it is put outside of them.
    names = [str(segment.absolute()).replace("'", r"'\''") for segment in segments]
    track = Sound([], [])
    if audio is not None:
        track = sound(audio, start_s=audio_start_s, length_s=float(frame_count / rate), container="mp4")
    tags = [word for key, value in (metadata or {}).items() for word in ("-metadata", f"{key}={value}")]
    with (
        atomic_path(path) as partial,
        tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8", errors="surrogateescape") as listing,
    ):
        listing.write("ffconcat version 1.0\n" + "".join(f"file 'file:{name}'\n" for name in names))
        listing.flush()
        film = ["-protocol_whitelist", "file,pipe", "-f", "concat", "-safe", "0", "-i", f"file:{listing.name}"]
        status, _, errors = ffmpeg.run(
            *["-loglevel", "error", *film, *track.opening, "-map", "0:v:0", *track.taking],
            *["-map_chapters", "-1", "-c:v", "copy"],
            *["-video_track_timescale", str(rate.numerator * 512), *tags, "-movflags", "+faststart"],
            *["-f", "mp4", "-y", f"file:{partial}"],
        )
        if status != 0:
            raise OutputError(f"{path} could not be written: {ffmpeg.complaint(errors)}.")
        if (found := packet_count(partial)) != frame_count:
            raise OutputError(f"{path} would have {found} frames, expected {frame_count}. Run the same command again.")


def packet_count(path: Path) -> int:
    """Number of pictures of a film, without decoding; 0 for a file that cannot be opened."""
    _, out, _ = ffmpeg.run(
        *["-loglevel", "error", *ffmpeg.input_file(path), "-map", "0:v:0", "-c", "copy"],
        *["-f", "null", "-progress", "-", "-"],
    )
    counts = re.findall(r"^frame=(\d+)", out, re.MULTILINE)
    return int(counts[-1]) if counts else 0


log = logging.getLogger(__name__)

SEGMENT = 120
"""Number of frames of a segment: most frames that are lost when a run is killed."""
TAIL = 16
"""Fewest frames of the last of several segments. With fewer the encoder uses a shorter B-frame delay than in the other
segments, and the joined film has a gap."""

Frames = Iterator[UInt8[np.ndarray, "H W 3"]]


def write_segments(
    paint: Callable[[int], Frames],
    folder: Path,
    *,
    frame_count: int,
    rate: Fraction,
    progress: Progress,
    encode: EncodeQuality = GenerateConfig.encode_quality,
) -> list[Path]:
    """Write the segments that are missing in `folder`; `paint` yields the frames from a given one on.

    The name of a complete segment contains its hash, so that a damaged one is detected and written again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = segment_starts(frame_count)
    counts = [end - start for start, end in pairwise([*starts, frame_count])]
    paths: list[Path] = []
    for start in starts:
        found = sorted(folder.glob(f"{start:08d}-*.mp4"))
        whole = [path for path in found if path == _named(path, start)]
        if not whole:
            if found:
                log.warning("%s is damaged: the film is painted again from frame %d on.", found[0], start)
            break
        paths.append(whole[0])
    done = len(paths)
    if done == len(starts):
        return paths
    first = starts[done]
    if done:
        log.info("Going on at frame %d of %d.", first, frame_count)
    progress(first, frame_count)
    frames = paint(first)
    for start, expected in zip(starts[done:], counts[done:], strict=True):
        path = folder / f"{start:08d}.mp4"
        with VideoWriter(path, rate=rate, encode=encode) as writer:
            for index, frame in enumerate(islice(frames, expected), start + 1):
                writer.write(frame)
                progress(index, frame_count)
            if writer.frame_count != expected:
                raise RuntimeError(f"{writer.frame_count} frames were painted from {start} on, expected {expected}")
        paths.append(path.rename(_named(path, start)))
    return paths


def _named(path: Path, start: int) -> Path:
    """Path of a segment, from its first frame and the hash of its content."""
    return path.with_name(f"{start:08d}-{sha256(path)[:16]}.mp4")


def segment_starts(frame_count: int) -> list[int]:
    """First frame of each segment of a film."""
    starts = list(range(0, frame_count, SEGMENT))
    return starts[:-1] if len(starts) > 1 and frame_count - starts[-1] < TAIL else starts


def segments_folder(work: Path, key: str) -> Path:
    """Folder of the segments of the film with this key."""
    return work / f"segments-{key[:16]}"


def segment_folders(work: Path) -> list[Path]:
    """All folders of segments in a work folder, by the exact form of their names."""
    return [
        path for path in work.glob("segments-*") if re.fullmatch("segments-[0-9a-f]{16}", path.name) and path.is_dir()
    ]


def forget_others(folder: Path) -> None:
    """Remove the segments of other films in the same work folder, to free the disk."""
    for other in segment_folders(folder.parent):
        if other != folder:
            shutil.rmtree(other)


def write_png(path: str | os.PathLike[str], rgb: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a PNG with the tool's name in its tags, atomically."""
    tags = PngImagePlugin.PngInfo()
    tags.add_text("Software", "expportrait")
    with atomic_path(path) as partial:
        Image.fromarray(np.ascontiguousarray(rgb)).save(partial, format="PNG", pnginfo=tags)
    return Path(path)
