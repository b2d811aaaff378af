"""The per-pixel steps of the compositor as Warp kernels."""

# pyright: reportInvalidTypeForm=false
# The types of Warp's structs are created by function calls.

import sys
from typing import Any, no_type_check

import numpy as np
import warp as wp

from expportrait_cli.painting.proxy.layers import NONE, SKIN
from expportrait_cli.render import surface, warp_backend
from expportrait_cli.render.sampling import cubic, finer, mirror_sample, sample
from expportrait_cli.render.warp_backend import SPAN

wp.set_module_options({"enable_backward": False, "max_unroll": 1})

_SPAN = wp.constant(SPAN)
_NONE, _SKIN = wp.constant(wp.uint8(NONE)), wp.constant(wp.uint8(SKIN))

Affine = wp.types.matrix(shape=(2, 3), dtype=wp.float32)
Attributes = wp.types.vector(length=12, dtype=wp.float32)
"""Attributes of a vertex: position in the photo (2, px), depth there (m), cosine to its camera, RGB (3), coordinates on
the head (2, px), share of hair. Two more are empty: processors load four at once."""


@no_type_check
@wp.struct
class Photo:
    """Data that all frames share; the fields without a description are those of `layers.Layers`."""

    photo: wp.array2d(dtype=wp.vec3ub)
    plate: wp.array2d(dtype=wp.vec3ub)
    close_plate: wp.array2d(dtype=wp.vec3ub)
    foreground: wp.array2d(dtype=wp.vec4)
    matte: wp.array2d(dtype=float)
    zbuffer: wp.array2d(dtype=float)
    known: wp.array2d(dtype=wp.vec2)
    """Share of the person without its rim, and share of hair, 0..1, in each pixel of the photo."""
    strands: wp.array2d(dtype=float)
    tri: wp.array2d(dtype=wp.int32)
    triangle_part: wp.array(dtype=wp.uint8)
    attributes: wp.array(dtype=Attributes)
    moves: wp.array(dtype=float)
    """Share (0..1) of its motion that each row of the picture keeps; 0 at the bottom of the torso."""
    below: wp.array(dtype=float)
    """Position (0..1) of each row on the ramp from the chin down over a third of the face's height."""
    down: wp.array(dtype=float)
    """Share (0..1) of the torso's motion, against the head's, beyond the mesh in each pair of rows."""


@no_type_check
@wp.struct
class Maps:
    """Maps of one frame, one value a pixel where nothing else is stated."""

    part: wp.array2d(dtype=wp.uint8)
    own: wp.array2d(dtype=wp.vec2)
    """Vector from each pixel to the same surface point in the photo, px."""
    seen: wp.array2d(dtype=float)
    """Visibility (0..1) of the surface point in the photo."""
    believed: wp.array2d(dtype=float)
    """Weight (0..1) of the photo's colour at the surface point; lower than `seen` at rims and on hair."""
    hair: wp.array2d(dtype=wp.vec2)
    """Share of hair on the surface, and relative brightness of its strands."""
    colour: wp.array2d(dtype=wp.vec3)
    """Smooth colour of the surface, interpolated from the vertices."""
    away: wp.array2d(dtype=float)
    """Distance of a pixel from the mesh, px."""
    inward: wp.array2d(dtype=float)
    """Distance of a pixel inside the mesh from the background, px."""
    sharp: wp.array2d(dtype=float)
    """Share (0..1) of a pixel that the mesh covers, blurred."""
    carried: wp.array2d(dtype=wp.vec3)
    """Of each 2 x 2 block: mean of `own` minus the far field, weighted by `seen`, and the mean of `seen`."""
    beyond: wp.array2d(dtype=wp.vec2)
    """Of each 2 x 2 block: vector to the photo, px, extended beyond the mesh."""
    field: wp.array2d(dtype=wp.vec2)
    """Position in the photo, px, pixel centres at whole numbers."""
    alpha: wp.array2d(dtype=float)
    """Matte of the person in the frame, 0..1."""
    moved: wp.array2d(dtype=float)
    """Share (0..1) of the warped layers in the picture; the rest is the unchanged photo."""
    bared: wp.array2d(dtype=float)
    """Share (0..1) of the safe plate in the background; the rest is the close plate."""
    person: wp.array2d(dtype=wp.vec3ub)
    """The warped person; written only where `alpha` and `moved` are above 0."""
    folded: wp.array2d(dtype=float)
    """Weight (0..1) of painted lid skin, which is folded away in the photo."""


@no_type_check
@wp.struct
class Look:
    """Scalar parameters of one frame."""

    slack_m: float
    """Depth behind the photo's surface, m, up to which a surface point counts as visible in the photo."""
    turned: float
    """0 for the head's direction in the photo, towards 1 as it turns away (`Compositor._turned`)."""
    above: Affine
    """Affine map, px, from the frame to the photo for hair beyond the mesh."""
    below: Affine
    """Affine map, px, from the frame to the photo for the torso beyond the mesh."""
    reach: float
    """One over the distance from the mesh over which its motion fades into the maps above, 1/px."""
    limit_px: float
    """Distance from the mesh, px, up to which the photo's matte is used."""
    soft: float
    """One over the width over which the matte fades out beyond `limit_px`, 1/px."""
    border: float
    """One over the width over which hair that the photo's border cuts off fades out, 1/px."""
    fringe: float
    """One over the width over which painted hair fades out towards the mesh's outline, 1/px."""
    still: wp.vec2
    """Displacement, px, at which the weight of the warped layers begins to rise, and slope of that ramp, 1/px."""
    bare: wp.vec2
    """Displacement, px, at which the weight of the safe plate begins to rise, and slope of that ramp, 1/px."""
    shade: float
    """Share by which hidden hair is painted darker than visible hair."""


@no_type_check
@wp.func
def _level(value: float):
    """Round, and clamp to 0..255, as an 8-bit layer would."""
    return wp.rint(wp.clamp(value, 0.0, 255.0))


@no_type_check
@wp.func
def _levels(colour: wp.vec4):
    return wp.vec4(_level(colour[0]), _level(colour[1]), _level(colour[2]), 0.0)


@no_type_check
@wp.func
def _opaque(colour: wp.vec3ub):
    return wp.vec4(float(colour[0]), float(colour[1]), float(colour[2]), 0.0)


@no_type_check
@wp.func
def _ramp(value: float, ends: wp.vec2):
    return wp.clamp((value - ends[0]) * ends[1], 0.0, 1.0)


@no_type_check
@wp.func
def _far(p: Photo, look: Look, i: int, j: int):
    """Vector to the photo, px, of a 2 x 2 block far from the mesh: by the hair's map above, the torso's below."""
    centre = wp.vec3(2.0 * float(j) + 1.0, 2.0 * float(i) + 1.0, 1.0)
    high = look.above * centre
    return high + p.down[i] * (look.below * centre - high) - wp.vec2(centre[0], centre[1])


@no_type_check
@wp.kernel
def parts(p: Photo, rast: wp.array2d(dtype=wp.vec4), m: Maps):
    """Write the part of each pixel, 255 in the background."""
    row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, rast.shape[1])):
        face = int(rast[row, column][3]) - 1
        here = _NONE
        if face >= 0:
            here = p.triangle_part[face]
        m.part[row, column] = here


@no_type_check
@wp.kernel
def shade(p: Photo, look: Look, rast: wp.array2d(dtype=wp.vec4), m: Maps):
    """Interpolate the vertex attributes at each pixel, 2 x 2 blocks at a time.

    Writes `own`, `seen`, `believed`, `hair` and `colour` of each pixel, and `carried` of each block.
    """
    i, span = wp.tid()
    for j in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, m.carried.shape[1])):
        height = rast.shape[0]
        width = rast.shape[1]
        total = wp.vec3(0.0, 0.0, 0.0)
        for k in range(4):
            row = 2 * i + k / 2
            column = 2 * j + k % 2
            if row >= height or column >= width:
                continue
            here = rast[row, column]
            face = int(here[3]) - 1
            step = wp.vec2(0.0, 0.0)
            sees = 0.0
            believes = 0.0
            fibre = wp.vec2(0.0, 0.0)
            smooth = wp.vec3(0.0, 0.0, 0.0)
            if face >= 0:
                value = (
                    here[0] * p.attributes[p.tri[face, 0]]
                    + here[1] * p.attributes[p.tri[face, 1]]
                    + (1.0 - here[0] - here[1]) * p.attributes[p.tri[face, 2]]
                )
                step = wp.vec2(value[0] - float(column) - 0.5, value[1] - float(row) - 0.5)
                if m.part[row, column] == _SKIN:
                    at = wp.vec2(value[0] - 0.5, value[1] - 0.5)
                    x = wp.clamp(int(wp.rint(at[0])), 0, width - 1)
                    y = wp.clamp(int(wp.rint(at[1])), 0, height - 1)
                    if value[2] < p.zbuffer[y, x] + look.slack_m:
                        sees = wp.clamp((value[3] - 0.08) * 5.0, 0.0, 1.0)
                        shares = sample(p.known, at)
                        believes = sees * shares[0] * (1.0 - value[9] * (1.0 - shares[1]))
                    if value[9] > 0.0:
                        fibre = wp.vec2(value[9], value[9] * mirror_sample(p.strands, wp.vec2(value[7], value[8])))
                    smooth = wp.vec3(value[4], value[5], value[6])
            m.own[row, column] = step
            m.seen[row, column] = sees
            m.believed[row, column] = believes
            m.hair[row, column] = fibre
            m.colour[row, column] = smooth
            total += wp.vec3(step[0] * sees, step[1] * sees, sees) * 0.25
        far = _far(p, look, i, j)
        m.carried[i, j] = total - total[2] * wp.vec3(far[0], far[1], 0.0)


@no_type_check
@wp.kernel
def fade(p: Photo, look: Look, coarse: wp.array2d(dtype=wp.vec2), m: Maps):
    """Write `beyond`: vectors of 2 x 2 blocks that go over from the mesh's motion to the far field's.

    `coarse`: difference of the two, at half the resolution of `beyond`, extrapolated over the picture.
    """
    i, span = wp.tid()
    for j in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, m.carried.shape[1])):
        scale = wp.vec2(
            float(coarse.shape[1]) / float(m.carried.shape[1]), float(coarse.shape[0]) / float(m.carried.shape[0])
        )
        at = wp.vec2((float(j) + 0.5) * scale[0] - 0.5, (float(i) + 0.5) * scale[1] - 0.5)
        here = m.carried[i, j]
        spread = wp.vec2(here[0], here[1]) + (1.0 - wp.min(here[2], 1.0)) * sample(coarse, at)
        last_row = m.away.shape[0] - 1
        last_column = m.away.shape[1] - 1
        right = wp.min(2 * j + 1, last_column)
        bottom = wp.min(2 * i + 1, last_row)
        reach = (
            (m.away[2 * i, 2 * j] + m.away[2 * i, right] + m.away[bottom, 2 * j] + m.away[bottom, right])
            * 0.25
            * look.reach
        )
        m.beyond[i, j] = _far(p, look, i, j) + spread * wp.exp(-reach * reach)


@no_type_check
@wp.kernel
def move(p: Photo, look: Look, m: Maps):
    """Write `field`, `alpha`, `moved` and `bared` of each pixel.

    The matte fades out beyond the photo's border, except on the mesh; where the head is turned it covers the mesh.
    """
    row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, m.alpha.shape[1])):
        height = m.own.shape[0]
        width = m.own.shape[1]
        step = finer(m.beyond, row, column)
        step = (step + m.seen[row, column] * (m.own[row, column] - step)) * p.moves[row]
        at = wp.vec2(float(column), float(row)) + step
        m.field[row, column] = at
        length = wp.length(step)
        m.moved[row, column] = _ramp(length, look.still)
        m.bared[row, column] = _ramp(length, look.bare)
        share = mirror_sample(p.matte, at)
        fibre = m.hair[row, column]
        edge = m.sharp[row, column]
        soft = wp.clamp(m.inward[row, column] * look.fringe + fibre[1], 0.0, 1.0)
        cover = edge + fibre[0] * (wp.min(edge, soft) - edge)
        out = wp.max(wp.max(-at[0], at[0] - float(width - 1)), wp.max(-at[1], at[1] - float(height - 1)))
        if out > 0.0:
            out = out * look.border
            share *= wp.max(wp.max(wp.exp(-out * out), cover), p.below[row])
        cut = wp.clamp((look.limit_px - m.away[row, column]) * look.soft + 1.0, 0.0, 1.0)
        share *= wp.max(cut, p.below[row])
        if look.turned >= 0.02:
            share = wp.max(share, cover * look.turned * (1.0 - p.below[row]))
        m.alpha[row, column] = share


@no_type_check
@wp.func
def _bytes(colour: wp.vec4):
    return wp.vec3ub(wp.uint8(colour[0]), wp.uint8(colour[1]), wp.uint8(colour[2]))


@no_type_check
@wp.kernel
def carry(p: Photo, m: Maps):
    """Write the warped person into `person` where `alpha` and `moved` are above 0; other pixels are left alone."""
    row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, m.alpha.shape[1])):
        if m.alpha[row, column] > 0.0 and m.moved[row, column] > 0.0:
            m.person[row, column] = _bytes(_levels(cubic(p.foreground, m.field[row, column])))


@no_type_check
@wp.kernel
def paint(p: Photo, look: Look, m: Maps, frame: wp.array2d(dtype=wp.vec3ub), guess: wp.array2d(dtype=float)):
    """Blend plates, warped person, hidden surfaces and photo into `frame`; `guess`: how far (0..1) it is invented."""
    row, span = wp.tid()
    for column in range(span * _SPAN, wp.min(span * _SPAN + _SPAN, m.alpha.shape[1])):
        share = m.moved[row, column]
        if share <= 0.0:
            frame[row, column] = p.photo[row, column]
            guess[row, column] = 0.0
            continue
        cover = m.alpha[row, column]
        hidden = 0.0
        if m.part[row, column] == _SKIN:
            hidden = wp.max((1.0 - m.believed[row, column]) * look.turned, m.folded[row, column])
        safe = m.bared[row, column]
        out = _levels((1.0 - safe) * _opaque(p.close_plate[row, column]) + safe * _opaque(p.plate[row, column]))
        if cover > 0.0:
            person = _opaque(m.person[row, column])
            if hidden > 0.0:
                fibre = m.hair[row, column]
                smooth = m.colour[row, column] * (1.0 + fibre[1] - look.shade * fibre[0])
                person = _levels(
                    (1.0 - hidden) * person + hidden * _levels(wp.vec4(smooth[0], smooth[1], smooth[2], 0.0))
                )
            out = _levels((1.0 - cover) * out + cover * person)
        out = _levels((1.0 - share) * _opaque(p.photo[row, column]) + share * out)
        frame[row, column] = _bytes(out)
        unsure = wp.max(hidden, wp.max((1.0 - cover) * p.matte[row, column], 4.0 * cover * (1.0 - cover)))
        guess[row, column] = share * unsure


def filled(struct: Any, **arrays: np.ndarray) -> Any:
    """Make a Warp struct from arrays; contiguous arrays of its types share their memory with it."""
    made = struct()
    for name, array in arrays.items():
        dtype = struct.vars[name].type.dtype
        setattr(made, name, wp.array(np.ascontiguousarray(array), dtype=dtype, copy=False, device="cpu"))
    return made


def run(kernel: Any, shape: tuple[int, int], *inputs: Any) -> None:
    """Run a kernel on the CPU; `shape`: rows and columns of pixels, or of 2 x 2 blocks."""
    wp.launch(kernel, dim=(shape[0], -(-shape[1] // SPAN)), inputs=inputs, device="cpu")


def compile_all() -> None:
    """Compile every kernel of the tool into Warp's cache, for each device."""
    for module in (warp_backend, surface, sys.modules[__name__]):
        wp.load_module(module)
