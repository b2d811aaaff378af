"""The page: through Gradio's own client, as its buttons call it. Without Gradio, one line."""

import shutil
import subprocess
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from support.places import ROOT

from expportrait_cli.artifacts.curves_csv import read_csv
from expportrait_cli.cli import app, ui
from expportrait_cli.head import load_head
from expportrait_cli.media.video import frame_count, read_frames
from expportrait_cli.media.writer import VideoWriter

FRAMES = 3
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A photo, two people side by side, and a short clip."""
    folder = tmp_path_factory.mktemp("page")
    photo = skimage.data.astronaut()
    Image.fromarray(photo).save(folder / "photo.png")
    Image.fromarray(np.concatenate([photo, photo], axis=1)).save(folder / "two.png")
    with VideoWriter(folder / "clip.mp4", rate=Fraction(25)) as writer:
        for frame in islice(read_frames(ROOT / "examples" / "driving.mp4"), 20, 20 + FRAMES):
            writer.write(frame)
    return folder


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    pytest.importorskip("gradio")
    from gradio_client import Client

    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
    patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    page = ui.build(tmp_path_factory.mktemp("made"))
    _, address, _ = page.launch(server_name="127.0.0.1", quiet=True, prevent_thread_lock=True, share=False)
    yield Client(address, verbose=False)
    page.close()
    patch.undo()


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ui, "find_spec", lambda name: None)
    assert app.run(["ui", "-o", str(tmp_path / "page")]) == 4
    assert capsys.readouterr().err == (
        "error: Gradio is not installed. Install the tool with its extra: pip install '.[ui]'.\n"
    )
    assert not (tmp_path / "page").exists()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_shows_the_page(client, tmp_path):
    shot = tmp_path / "page.png"
    look = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1500"]
    look += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=20000"]
    subprocess.run([*look, f"--screenshot={shot}", client.src], check=True, capture_output=True, timeout=120)
    picture = np.asarray(Image.open(shot).convert("RGB"))
    # Most of it is paper, and the button that makes the film is Gradio's orange.
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    orange = (red > 200) & (red - blue > 100) & (red - green > 40)
    assert picture.shape == (1500, 1200, 3) and 3_000 < orange.sum() < 200_000
    shown = subprocess.run([*look, "--dump-dom", client.src], check=True, capture_output=True, text=True, timeout=120)
    words = ("Photo", "Clip", "Face of the photo", "Show the normals", "Make the film", "mouthSmileLeft", "Head (.glb)")
    assert [word for word in words if word not in shown.stdout] == []


@pytest.mark.slow
def test_faces_are_numbered_where_there_are_several(client, files):
    from gradio_client import handle_file

    one, choice = client.predict(handle_file(files / "photo.png"), api_name="/faces_of_photo")
    assert one["value"] is None and [value for value, _ in choice["choices"]] == ["largest", "0"]
    sheet, choice = client.predict(handle_file(files / "two.png"), api_name="/faces_of_photo")
    assert sheet["value"] and [value for value, _ in choice["choices"]] == ["largest", "0", "1"]


@pytest.mark.slow
def test_normals_film_curves_and_report(client, files):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=r"^Choose a photo and a clip first\.$"):
        client.predict(None, None, "largest", "largest", api_name="/film")
    photo, clip = handle_file(files / "photo.png"), handle_file(files / "clip.mp4")
    normals, head = client.predict(photo, "0", api_name="/preview")
    picture = np.asarray(Image.open(normals).convert("RGB"))
    # The nose looks at the camera, whose direction is blue; around the head there is none.
    assert picture[150:210, 150:210, 2].mean() > 200 and Path(head).read_bytes()[:4] == b"glTF"
    given = (photo, clip, "largest", "largest")
    film, _, curves, report = client.predict(*given, api_name="/film")
    assert frame_count(film) == FRAMES and "Run of photo" in report
    names = load_head("anny").expression_names
    steps = [0.5 if name == "mouthSmileLeft" else 0.0 for name in names]
    again, _, changed, _ = client.predict(*given, *steps, api_name="/changed")
    before, after = read_csv(curves, names), read_csv(changed, names)
    np.testing.assert_allclose(after.expression, before.expression + np.float32(steps), atol=1e-6)
    assert np.array_equal(after.rotation, before.rotation)
    first, second = next(iter(read_frames(film))), next(iter(read_frames(again)))
    assert np.abs(first.astype(int) - second).max() > 20
