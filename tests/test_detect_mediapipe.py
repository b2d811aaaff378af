import sys

import pytest

from expportrait_cli.detect import mediapipe_adapter
from expportrait_cli.errors import WeightsError


@pytest.mark.parametrize(
    ("module", "complaint"),
    [("mediapipe", "is not installed"), ("mediapipe.python.solutions.face_mesh", "has no model for face_mesh")],
)
def test_without_bundled_models_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, module: str, complaint: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(WeightsError, match=complaint) as caught:
        mediapipe_adapter.solution.__wrapped__("face_mesh")
    assert "mediapipe==0.10.21" in str(caught.value) and "\n" not in str(caught.value)
