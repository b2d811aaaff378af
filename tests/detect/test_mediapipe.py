import gc
import sys

import numpy as np
import pytest
from skimage import data

from expportrait_cli.detect import mediapipe_adapter
from expportrait_cli.detect.nets import LandmarkNet, PoseNet
from expportrait_cli.errors import WeightsError

pytestmark = pytest.mark.slow


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


def test_nets_that_are_gone_leave_no_memory_behind() -> None:
    def resident_mb() -> float:
        with open("/proc/self/statm") as pages:  # noqa: PTH123
            return int(pages.read().split()[1]) * 4096 / 1e6

    image = data.astronaut()
    sizes = []
    for _ in range(6):
        PoseNet(video=True)(image)
        gc.collect()
        sizes.append(resident_mb())
    # One costs 100 MB.
    assert sizes[-1] - sizes[0] < 100


def test_a_net_remembers_nothing_of_the_one_before_it() -> None:
    image = data.astronaut()
    moved = np.roll(image, (40, -60), (0, 1))
    alone = LandmarkNet(video=True)(moved)
    other = LandmarkNet(video=True)
    other(image)
    del other
    gc.collect()
    after = LandmarkNet(video=True)(moved)
    assert alone is not None and np.array_equal(alone, after)
