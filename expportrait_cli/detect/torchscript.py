"""Networks that are published as TorchScript archives: programs, looked through before anything of them runs."""

import re
import warnings
import zipfile
from pathlib import Path

import torch

from expportrait_cli.errors import WeightsError, one_line

REFUSED = re.compile(rb"\b(save|from_file)\b|\bops\b(?!\.prim\b)")
"""Operators of PyTorch that touch files, and all of other libraries: torchvision's, for example, write pictures."""


def load_program(path: Path, device: torch.device, *, advice: str) -> torch.jit.ScriptModule:
    """Load a TorchScript archive, ready to run; `advice` is a sentence that says which file to take instead.

    It is a program, the only published form of some weights that comes with its network. TorchScript's own
    interpreter runs it: nothing of Python is unpickled or imported, and the program can only call operators on tensors.
    Those that reach further are looked for first, because loading may already run a part of it.

    Raises:
        WeightsError: not such an archive, a damaged one, or one that names operators of `REFUSED`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            programs = [archive.read(name) for name in archive.namelist() if name.endswith(".py")]
    except (zipfile.BadZipFile, EOFError) as error:
        raise WeightsError(f"{path} is damaged or no TorchScript archive. {advice}") from error
    if not programs:
        raise WeightsError(f"{path} holds no TorchScript, but another form of the weights. {advice}")
    if any(REFUSED.search(program) for program in programs):
        raise WeightsError(f"{path} holds a program that calls more than a network needs, and is not loaded. {advice}")
    with warnings.catch_warnings():
        # PyTorch wants torch.export instead, whose files these networks are not published as for every machine.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            raise WeightsError(f"{path} is damaged: {one_line(error)} {advice}") from error
