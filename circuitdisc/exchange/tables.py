"""Tables as CSV, with all digits, and as LaTeX, as people read them."""

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting, tidy
from circuitdisc.files import write_bytes
from circuitdisc.results import Row
from circuitdisc.wording import number

TABLE_ENDINGS = (".csv", ".tex")
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    '"': r"\textquotedbl{}", "−": r"\ensuremath{-}", "-": "{-}", "\u00a0": "~",
}  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def edge_rows(circuit: Circuit, scores: Float[np.ndarray, "R S"] | None = None) -> list[Row]:
    """A row a kept edge; with scores, the largest first."""
    rows = circuit.table()
    if scores is None:
        return rows
    values = scores[circuit.mask].tolist()  # in the order of the edges
    scored = [row | {"score": value} for row, value in zip(rows, values, strict=True)]
    return sorted(scored, key=lambda row: -abs(row["score"]) if math.isfinite(row["score"]) else 0.0)


def head_rows(circuit: Circuit) -> list[Row]:
    """A row a head that a kept edge leaves: the edges into each of its inputs, those out of it, and its groups."""
    graph, mask = circuit.graph, circuit.mask
    rows: list[Row] = []
    for name in circuit.heads():
        node = graph.parse_node(name)
        into = {graph.receivers[at].kind: int(mask[at].sum()) for at in graph.node_receivers[name]}
        groups = [group for group, heads in circuit.groups.items() if name in heads]
        rows.append(
            {"head": name, "layer": node.layer}
            | {f"into {kind}": into[kind] for kind in ("q", "k", "v")}
            | {"out": int(mask[:, graph.sender_index[name]].sum()), "group": ", ".join(groups)}
        )
    return rows


def write_table(path: str | Path, rows: Sequence[Mapping[str, Any]], caption: str = "") -> None:
    """Write rows as CSV or LaTeX, by the ending of the file's name.

    Args:
        path: `.csv`: numbers with all their digits, nothing for None. `.tex`: a `tabular` with the rules of the package
            booktabs, numbers to three digits.
        rows: all with the keys of the first.
        caption: of the LaTeX table, as a comment above it.

    Raises:
        BadSetting: the ending is another.
        BadRun: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLE_ENDINGS:
        raise BadSetting(f"a table is written as {' or '.join(TABLE_ENDINGS)}, by the ending of its name: {path} has neither")
    write_bytes(path, (_csv(rows) if path.suffix.lower() == ".csv" else _latex(rows, caption)).encode())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    written = StringIO()
    table = csv.writer(written, lineterminator="\n")
    if rows:
        table.writerow([_safe(name) for name in rows[0]])
    table.writerows([[_safe(value) for value in row.values()] for row in rows])
    return written.getvalue()


def _safe(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _latex(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    names = list(rows[0]) if rows else ["no rows"]
    right = {name for name in names if rows and all(isinstance(row[name], int | float | None) for row in rows)}
    lines = [r"% needs \usepackage{booktabs}"]
    lines += [f"% {' '.join(caption.split())}"] if caption else []
    lines += [f"\\begin{{tabular}}{{{''.join('r' if name in right else 'l' for name in names)}}}", "\\toprule"]
    lines += [" & ".join(map(latex, names)) + r" \\", "\\midrule"]
    lines += [" & ".join(latex(_cell(row[name])) for name in names) + r" \\" for row in rows]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, int | float) else str(value)


def latex(text: object) -> str:
    """A text with every character that LaTeX would act upon escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in tidy(" ".join(str(text).split())))
