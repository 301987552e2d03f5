"""Pictures of a circuit, tables of its scores, and the page that shows both.

Plotly and Jinja2 are imported when something is drawn, not before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from circuitdisc.circuit import Circuit
    from circuitdisc.pages.drawing import draw_circuit
    from circuitdisc.pages.page import write_report
    from circuitdisc.pages.tables import scores_table, text_table
    from circuitdisc.scoring.base import Scores

__all__ = ["Reportable", "draw_circuit", "report", "scores_table", "text_table", "write_report"]

_LAZY = {"draw_circuit": "drawing", "write_report": "page", "scores_table": "tables", "text_table": "tables"}


class Reportable(Protocol):
    """What a report needs of the result of a discovery algorithm."""

    @property
    def circuit(self) -> "Circuit": ...

    @property
    def edge_scores(self) -> "Float[np.ndarray, 'R S'] | None": ...

    @property
    def trace(self) -> Sequence[Mapping[str, Any]]: ...

    @property
    def cost(self) -> Any: ...


def report(found: Reportable, scores: "Scores | None", out: str | PathLike[str]) -> Path:
    """Write `report.html`, `circuit.json` and `scores.json` into a folder.

    Args:
        found: the result of a discovery algorithm.
        scores: the scores of its circuit; None leaves `scores.json` out.
        out: the folder; made if missing.

    Returns:
        The path of the page.

    Raises:
        BadRun: the folder cannot be made or written.
    """
    from circuitdisc.errors import BadRun
    from circuitdisc.files import write_json
    from circuitdisc.pages.page import write_report

    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadRun(f"cannot make the folder {folder}: {error.strerror}. Choose another one") from error
    found.circuit.save(folder / "circuit.json")
    if scores is not None:
        write_json(folder / "scores.json", scores.to_dict())
    return write_report(
        folder / "report.html",
        circuit=found.circuit,
        scores=scores,
        run={"cost": _as_mapping(found.cost)},
        trace=found.trace,
        edge_scores=found.edge_scores,
    )


def _as_mapping(cost: Any) -> dict[str, Any]:
    if isinstance(cost, Mapping):
        return dict(cost)
    return asdict(cost) if is_dataclass(cost) and not isinstance(cost, type) else {}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"circuitdisc.pages.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'circuitdisc.pages' has no attribute '{name}'")
