"""A transfer in words and tables for the terminal, and as a page that opens offline."""

import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from circuitdisc.checkpoints.transfer.ladder import Pair, Step
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit, Transfer
from circuitdisc.files import write_text
from circuitdisc.pages.explorer import as_json, comparison_data
from circuitdisc.pages.page import picture, render
from circuitdisc.pages.tables import controls_words, text_table
from circuitdisc.pages.transfer_figures import (
    LOW_IS_GOOD,
    curves_figure,
    kind_words,
    ladder_figure,
    matrix_figure,
    share_words,
    shown_kinds,
)
from circuitdisc.pages.verdict import (
    OVERSHOOT,
    Verdict,
    as_sentences,
    circuit_caveats,
    few_caveats,
    plain_text,
    within_noise,
)
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.chance import RANDOM_CIRCUITS, chance_caveats, defined
from circuitdisc.scoring.overlap import HEADS_DECIDE, Overlap, OverlapChance
from circuitdisc.wording import ACCURACIES, SPLIT_WORDS, is_number, number, percent, score_value, span, task_words, undefined

CIRCUIT_HEADERS = ("circuit", "found on", "edges", "heads", "note")
PAIR_HEADERS = (
    "A", "B", "of", "in A", "in B", "shared", "Jaccard", "precision", "recall", "by chance", "p", "same layers", "p",
)  # fmt: skip
STEP_HEADERS = ("from", "to", "of", "kept", "gained", "lost", "names gained", "names lost")
_NAMED_AT_MOST = 24

Row = tuple[str, ...]


# --- tables ---------------------------------------------------------------------------------------------------------------


def transfer_text(result: Transfer) -> str:
    """The transfer as plain text: circuits, the held-out matrix of the first scores, and what stands out."""
    parts = [text_table(CIRCUIT_HEADERS, circuit_rows(result), "llrrl")]
    for name, metric in shown_kinds(result):
        headers = ("circuit of \\ on", *result.checkpoints)
        parts.append(
            f"{matrix_caption(result, name, metric, 'heldout')}\n\n{text_table(headers, matrix_rows(result, name, metric))}"
        )
    return plain_text("\n\n".join([*parts, transfer_verdict(result).text]))


def circuit_rows(result: Transfer) -> list[Row]:
    """Each circuit with its size."""
    return [
        (
            circuit.label,
            ", ".join(circuit.found_on) or "-",
            share_words(circuit),
            f"{len(circuit.circuit.heads())} of {circuit.circuit.graph.n_layers * circuit.circuit.graph.n_heads}",
            circuit.note,
        )
        for circuit in result.circuits
    ]


def matrix_caption(result: Transfer, name: str, metric: str, split: str) -> str:
    """What a matrix shows, and of what."""
    n = result.get(result.labels[0], result.checkpoints[0], name, split, metric).n
    return f"{kind_words(name, metric)} on {n:,} {SPLIT_WORDS[split]}, ablation {result.ablation}"


def matrix_rows(result: Transfer, name: str, metric: str, split: str = "heldout") -> list[Row]:
    """A row a circuit, a column a checkpoint: value and interval; below each circuit random ones, above all the full model."""
    rows: list[Row] = []
    if name in ACCURACIES and (f"full_{name}", metric) in result.kinds():
        full = [result.get(result.labels[0], column, f"full_{name}", split, metric) for column in result.checkpoints]
        rows.append(("the full model", *(_cell(score) for score in full)))
    for label in result.labels:
        scores = [result.get(label, column, name, split, metric) for column in result.checkpoints]
        rows.append((label, *(_cell(score) for score in scores)))
        if any(score.controls for score in scores):
            drawn = ("-" if within_noise(score) else controls_words(score) or "-" for score in scores)
            rows.append(("  random circuits", *drawn))
    return rows


def _cell(score: Score) -> str:
    if score.value is None:
        return "undefined"
    if within_noise(score):
        return "within noise"
    between = span(score.name, score.low, score.high)
    return score_value(score.name, score.value) + (f" {between}" if between else "")


def cell_rows(result: Transfer, name: str, metric: str, split: str) -> list[Row]:
    """A row a cell: the value, its interval, and random circuits."""
    rows = []
    for label in result.labels:
        for column in result.checkpoints:
            score = result.get(label, column, name, split, metric)
            value = score_value(name, score.value) if score.value is not None else undefined(score.note)
            rows.append((label, column, value, span(name, score.low, score.high) or "–", controls_words(score) or "–"))
    return rows


def pair_rows(result: Transfer, own: bool) -> list[Row]:
    """What two circuits share, heads then edges.

    Args:
        own: pairs of the ladder; else all other pairs.
    """
    along = set(result.ladder.labels)
    pairs = [pair for pair in result.ladder.pairs if ({pair.a, pair.b} <= along) == own]
    return [_pair_row(pair, shared) for pair in pairs for shared in pair.overlaps.values() if shared.note != HEADS_DECIDE]


def _pair_row(pair: Pair, shared: Overlap) -> Row:
    counts = (shared.n_a, shared.n_b, shared.n_shared)
    shares = (shared.jaccard, shared.precision, shared.recall)
    return (
        pair.a,
        pair.b,
        shared.kind,
        *(number(count) for count in counts),
        *("–" if share is None else percent(share) for share in shares),
        *_chance(shared.uniform),
        *_chance(shared.matched),
    )


def _chance(chance: OverlapChance | None) -> tuple[str, str]:
    return ("–", "–") if chance is None else (number(chance.expected), number(chance.p_value))


def step_rows(result: Transfer) -> list[tuple[str | list[str], ...]]:
    """What is kept, gained and lost from each circuit of the ladder to the next."""
    return [_step_row(step) for step in result.ladder.steps]


def _step_row(step: Step) -> tuple[str | list[str], ...]:
    counts = (number(len(names)) for names in (step.kept, step.gained, step.lost))
    return (step.before, step.after, step.kind, *counts, _names(step.gained), _names(step.lost))


def _names(names: tuple[str, ...]) -> list[str]:
    """Names as a page lists them; of many the first."""
    more = [f"… {len(names) - _NAMED_AT_MOST} more"] if len(names) > _NAMED_AT_MOST else []
    return [*names[:_NAMED_AT_MOST], *more]


# --- words ----------------------------------------------------------------------------------------------------------------


def transfer_verdict(result: Transfer) -> Verdict:
    """Which circuit comes first on each checkpoint, and all that speaks against believing it."""
    able = [name for name in result.checkpoints if name not in result.notes]
    caveats = [f"On {name}: {text}" for name in able for text in _headline_caveats(result, name)]
    circuits = [
        f"Circuit of {circuit.label}: {text}" for circuit in result.circuits for text in circuit_caveats(circuit.circuit)
    ]
    lines = headlines(result) or ["No checkpoint does the task, so that no circuit serves one."]
    return Verdict(tuple(lines), tuple(dict.fromkeys((*as_sentences(notes(result)), *caveats, *circuits))))


def headlines(result: Transfer) -> list[str]:
    """For each checkpoint that does the task: which circuit comes first, chosen on search examples and judged on others."""
    return [_headline(result, name) for name in result.checkpoints if name not in result.notes]


def _headline(result: Transfer, name: str) -> str:
    best, score = result.best_for(name), result.metric
    here = result.get(best.label, name, score)
    words = f"On {name}: by {score} on the {result.get(best.label, name, score, 'train').n:,} search examples"
    own = next((circuit for circuit in result.circuits if circuit.kind == "own" and circuit.label == name), None)
    if own is None or best.label == own.label:
        which = "its own circuit" if own is not None else f"the circuit {best.label}"
        return f"{words} {which} comes first; {score} on {here.n:,} held-out examples {_words(here)}."
    there = result.get(own.label, name, score)
    return (
        f"{words} {_the(best)} comes first; {score} on {here.n:,} held-out examples {_words(here)}, against "
        f"{_words(there)} with its own."
    )


def _headline_caveats(result: Transfer, name: str) -> Iterator[str]:
    best, score = result.best_for(name), result.metric
    here = result.get(best.label, name, score)
    if not is_number(here.value):
        return
    yield from few_caveats(here.n)
    sign, value = (-1 if score in LOW_IS_GOOD else 1), float(here.value or 0.0)
    own = next((each for each in result.circuits if each.kind == "own" and each.label == name), None)
    if own is not None and own is not best:
        there = result.get(own.label, name, score)
        if is_number(there.value) and sign * float(there.value or 0.0) > sign * value:
            yield f"On the held-out examples its own circuit is ahead of {_the(best)}."
        elif _overlap(here, there):
            yield f"On the held-out examples the intervals of {_the(best)} and of its own overlap: neither is clearly ahead."
    as_good = sum(sign * control >= sign * value for control in defined(here.controls))
    doing = f"have {score} at least as {'low' if sign < 0 else 'high'}"
    yield from chance_caveats(RANDOM_CIRCUITS, doing, here.controls, as_good)
    faithful = next((each for each in result.cells[best.label, name] if _is_faithfulness(each, score)), None)
    if faithful is not None and is_number(faithful.value) and float(faithful.value or 0.0) > OVERSHOOT:
        yield f"The faithfulness of {_the(best)}, {_words(faithful)}, passes 100 %, which is no merit."


def _is_faithfulness(cell: Score, metric: str) -> bool:
    return (cell.name, cell.metric, cell.split) == ("faithfulness", metric, "heldout") and not within_noise(cell)


def _overlap(cell: Score, other: Score) -> bool:
    ends = (cell.low, cell.high, other.low, other.high)
    if not all(is_number(end) for end in ends):
        return True
    low, high, other_low, other_high = (float(end or 0.0) for end in ends)
    return low <= other_high and other_low <= high


def _the(circuit: FoundCircuit) -> str:
    if circuit.kind == "joint":
        return "the joint circuit"
    return f"the circuit of {circuit.label}" if circuit.kind == "own" else f"the circuit '{circuit.label}'"


def _words(score: Score) -> str:
    if score.value is None:
        return undefined(score.note)
    between = span(score.name, score.low, score.high)
    return score_value(score.name, score.value) + (f" {between}" if between else "")


def notes(result: Transfer) -> list[str]:
    """What a reader must know."""
    lines = [f"{name}: {note}" for name, note in result.notes.items()]
    left = [circuit.label for circuit in result.circuits if circuit.kind == "own" and circuit.label not in result.ladder.labels]
    if left:
        lines.append(
            f"The ladder of circuits leaves out {', '.join(left)}: a circuit found where the task is not done is none of it"
        )
    if any(circuit.circuit.granularity == "head" for circuit in result.circuits):
        lines.append(
            "Head circuits: the empty circuit, against which faithfulness is measured, has every head cut and every MLP kept"
        )
    return lines


# --- the page -------------------------------------------------------------------------------------------------------------


def write_transfer(path: str | PathLike[str], result: Transfer, command: str = "") -> Path:
    """Write the page of a transfer.

    Args:
        command: that made it, for the record.

    Raises:
        BadRun: the file cannot be written.
    """
    path = Path(path)
    matrix = "Heat map of the transfer matrix: each circuit on each checkpoint. The tables below list the same."
    steps = "The circuits of the ladder side by side, every node at the same place. The table below lists what changed."
    page = render(
        "transfer.html.j2",
        heading=f"Circuits for {task_words(result.settings.get('task')) or 'a task'}, each on every checkpoint",
        subject=", ".join(result.checkpoints),
        said=transfer_verdict(result),
        curves=picture("curves", curves_figure(result), "Every circuit along the checkpoints; the tables list the same."),
        matrix=picture("matrix", matrix_figure(result), matrix),
        ladder=picture("ladder", ladder_figure(result), steps),
        explored=as_json(
            comparison_data(
                {each.label: each.circuit for each in result.circuits},
                label="Diagram of the edges of two circuits of the ladder: what both have, what was gained, what was lost.",
            )
        ),
        circuit_headers=CIRCUIT_HEADERS,
        circuits=circuit_rows(result),
        scores=list(_score_tables(result)),
        pair_headers=PAIR_HEADERS,
        pairs=pair_rows(result, own=True),
        other_pairs=pair_rows(result, own=False),
        step_headers=STEP_HEADERS,
        steps=step_rows(result),
        kept=[(kind, len(names), _names(names)) for kind, names in result.ladder.kept_by_all.items()],
        settings=[("command", command), *_settings(result)] if command else list(_settings(result)),
    )
    write_text(path, page)
    return path


def _score_tables(result: Transfer) -> Iterator[tuple[str, list[Row]]]:
    for name, metric in shown_kinds(result):
        for split in ("heldout", "train"):
            yield matrix_caption(result, name, metric, split), cell_rows(result, name, metric, split)


def _settings(result: Transfer) -> Iterator[tuple[str, str]]:
    for name, value in result.settings.items():
        if value in (None, [], {}, False) or name == "circuits":
            continue
        yield name.replace("_", " "), value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
