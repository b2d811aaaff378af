"""MediaPipe FaceMesh's 478 points by name. Left and right are the person's own."""

FACE_OVAL = [
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
]
"""Slides along the cheek with the view: no anatomical points."""
IRIS = list(range(468, 478))
"""The person's right eye (468 to 472), then the left; the first of each five is the centre."""
OUTER_EYES = (33, 263)
CHIN, FOREHEAD = 152, 10
LID_PAIRS = [(159, 145), (158, 153), (160, 144), (386, 374), (385, 380), (387, 373)]
"""Upper and lower lid."""
LIP_PAIRS = [(13, 14), (82, 87), (312, 317), (81, 178), (311, 402), (80, 88), (310, 318)]
"""Inner borders of upper and lower lip."""
RIGID = [
    *(1, 2, 4, 5, 6, 168, 195, 197, 98, 327, 33, 133, 263, 362, 129, 358),
    *(151, 9, 8, 193, 417, 122, 351, 104, 333, 69, 299),
]
"""Nose, eye corners and forehead: what expressions move least."""
EYE_RINGS = [
    *(33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246),
    *(263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466),
]
UPPER_LIDS = (
    (263, 466, 388, 387, 386, 385, 384, 398, 362),
    (33, 246, 161, 160, 159, 158, 157, 173, 133),
)
LOWER_LIDS = (
    (263, 249, 390, 373, 374, 380, 381, 382, 362),
    (33, 7, 163, 144, 145, 153, 154, 155, 133),
)
"""Rims of the lids from corner to corner, the person's left eye first; lower points lie below upper ones."""
LIPS = [
    *(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 185, 40, 39, 37, 0, 267, 269, 270, 409),
    *(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 191, 80, 81, 82, 13, 312, 311, 310, 415),
]
EYE_CORNERS = ((263, 362), (33, 133))
"""Outer and inner corner of the left eye, then of the right."""
NOSE_BASE, JAW_FRONT = (2, 97, 326, 164), (152, 175, 199, 200)
