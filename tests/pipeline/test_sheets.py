"""Pictures of what there is to choose from."""

import numpy as np

from expportrait_cli.detect.faces import FaceBox
from expportrait_cli.media.image import read_image
from expportrait_cli.pipeline.sheets import FACES_PX, MARK, write_faces


def test_faces_are_boxed_where_they_are(tmp_path):
    points = np.zeros((6, 2), np.float32)
    faces = [FaceBox(40.0, 60.0, 100.0, 120.0, 0.9, points), FaceBox(200.0, 40.0, 280.0, 120.0, 0.9, points)]
    path = write_faces(tmp_path / "a.faces.png", np.zeros((160, 320, 3), np.uint8), faces)
    sheet = read_image(path)
    assert sheet.shape == (640, FACES_PX, 3)
    for face in faces:
        for x, y in ((face.x0, face.y0), (face.x1, face.y1), (face.centre[0], face.y0)):
            assert tuple(sheet[round(4 * y), round(4 * x)]) == MARK
        inside = sheet[round(4 * face.y0) + 8 : round(4 * face.y1) - 8, round(4 * face.x0) + 8 : round(4 * face.x1) - 8]
        # A number of some size, and nothing else.
        assert 50 < (inside == MARK).all(2).sum() < 3000
