"""What a judgement and a stability say, in sentences: from the numbers of `judgement.json` and `stability.json` alone."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadFile
from circuitdisc.pages.verdict import OVERSHOOT, Verdict, as_sentences
from circuitdisc.scoring.chance import RANDOM_CIRCUITS, defined
from circuitdisc.scoring.stability import STABLE
from circuitdisc.wording import is_number, number, percent, share, span

COMPLETE = 0.1
"""Of the full model's metric: a circuit with no larger gap is called complete."""

_NAMED_AT_MOST = 6  # parts in a sentence
_REMOVED_AT_MOST = 4
_FEW_SAMPLES = 10

Found = Mapping[str, Any]


def judged(judgement: Found) -> Verdict:
    """What completeness, minimality, hypothesis tests and curve say; nothing of those that were not computed.

    Args:
        judgement: as `Judgement.to_dict` gives it.

    Raises:
        BadFile: it is not a judgement.
    """
    parts: tuple[tuple[str, Callable[[Found], Verdict]], ...] = (
        ("minimality_of_edges", _minimal),
        ("minimality", _minimal),
        ("completeness", _complete),
        ("tests", _tests),
        ("curve", _curve),
    )
    said = Verdict(())
    with reads("judgement.json", "a judgement", "circuitdisc score RUN --all"):
        for name, say in parts:
            if (found := judgement.get(name)) is not None:
                said += say(found)
    return said


@contextmanager
def reads(file: str, what: str, command: str) -> Iterator[None]:
    """Names the file and the command that writes it again where its numbers are not those that are read.

    Raises:
        BadFile: they are not.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, StopIteration) as error:
        raise BadFile(f"{file} is not {what} (missing or malformed: {error}): `{command}` writes it again") from error


# --- minimality -------------------------------------------------------------------------------------------------------


def _minimal(found: Found) -> Verdict:
    needs, by, limit = found["needs"], found["by"], percent(found["threshold"])
    idle = [need["part"] for need in needs if not need["passes"]]
    least = found["threshold"] * abs(found["full"])
    unsure = [need["part"] for need in needs if need["passes"] and is_number(need["low"]) and need["low"] < least]
    change = "changes" if len(idle) == 1 else "change"
    line = (
        f"{len(idle) or 'None'} of its {len(needs):,} {by}s {change} the metric by less than {limit} of the full model's, "
        f"in the absence of the set K where it mattered most on the search examples{_listed(idle)}."
    )
    caveats = ()
    if unsure:
        many = len(unsure) > 1
        caveats = (
            f"{len(unsure):,} of its {len(needs):,} {by}s {'are' if many else 'is'} not clearly needed: the interval of "
            f"{'their changes' if many else 'the change'} reaches below {limit}{_listed(unsure)}.",
        )
    return Verdict((line,), caveats)


def _listed(names: list[str]) -> str:
    more = ", ..." if len(names) > _NAMED_AT_MOST else ""
    return f": {', '.join(names[:_NAMED_AT_MOST])}{more}" if names else ""


# --- completeness -----------------------------------------------------------------------------------------------------


def _complete(found: Found) -> Verdict:
    """Complete or not, against a share of the full model's metric, which is said; what random circuits do stands beside it."""
    worst, controls = found["worst"], [one["worst"] for one in found["controls"]]
    full = abs(next(gap["full"] for gap in found["gaps"] if gap["kind"] == "empty"))
    told, by = _removal(worst), _interval(worst)
    sets = f"the most of {len(found['gaps']):,} sets tried"
    if full == 0:
        lines = [f"{told[0].upper()}{told[1:]}{by}, {sets}."]
    else:
        yardstick = (
            f"{percent(worst['value'] / full)} of the model's {number(full)}, where up to {percent(COMPLETE)} is complete"
        )
        lines = [f"{_completeness_word(worst, COMPLETE * full)}: {told}{by}, {sets} ({yardstick})."]
    caveats = []
    own = max((gap["value"] for gap in found["gaps"] if gap["kind"] == "random"), default=None)
    as_good = 0 if own is None else sum(gap <= own for gap in controls)
    if as_good:
        caveats.append(
            f"With random sets taken out, {as_good:,} of {len(controls):,} {RANDOM_CIRCUITS} come apart from the model no "
            "farther than it does: so far completeness is no merit of this circuit."
        )
    rest = found["complement"]
    if is_number(rest["value"]):
        lines.append(
            f"The model without the circuit has a faithfulness of {percent(rest['value'])}"
            f"{_brackets(span('faithfulness', rest['low'], rest['high']))}."
        )
        if is_number(rest["low"]) and rest["low"] > 0:
            caveats.append("Something outside the circuit does part of the task by itself.")
    return Verdict(tuple(lines), (*caveats, *as_sentences([rest["note"] or ""])))


def _completeness_word(worst: Found, limit: float) -> str:
    low, high = (worst[end] if is_number(worst[end]) else worst["value"] for end in ("low", "high"))
    return "Complete" if high <= limit else "Not complete" if low > limit else "Not clearly complete"


def _removal(worst: Found) -> str:
    names = [*worst["removed"][:_REMOVED_AT_MOST], *(["more"] if len(worst["removed"]) > _REMOVED_AT_MOST else [])]
    removed = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    by = number(worst["value"])
    return f"removing {removed} separates it from the model by {by}" if names else f"it lies {by} from the model as it is"


def _interval(found: Found) -> str:
    return _brackets(span("gap", found["low"], found["high"]))


def _brackets(between: str) -> str:
    return f" ({between})" if between else ""


# --- tests and curve --------------------------------------------------------------------------------------------------


def _tests(found: Found) -> Verdict:
    good = [f"{test['name']} ({_outcome(test)})" for test in found["tests"] if test["for_circuit"]]
    bad = [f"{test['name']} ({_outcome(test)})" for test in found["tests"] if not test["for_circuit"]]
    line = f"Hypothesis tests in its favour: {', '.join(good) or 'none'}; against it: {', '.join(bad) or 'none'}."
    idle = [test["name"] for test in found["tests"] if test["for_circuit"] and not test["reject"]]
    if not idle:
        return Verdict((line,))
    return Verdict((line,), (f"A null hypothesis that is not rejected has not been proved: {', '.join(idle)}.",))


def _outcome(test: Found) -> str:
    return f"{'' if test['reject'] else 'not '}rejected, p = {number(float(test['p_value']))}"


def _curve(found: Found) -> Verdict:
    return curve_verdict(found["cmd"], found["overshoot"])


def curve_verdict(cmd: Found, overshoot: Found) -> Verdict:
    """What the areas over all sizes say.

    Args:
        cmd, overshoot: the two scores, as mappings.
    """
    if not is_number(cmd["value"]):
        return Verdict((f"Over all sizes CMD is undefined: {cmd['note']}.",))
    random, value = defined(cmd["controls"]), float(cmd["value"])
    beside = f"; curves of random scores have {number(min(random))} to {number(max(random))}" if random else ""
    between = _brackets(span("cmd", cmd["low"], cmd["high"]))
    line = f"Over circuits of all sizes the distance from the full model (CMD, 0 is best) is {number(value)}{between}{beside}."
    caveats = []
    if as_good := sum(one <= value for one in random):
        caveats.append(f"{as_good:,} of {len(random):,} curves of random scores lie as near to the full model, by CMD.")
    if is_number(overshoot["value"]) and overshoot["value"] > OVERSHOOT - 1:
        caveats.append(
            f"At some size the circuit passes the full model, with a faithfulness of {percent(1 + overshoot['value'])}: CPR "
            "counts that as a merit, CMD does not."
        )
    return Verdict((line,), (*caveats, *as_sentences([cmd["note"] or ""])))


# --- stability --------------------------------------------------------------------------------------------------------


def stability_verdict(found: Found, circuit: Circuit) -> Verdict:
    """Whether other examples of the same task would have given the same circuit.

    Args:
        found: as `Stability.to_dict` gives it.

    Raises:
        BadFile: it is not a stability.
    """
    with reads("stability.json", "a stability", "circuitdisc stability RUN"):
        return _stable(found, circuit)


def _stable(found: Found, circuit: Circuit) -> Verdict:
    lines, caveats = [], []
    by_chance, n, sizes = found.get("random", {}), found["n"], found["sizes"]
    for row in found["table"]:
        lines.append(_likeness(row, n, by_chance.get(row["of"])))
        caveats += _likeness_caveats(row, by_chance.get(row["of"]))
    heads = circuit.granularity == "head"
    kind = "heads" if heads else "edges"
    kept = circuit.heads() if heads else circuit.edge_names()
    always = sum(found["shares"][kind].get(name, 0.0) == 1.0 for name in kept)
    lines.append(f"{always:,} of this circuit's {len(kept):,} {kind} ({share(always, len(kept))}) are found on every sample.")
    graph = circuit.graph
    if empty := sum(size == 0 for size in sizes):
        caveats.append(f"{empty:,} of {n:,} samples gave an empty circuit, and two empty circuits count as alike.")
    if whole := sum(size == graph.n_edges for size in sizes):
        caveats.append(f"{whole:,} of {n:,} samples gave the whole graph, and to keep everything is to be alike.")
    if n < _FEW_SAMPLES:
        caveats.append(f"Only {n:,} samples stand behind it: a hundred are usual.")
    return Verdict(tuple(lines), tuple(dict.fromkeys(caveats)))


def _likeness(row: Found, n: int, by_chance: float | None) -> str:
    mean, low, high = float(row["Jaccard"]), row["low"], row["high"]
    beside = "" if by_chance is None else f"; {RANDOM_CIRCUITS} have {number(by_chance)}"
    word = "stable" if mean > STABLE else "not stable"
    if is_number(low) and low <= STABLE < high:
        word = "not clearly stable" if mean > STABLE else "not clearly unstable"
    return (
        f"{row['of'].capitalize()}: the circuits of {n:,} bootstrap samples have a mean Jaccard index of {number(mean)}"
        f"{_brackets(span('jaccard', low, high))}{beside}: {word} (stable is above {number(STABLE)})."
    )


def _likeness_caveats(row: Found, by_chance: float | None) -> Iterator[str]:
    if not is_number(row["low"]):
        yield "No interval: it takes three samples at least."
    if by_chance is None:
        return
    if by_chance >= row["Jaccard"]:
        yield f"By {row['of']}, random circuits of this size are as alike as those of the samples."
    elif is_number(row["low"]) and by_chance >= row["low"]:
        yield f"By {row['of']}, the circuits of the samples are not clearly more alike than random ones of this size."
