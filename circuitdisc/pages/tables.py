"""Tables for the terminal."""

from collections.abc import Sequence

from circuitdisc.circuit import Circuit
from circuitdisc.pages.verdict import headline_score, plain_text, verdict
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.terminal import folded_table, width
from circuitdisc.wording import ACCURACIES, SPLIT_WORDS, drawn_between, is_number, score_value, share, span, undefined


def text_table(headers: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """A plain-text table with aligned columns; where stdout is a terminal, it fits its width.

    Args:
        headers: one a column.
        rows: cells, shown with `str`; a line break in a cell becomes a space.
        align: one letter a column, `l` (left) or `r` (right); columns without a letter are left-aligned.
    """
    cells = [[_printable(" ".join(str(cell).split())) for cell in row] for row in (headers, *rows)]
    for row in cells:
        if len(row) != len(headers):
            raise ValueError(f"a row has {len(row)} cells, the table has {len(headers)} columns: {row}")
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    align = align.ljust(len(headers), "l")
    columns = width()
    if columns is not None and sum(widths) + 2 * (len(widths) - 1) > columns:
        return folded_table(cells[0], cells[1:], align, columns)
    lines = [
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(row, widths, align, strict=False)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _printable(text: str) -> str:
    """A text without control characters, which a file may hold and a terminal would obey."""
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def scores_table(scores: Scores, model: str = "", circuit: Circuit | None = None) -> str:
    """The scores of a circuit as plain text: its size, a line for each score on each split, notes, accuracies, the verdict.

    Args:
        model: name of the model, for the table of accuracies.
        circuit: the circuit, whose notes belong to the verdict.
    """
    return f"{scores_alone(scores, model)}\n\n{verdict(scores, circuit).text}"


def scores_alone(scores: Scores, model: str = "") -> str:
    """The same without the verdict, for a page of text that ends with another."""
    size = (
        f"{scores.circuit_edges:,} of {scores.graph_edges:,} edges "
        f"({share(scores.circuit_edges, scores.graph_edges)}), "
        f"{scores.circuit_heads:,} of {scores.graph_heads:,} heads"
    )
    shown = [score for score in scores.scores if score.name not in _BESIDE]
    table, notes = _table_of_scores(shown), score_notes(scores)
    accuracies = accuracy_table(scores, model)
    how = how_lines(scores)
    parts = [size, "", table, *(["", *notes] if notes else []), *(["", accuracies] if accuracies else [])]
    parts += ["", *how] if how else []
    return plain_text("\n".join(parts))


def _table_of_scores(shown: Sequence[Score]) -> str:
    """A line for each score; what all have in common stands above it."""
    above, more = [], []
    for name, values in (("metric", [score.metric for score in shown]), ("ablation", [score.ablation for score in shown])):
        distinct = {value for value, score in zip(values, shown, strict=True) if value != score.name}  # `kl` is of itself
        if len(distinct) < 2:
            above += [f"{name} {value}" for value in distinct]
        else:
            more.append((name, values))
    n_drawn = {len(score.controls) for score in shown if score.controls}
    drawn = [controls_words(score) or "-" for score in shown]
    of = f" of {min(n_drawn):,}" if len(n_drawn) == 1 else ""
    if of and all(words == "-" or words.endswith(of) for words in drawn):
        drawn = [words.removeprefix("median ").removesuffix(of) for words in drawn]
        above.append(f"{min(n_drawn):,} random circuits")
        headers = (*_SCORES, "random: median (range)")
    else:
        headers = (*_SCORES, "random circuits")
    rows = [
        (
            score.name,
            score.split,
            score_value(score.name, score.value),
            span(score.name, score.low, score.high) or "-",
            f"{score.n:,}",
            words,
            *(values[at] for _, values in more),
        )
        for at, (score, words) in enumerate(zip(shown, drawn, strict=True))
    ]
    table = text_table((*headers, *(name for name, _ in more)), rows, "llrrrlll")
    return f"{', '.join(above)}\n\n{table}" if above else table


def score_notes(scores: Scores) -> list[str]:
    """What a reader must know of each score: `kl (held-out examples): ...`. The headline's own note is its verdict's."""
    told: dict[str, list[str]] = {}
    headline = headline_score(scores)
    for score in scores.scores:
        if score.name in _BESIDE or score is headline or (is_number(score.value) and not score.note):
            continue
        note = score.note if is_number(score.value) else undefined(score.note)
        told.setdefault(note, []).append(f"{score.name} ({SPLIT_WORDS.get(score.split, score.split)})")
    return [f"{', '.join(whose)}: {note}" for note, whose in told.items()]


def how_lines(scores: Scores) -> list[str]:
    """How the intervals were made, and over what; and what the random circuits have in common with the circuit."""
    lines = []
    for split in dict.fromkeys(score.split for score in scores.scores):
        methods = dict.fromkeys(score.method for score in scores.scores if score.split == split and score.method)
        if methods:
            lines.append(f"Intervals, {SPLIT_WORDS.get(split, split)}: {'; '.join(methods)}.")
    matched = dict.fromkeys(score.matched for score in scores.scores if score.matched)
    return [*lines, *(f"Controls: {words}." for words in matched)]


def accuracy_table(scores: Scores, model: str = "") -> str:
    """Accuracies of the model, the circuit and random circuits beside each other, a line a kind and split; "" without any."""
    by_name = {(score.name, score.split): score for score in scores.scores}
    rows, kinds, ablation = [], {}, ""
    for (name, split), circuit in by_name.items():
        full, ratio = by_name.get((f"full_{name}", split)), by_name.get((f"{name}_ratio", split))
        if name not in ACCURACIES or full is None:
            continue
        cells = [valued(full), valued(circuit), controls_words(circuit) or "-"]
        cells += ["-", "-"] if ratio is None else [valued(ratio), controls_words(ratio) or "-"]
        rows.append([name, *([model] if model else []), split, f"{circuit.n:,}", *cells])
        kinds[name], ablation = ACCURACIES[name], circuit.ablation
    if not rows:
        return ""
    headers = ("of", *(("model",) if model else ()), *_ACCURACIES)
    meanings = "\n".join(f"{name}: share of examples where {meaning}" for name, meaning in kinds.items())
    return f"accuracies, {ablation} ablation\n\n{text_table(headers, rows)}\n{meanings}"


_SCORES = ("score", "split", "value", "interval", "n")
_BESIDE = ("full_accuracy", "accuracy_ratio", "full_pair_accuracy")  # in the table of accuracies alone
_ACCURACIES = ("split", "n", "full model", "circuit", "random circuits", "circuit / full model", "random / full model")


def valued(score: Score) -> str:
    """`91.4 % [89 %, 93.6 %]`."""
    if not is_number(score.value):
        return undefined(score.note)
    between = span(score.name, score.low, score.high)
    return score_value(score.name, score.value) + (f" {between}" if between else "")


def controls_words(score: Score) -> str:
    """`median 3 % (1 % to 5 %) of 20`; nothing if there are no random circuits."""
    if not score.controls:
        return ""
    values = sorted(value for value in score.controls if value is not None and is_number(value))
    if not values:
        return f"undefined for all {len(score.controls):,}"
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    missing = len(score.controls) - len(values)
    words = f"median {score_value(score.name, median)} ({drawn_between(score.name, values[0], values[-1])}) of {len(values):,}"
    return words + (f", {missing:,} undefined" if missing else "")
