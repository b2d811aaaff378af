"""Programs in TorchScript: what is loaded, and what is refused before any of it runs."""

import zipfile
from pathlib import Path

import pytest
import torch

from expportrait_cli.detect.sapiens import Sapiens, load_program
from expportrait_cli.errors import WeightsError

ADVICE = "Take another file."


class Doubles(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return 2 * picture


class Writes(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        torch.save(picture, "/tmp/stolen")
        return picture


class Maps(torch.nn.Module):
    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return torch.from_file("/tmp/stolen", True, 8)


class Calls(torch.nn.Module):
    """Calls another library's operator, here a harmless one of PyTorch's own."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        torch.ops.profiler._record_function_enter("here")
        return picture


def script(module: torch.nn.Module, path: Path) -> Path:
    with pytest.warns(DeprecationWarning):
        torch.jit.script(module).save(str(path))
    return path


def refused(path: Path, pattern: str) -> None:
    with pytest.raises(WeightsError, match=pattern) as caught:
        load_program(path, torch.device("cpu"), advice=ADVICE)
    line = str(caught.value)
    assert "\n" not in line and line.startswith(str(path)) and line.endswith(f" {ADVICE}")


def test_a_network_runs(tmp_path):
    program = load_program(script(Doubles(), tmp_path / "net.pt2"), torch.device("cpu"), advice=ADVICE)
    assert not program.training and program(torch.tensor([1.5])).tolist() == [3.0]


@pytest.mark.parametrize("module", [Writes(), Maps(), Calls()])
def test_a_program_that_reaches_further_is_not_loaded(module, tmp_path):
    refused(script(module, tmp_path / "program.pt2"), "contains operations that no network needs")


def test_other_forms_of_weights_are_refused(tmp_path):
    (tmp_path / "page.pt2").write_text("<html>not found</html>")
    refused(tmp_path / "page.pt2", "damaged or no TorchScript archive")
    exported = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(exported, tmp_path / "exported.pt2")
    refused(tmp_path / "exported.pt2", "holds no TorchScript")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt2")
    refused(tmp_path / "pickle.pt2", "holds no TorchScript")


def test_an_archive_without_its_numbers_is_damaged(tmp_path):
    whole = script(torch.nn.Linear(2, 2), tmp_path / "whole.pt2")
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / "part.pt2", "w") as part:
        for name in archive.namelist():
            if "/data/" not in name:
                part.writestr(name, archive.read(name))
    refused(tmp_path / "part.pt2", "part.pt2 is damaged: ")


def test_sapiens_advises_its_own_file(tmp_path):
    with pytest.raises(
        WeightsError, match=r"Take the file that ends in _torchscript\.pt2: `expportrait weights list`\.$"
    ):
        Sapiens(script(Writes(), tmp_path / "program.pt2"))
