"""Circuits that a setting names: a run's folder, or a circuit's file."""

from pathlib import Path
from typing import TYPE_CHECKING

from circuitdisc.errors import BadFile

if TYPE_CHECKING:
    from circuitdisc.circuit import Circuit


def given_circuit(path: str | None) -> "Circuit | None":
    """The circuit of a run's folder, or of a file.

    Raises:
        BadFile: there is none.
    """
    if path is None:
        return None
    from circuitdisc.circuit import Circuit

    file = Path(path) / "circuit.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise BadFile(f"circuit={path} is neither the folder of a finished run nor a circuit.json")
    return Circuit.load(file)
