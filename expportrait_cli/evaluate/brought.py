"""Weights of estimators that the user brings: where they lie, and what to say when they do not."""

from pathlib import Path

from expportrait_cli.weights.catalogue import entry, folders, locate


def find(name: str) -> Path | None:
    """The file of the catalogue's entry `name`, in the first of the weights folders that has one."""
    return locate(entry(name))


def missing_file(name: str) -> str | None:
    """Say what the user has to bring for the catalogue's entry `name`."""
    if find(name) is not None:
        return None
    return (
        f"needs {entry(name).file} in {folders()[-1]} or in the folder that EXPPORTRAIT_WEIGHTS names; "
        "`expportrait weights list` says where it comes from, README.md how to make it"
    )
