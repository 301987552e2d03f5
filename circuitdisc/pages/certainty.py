"""What uses of a circuit say, on its page and in its verdict: rivals, specificity, backups, mixtures and positions.

Each has a schema, which is the result's own class, a part of the page, and its sentences of the verdict.
"""

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from circuitdisc.certainty.backups import Backups
from circuitdisc.certainty.general_text import TextDivergence
from circuitdisc.certainty.mixtures import Mixtures
from circuitdisc.certainty.rival_search import CUTTING
from circuitdisc.certainty.rivals import ALIKE, AS_GOOD, LARGER, LARGER_BY, UNDECIDED, WORSE, Rival, Rivals
from circuitdisc.certainty.specificity import OWN, CircuitOnTask, Specificity, WorstCases
from circuitdisc.pages.backups import backups_part, backups_verdict
from circuitdisc.pages.mixtures import mixtures_part, mixtures_verdict
from circuitdisc.pages.positions import positions_parts, positions_verdict
from circuitdisc.pages.scores.base import Part, of_words, reads
from circuitdisc.pages.verdict import Verdict, as_sentences, few_caveats
from circuitdisc.positioned.positions import Positions
from circuitdisc.scoring.chance import RANDOM_CIRCUITS, chance_caveats, defined
from circuitdisc.scoring.faithfulness import UNCLEAR
from circuitdisc.wording import number, percent, share, span, undefined

LITTLE = 0.5
"""A circuit of less faithfulness does little of what the model does, so that many do as much."""

PROMPT = 200
"""Characters of a prompt that are shown."""


class ShownCertainty(NamedTuple):
    """How one of these results is shown.

    Args:
        kind: its class, the schema of its file.
        parts: its parts of the page.
        verdict: its sentences.
    """

    kind: Any
    parts: Callable[[Any], list[Part]]
    verdict: Callable[[Any], Verdict]

    def of(self, name: str, data: Mapping[str, Any]) -> tuple[list[Part], Verdict]:
        """Both, from what the file holds.

        Raises:
            BadFile: it is something else.
        """
        result = self.kind.from_dict(data)
        with reads(f"{name}.json", f"a file of {name}", f"circuitdisc {name} RUN"):
            return self.parts(result), self.verdict(result)


def forwards_words(forwards: Mapping[str, float | None]) -> str:
    """`1,200 (tries), 300 (judgement); the run's own search took 900`: forward passes of a prompt."""
    spent = ", ".join(
        f"{value:,.0f} ({name})" for name, value in forwards.items() if name != "own search" and value is not None
    )
    own = forwards.get("own search")
    return f"{spent}; the run's own search took {'an unknown number' if own is None else f'{own:,.0f}'}"


# --- rivals ---------------------------------------------------------------------------------------------------------------


def rivals_parts(rivals: Rivals) -> list[Part]:
    """A line a try, beside the run's circuit."""
    own, of_heads = rivals.own, rivals.by == "head"
    size = f"{rivals.n_heads if of_heads else rivals.n_edges:,}"
    headers = (
        "Circuit",
        "Standing",
        "Heads" if of_heads else "Edges",
        "Faithfulness",
        "Interval",
        "Nearer by",
        "Interval",
        "Jaccard",
        "Chance",
        "×",
    )
    first = ("the run's", "–", size, percent(own.value), span(own.name, own.low, own.high) or "–")
    rows = [(*first, "–", "–", "–", "–", "–"), *(_rival_row(rival, of_heads) for rival in rivals.rivals)]
    drawn = defined(own.controls)
    if drawn:
        ends = f"{percent(min(drawn))} to {percent(max(drawn))}"
        passed = f"{rivals.random_as_good:,} {AS_GOOD}"
        rows.append((f"{len(drawn):,} random", passed, size, ends, "–", "–", "–", "–", "–", "–"))
    of_factor = "threshold" if rivals.algorithm in CUTTING else f"score of a used {rivals.by}"
    caption = (
        "Nearer by: how much nearer the full model's 100 % than the run's circuit, paired; as good: the whole interval above "
        f"−{percent(rivals.margin)}. Jaccard: of the {rivals.by}s, with the run's; chance: of a random "
        f"circuit with as many of them in each layer. ×: what the {of_factor} was multiplied by. Forward passes of a prompt: "
        f"{forwards_words(rivals.forwards)}"
    )
    core = ", ".join(rivals.core_edges[:20]) + (f" and {len(rivals.core_edges) - 20:,} more" * (len(rivals.core_edges) > 20))
    lines = [f"In all circuits that are as good: {core or 'no edge'}."] if rivals.as_good and not of_heads else []
    if rivals.as_good:
        lines.append(
            f"Heads in all of them: {', '.join(rivals.core_heads) or 'none'}; in some: {_names(rivals.optional_heads)}."
        )
    of = of_words(own.n, own.split, own.metric, own.ablation, own.confidence)
    return [Part("Rivals: other circuits of this task", of, tuple(lines), headers, tuple(rows), caption)]


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _rival_row(rival: Rival, of_heads: bool) -> tuple[str, ...]:
    does = percent(rival.faithfulness), span("faithfulness", rival.low, rival.high) or "–"
    nearer = percent(rival.nearer), span("faithfulness", rival.nearer_low, rival.nearer_high) or "–"
    alike = number(rival.jaccard), number(rival.chance), number(rival.factor)
    return rival.name, rival.standing, f"{len(rival.heads) if of_heads else rival.n_edges:,}", *does, *nearer, *alike


def rivals_verdict(rivals: Rivals) -> Verdict:
    """Whether the circuit is one of several."""
    n, good, counts = len(rivals.rivals), rivals.as_good, rivals.standings
    tries = f"{n:,} tr{'y' if n == 1 else 'ies'}"
    rule = f"no more than {percent(rivals.margin)} farther from the full model than the run's circuit"
    where = f"on {rivals.own.n:,} held-out examples, the whole {percent(rivals.own.confidence)} interval counted"
    others = ", ".join(f"{counts[name]:,} {words}" for name, words in _ENDS.items() if counts[name])
    if not good:
        lines = [f"No rival found in {tries} ({others}): none is another circuit of its size that lies {rule} ({where})."]
    else:
        most = number(max(rival.jaccard for rival in good))
        lines = [
            f"It is one of at least {len(good) + 1:,} circuits as good: {len(good):,} of {tries} gave another one, {rule} "
            f"({where}), with a Jaccard index of at most {most}{f'; {others}' if others else ''}."
        ]
        core, heads = len(rivals.core_edges), len(rivals.core_heads)
        edges = f"{core:,} of its {rivals.n_edges:,} edges ({share(core, rivals.n_edges)}) and " if rivals.by == "edge" else ""
        lines.append(
            f"Its core: {edges}{heads:,} of its {rivals.n_heads:,} heads are in all of these {len(good) + 1:,}. The mean "
            f"Jaccard index of their {rivals.by}s is {number(rivals.likeness)}; that of as many random circuits "
            f"{number(rivals.likeness_random)}."
        )
    return Verdict(tuple(lines), tuple(_rivals_caveats(rivals)))


_ENDS = {
    UNDECIDED: "undecided",
    WORSE: "worse",
    LARGER: f"over {percent(LARGER_BY)} larger",
    ALIKE: "the same circuit again, or nearly",
}


def _rivals_caveats(rivals: Rivals) -> Iterator[str]:
    own, drawn = rivals.own, defined(rivals.own.controls)
    if own.note.startswith(UNCLEAR):
        yield f"No circuit can be told from another here: {own.note}."
    elif own.value is not None and abs(1 - own.value) > LITTLE:
        yield f"The run's own faithfulness is {percent(own.value)}: circuits that are as good as that are easily had."
    if better := sum((rival.nearer_low or 0.0) > 0 for rival in rivals.as_good):
        yield f"{better:,} of the rivals {'is' if better == 1 else 'are'} clearly nearer to the full model than this circuit."
    if rivals.random_as_good:
        yield (
            f"{rivals.random_as_good:,} of {len(drawn):,} {RANDOM_CIRCUITS} pass the same rule: being as good says little "
            "where chance does it."
        )
    if not drawn:
        yield "No random circuits stand beside the rivals, so chance is not ruled out."
    if rivals.standings[UNDECIDED]:
        yield "An undecided try may be as good: more held-out examples tell (task.n_heldout)."
    if not rivals.as_good:
        yield "That none was found does not say that there is none: a search that avoids used edges finds some rivals, not all."
    yield from few_caveats(own.n)


# --- specificity ----------------------------------------------------------------------------------------------------------


def specificity_parts(result: Specificity) -> list[Part]:
    """The matrix, the worst cases by each measure, and general text."""
    matrix = Part(
        "Specificity: circuits on tasks",
        f"Held-out examples; cut edges carry {result.ablation}; {percent(result.confidence)} intervals",
        result.notes,
        ("Circuit", "Task", "n", "Metric", "Faithfulness", "Interval", "Damage", "Interval", "Random: median", "Most", "p"),
        tuple(map(_cell_row, result.cells)),
        "Damage: how much of what the model does above the empty circuit is lost when this circuit's edges alone are cut; p: "
        f"share of random circuits that do as much; this circuit's: {result.matched}. Forward passes of a prompt: "
        f"{forwards_words(result.forwards)}",
    )
    return [matrix, *map(_worst_part, result.worst), *([_text_part(result.texts)] if result.texts else [])]


def _cell_row(cell: CircuitOnTask) -> tuple[str, ...]:
    about = cell.circuit, f"{cell.task} (its own)" if cell.is_own else cell.task, f"{cell.n:,}", cell.metric
    if cell.note:
        return *about, undefined(cell.note), "–", "–", "–", "–", "–", "–"
    does = percent(cell.faithfulness), span("faithfulness", cell.low, cell.high) or "–"
    damage = percent(cell.damage), span("faithfulness", cell.damage_low, cell.damage_high) or "–"
    drawn = (percent(median(cell.random)), percent(max(cell.random)), number(cell.p)) if cell.random else ("–", "–", "–")
    return *about, *does, *damage, *drawn


def _worst_part(worst: WorstCases) -> Part:
    rows = tuple(
        (each.prompt[-PROMPT:], each.group or "–", number(each.value), _sds(each.sds), number(each.full), number(each.circuit))
        for each in worst.examples
    )
    line = (
        f"Of {worst.n:,} held-out examples: mean {number(worst.mean)}, standard deviation {number(worst.sd)}, worst "
        f"{number(worst.worst)}{_random_worst(worst)}."
    )
    title = "Worst cases: KL(model || circuit), in nats" if worst.of == "kl" else f"Worst cases: difference of {worst.of}"
    headers = ("Prompt", "Group", "Apart", "Standard deviations", "Metric: model", "Circuit")
    return Part(title, "", (line,), headers, rows, "The examples on which circuit and model are farthest apart")


def _random_worst(worst: WorstCases) -> str:
    if not worst.random_worst:
        return ""
    return f"; of {len(worst.random_worst):,} random circuits the worst is {number(median(worst.random_worst))} in the median"


def _sds(sds: float | None) -> str:
    return "–" if sds is None else number(sds)


def _text_part(text: TextDivergence) -> Part:
    rows = [
        ("this circuit", number(text.kl), span("kl", text.low, text.high) or "–"),
        ("empty circuit", number(text.empty), "–"),
    ]
    if text.random:
        between = f"{number(min(text.random))} to {number(max(text.random))}"
        rows.append((f"{len(text.random):,} random: median", number(median(text.random)), between))
    worst = f"Worst text: {number(text.worst)} nats: {text.worst_text[:PROMPT]}"
    caption = (
        f"Mean over {text.n:,} texts, {text.n_tokens:,} tokens; cut edges carry {text.ablation} of the task's search examples"
    )
    return Part(
        "General text: KL of the next token, in nats", "", (worst,), ("Circuit", "KL", "Interval"), tuple(rows), caption
    )


def specificity_verdict(result: Specificity) -> Verdict:
    """Whether the circuit is its task's own, and where it is worst."""
    mine = [cell for cell in result.cells if cell.circuit == OWN and not cell.note]
    home = next((cell for cell in mine if cell.is_own), None)
    others, lines, caveats = [cell for cell in mine if not cell.is_own], [], []
    if home is not None:
        lines.append(
            f"Cutting its edges alone takes {_damage_words(home)} of what the model does on its own task{_chance(home)}."
        )
        as_much = sum(value >= (home.damage or 0.0) for value in home.random)
        caveats += chance_caveats(RANDOM_CIRCUITS, "damage its own task as much", home.random, as_much, result.matched)
        caveats += few_caveats(home.n)
    if others:
        said = "; ".join(f"{cell.task} {_damage_words(cell)}{_chance(cell)}" for cell in others)
        lines.append(f"On other tasks it takes: {said}.")
    if home is not None and others:
        alike = [cell.task for cell in others if (cell.damage_high or 0.0) >= (home.damage_low or 0.0)]
        clearly = len(others) - len(alike)
        lines.append(f"It damages its own task clearly more than {clearly:,} of {len(others):,} other tasks.")
        if alike:
            caveats.append(f"Not clearly less than its own task it damages {', '.join(alike)}: there it is not specific.")
    for cell in result.cells:
        if cell.circuit != OWN and home is not None and cell.task == home.task and not cell.note:
            lines.append(f"The circuit {cell.circuit} has on this task a faithfulness of {percent(cell.faithfulness)}.")
    for worst in result.worst:
        if worst.examples and worst.of == "kl":
            first = worst.examples[0]
            beyond = (
                "" if first.sds is None else f", {number(first.sds)} standard deviations above the mean of {number(worst.mean)}"
            )
            lines.append(
                f"On its worst of {worst.n:,} held-out prompts its KL to the model is {number(worst.worst)} nats{beyond}."
            )
    if result.texts:
        text = result.texts
        ends = span("kl", text.low, text.high)
        lines.append(
            f"On {text.n:,} general texts its next-token KL to the model is {number(text.kl)} nats {ends}".rstrip()
            + f"; the empty circuit's is {number(text.empty)}."
        )
    if not others:
        caveats.append("No other task was measured, so that nothing says whether the circuit is specific (tasks=, runs=).")
    caveats += [f"Left out: {note}" for note in result.notes]
    return Verdict(tuple(lines), as_sentences(caveats))


def _damage_words(cell: CircuitOnTask) -> str:
    return f"{percent(cell.damage)} {span('faithfulness', cell.damage_low, cell.damage_high)}".rstrip()


def _chance(cell: CircuitOnTask) -> str:
    if not cell.random:
        return ""
    return f" (random circuits: median {percent(median(cell.random))}, most {percent(max(cell.random))})"


SHOWN: Mapping[str, ShownCertainty] = {
    "rivals": ShownCertainty(Rivals, rivals_parts, rivals_verdict),
    "specificity": ShownCertainty(Specificity, specificity_parts, specificity_verdict),
    "backups": ShownCertainty(Backups, lambda backups: [backups_part(backups)], backups_verdict),
    "mixtures": ShownCertainty(Mixtures, lambda mixtures: [mixtures_part(mixtures)], mixtures_verdict),
    "positions": ShownCertainty(Positions, positions_parts, positions_verdict),
}
"""By name: of the command, and of its file."""
