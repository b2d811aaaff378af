"""Photos in, pictures out."""

import io
import os
import warnings
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, UnidentifiedImageError

from expportrait_cli.artifacts.files import atomic_path, check_file
from expportrait_cli.errors import InputError

MAX_PIXELS = 8192 * 8192
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")

ORIENTATION = 0x0112
# What undoes each EXIF orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | os.PathLike[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Read a photo as upright sRGB, whatever its name ends in.

    EXIF orientation is applied, mirrored ones too. Transparency is laid on white, as a page would show it: pixels
    under it are often black and would leave a dark fringe. 16-bit samples are scaled to 8, not clipped. CMYK and
    other colour spaces go through the embedded profile, where there is one. Of an animation, the first frame.

    Raises:
        InputError: missing, empty, no photo, cut off, 1x1, or more than 8192 x 8192 pixels.
    """
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                _check_size(path, width, height)
                image.load()
                turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
                rgb = _to_rgb(_eight_bit(path, image))
                return np.array(rgb if turn is None else rgb.transpose(turn))
    except UnidentifiedImageError:
        raise InputError(f"{path} is not a photo. Give a PNG, JPEG or WebP file.") from None
    except Image.DecompressionBombError:
        raise InputError(f"{path} has more than {MAX_PIXELS // 10**6} megapixels. Scale it down.") from None
    # Pillow raises SyntaxError on broken PNG chunks and ValueError, struct.error's parent aside, on broken headers.
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut off ({error}). Copy or download it again.") from error


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tell a photo from everything else by its content; an animated GIF or PNG is a clip.

    Raises:
        InputError: an animated WebP, which nothing here can read: taken for a photo it would be a film of one frame.
    """
    frames, form = 1, ""
    try:
        check_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                form, frames = str(image.format), getattr(image, "n_frames", 1)
    except (InputError, OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False
    if frames > 1 and form == "WEBP":
        raise InputError(
            f"{path} is an animation of {frames} pictures. Convert it to a GIF, an animated PNG or an MP4."
        )
    # A TIFF of several pages is a photo: its first.
    return frames == 1 or form not in ("GIF", "PNG")


def write_png(path: str | os.PathLike[str], rgb: UInt8[np.ndarray, "H W 3"]) -> Path:
    """Write a PNG; it is there in full or not at all."""
    with atomic_path(path) as partial:
        Image.fromarray(np.ascontiguousarray(rgb)).save(partial, format="PNG")
    return Path(path)


def _check_size(path: str | os.PathLike[str], width: int, height: int) -> None:
    if min(width, height) < 16:
        raise InputError(f"{path} is {width}x{height} px: too small to show a face. Give a photo of 256 px or more.")
    if width * height > MAX_PIXELS:
        raise InputError(f"{path} is {width}x{height} px, more than {MAX_PIXELS // 10**6} megapixels. Scale it down.")


def _eight_bit(path: str | os.PathLike[str], image: Image.Image) -> Image.Image:
    """Scale 16-bit samples; colour goes through OpenCV, because Pillow cannot hold 16-bit RGB."""
    if image.mode.startswith("I") or image.mode == "F":
        samples = np.asarray(image, np.float64)
        top = max(1.0, float(samples.max())) if image.mode == "F" else 65535.0
        return Image.fromarray(np.round(np.clip(samples, 0, top) * (255.0 / top)).astype(np.uint8))
    if image.format not in ("PNG", "TIFF") or image.mode not in ("RGB", "RGBA"):
        return image
    data = np.fromfile(path, np.uint8)
    is_8_bit = image.format == "PNG" and data[24] == 8
    samples = None if is_8_bit else cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16 or samples.ndim != 3:
        return image
    order = cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return Image.fromarray(np.round(cv2.cvtColor(samples, order) * (255.0 / 65535.0)).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        page = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(page, image.convert("RGBA")).convert("RGB")
    if profile and image.mode in ("RGB", "CMYK"):
        return _through_profile(image, profile)
    return image.convert("RGB")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        # A broken profile is common and the samples are still good.
        converted = None
    return converted or image.convert("RGB")
