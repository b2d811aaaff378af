"""Conversion of clips of high dynamic range or wide gamut to SDR in BT.709."""

import re
from functools import lru_cache

import numpy as np

HDR = {"arib-std-b67": "HLG", "smpte2084": "PQ"}
WHITE_CD_M2 = 203
"""Luminance that becomes white, cd/m2: HDR reference white, BT.2408-8, table 1."""
KNEE = 0.8
"""Luminance, as a share of white's, above which highlights are compressed."""
PEAK_CD_M2 = 1000
"""Peak luminance of the assumed HLG display, cd/m2, BT.2100-3, table 5; its system gamma is 1.2."""

# Players treat all of these alike.
GAMMA_709 = (
    *("unknown", "reserved", "bt709", "smpte170m", "smpte240m", "bt1361e", "bt470m", "bt470bg"),
    *("iec61966-2-4", "bt2020-10", "bt2020-12"),
)
LUMINANCE = {
    "bt2020": (0.2627, 0.6780, 0.0593),
    "smpte432": (0.2290, 0.6917, 0.0793),
    "bt709": (0.2126, 0.7152, 0.0722),
}
"""Luminance coefficients of red, green and blue, by the names of their primaries."""


def conversion(matrix: str, primaries: str, transfer: str, *, pix_fmt: str, table: str) -> list[str]:
    """Filters that convert frames to 8-bit RGB of BT.709; names as in ffmpeg, `table`: path of the file of `hlg_table`.

    An SDR picture that was converted to HLG or PQ by BT.2408 (white at 203 cd/m2, BT.1886) is restored up to `KNEE`,
    232 of 255. Brighter light is compressed by its largest component, so that sunlit skin keeps its hue: 203 cd/m2
    become 244, 1000 become 255. Other transfer functions are converted to sRGB's.
    """
    if primaries in ("unknown", "reserved"):
        primaries = "bt2020" if transfer in HDR else "bt709"
    if transfer in GAMMA_709:
        transfer = "bt709"
    # Chroma is interpolated first: zimg refuses odd sizes with subsampled chroma. The depth is kept: swscale moves the
    # zero of full-range chroma when it changes it.
    depth = re.search(r"[py]\d*?(9|10|12|14|16)(le|be)?$", pix_fmt)
    chain = ["format=gbrp16le" if matrix == "gbr" else f"format=yuv444p{depth[1]}le" if depth else "format=yuv444p"]
    chain.append(f"setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}")
    if transfer == "arib-std-b67":
        name = re.sub(r"([\\'\[\],;])", r"\\\1", re.sub(r"([\\':])", r"\\\1", table))
        chain += ["zscale=m=gbr:r=full", "format=gbrpf32le", f"lut3d=file={name}", "setparams=color_trc=bt709"]
    if transfer in HDR:
        chain += [f"zscale=m=gbr:p=bt709:t=linear:npl={WHITE_CD_M2}:r=full", "format=gbrpf32le"]
        chain.append(f"tonemap=mobius:param={KNEE}:peak={PEAK_CD_M2 / WHITE_CD_M2:.4f}:desat=0")
    shown = "bt709" if transfer in (*HDR, "bt709") else "iec61966-2-1"
    return [*chain, f"zscale=m=gbr:p=bt709:t={shown}:r=full", "format=gbrp", "format=rgb24"]


@lru_cache(maxsize=1)
def hlg_table(primaries: str) -> bytes:
    """Table (.cube) from HLG signal to display light, coded by BT.1886 with 1 at reference white; primaries are kept.

    zimg's HLG applies the system gamma to red, green and blue separately, which makes colours too saturated, by 8
    levels in skin. BT.2100-3, table 5, scales all three by a power of the scene's luminance. Between its 65^3 points
    the table is within 0.6 levels of that for colours from 30 to 240.
    """
    a = 0.17883277
    offset = 0.5 - a * np.log(4 * a)
    signal = np.linspace(0, 1, 65)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - offset) / a) + 1 - 4 * a) / 12)
    # Red changes fastest in a .cube file.
    blue, green, red = np.meshgrid(scene, scene, scene, indexing="ij")
    rgb = np.stack([red, green, blue], -1).reshape(-1, 3)
    luminance = rgb @ np.array(LUMINANCE.get(primaries, LUMINANCE["bt2020"]))
    light = rgb * luminance[:, None] ** 0.2 * (PEAK_CD_M2 / WHITE_CD_M2)
    rows = [f"{r:.5f} {g:.5f} {b:.5f}" for r, g, b in (light ** (1 / 2.4)).tolist()]
    return "\n".join([f"LUT_3D_SIZE {len(signal)}", *rows, ""]).encode()
