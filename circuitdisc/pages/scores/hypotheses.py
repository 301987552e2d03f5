"""Hypothesis tests on the page: a table of the five, and which speak for the circuit."""

from typing import Any

from circuitdisc.pages.scores.base import Part, ScoreData, ShownScore, Table, of_words
from circuitdisc.pages.verdict import Verdict
from circuitdisc.scoring.hypotheses_result import HypothesisTest, HypothesisTests
from circuitdisc.wording import number


def _tables(result: HypothesisTests) -> list[Table]:
    return [("hypothesis tests", [_row(test) for test in result.tests])]


def _row(test: HypothesisTest) -> dict[str, Any]:
    row = {"test": test.name, "null hypothesis": test.null, "statistic": test.statistic, "p": test.p_value, "n": test.n}
    return {**row, "rejected": test.reject, "speaks for the circuit": test.for_circuit}


def _part(score: ScoreData) -> Part:
    settings = score["settings"]
    rows = tuple(
        (test["name"], test["null"], f"{number(test['statistic'])}: {test['measure']}", number(float(test["p_value"])),
         f"{test['n']:,}", reading(test))
        for test in score["tests"]
    )  # fmt: skip
    headers = ("Test", "Null hypothesis", "Statistic", "p", "n", "Reads")
    of = of_words(score["n"], settings["split"], settings["metric"], settings["ablation"])
    of += f"; {len(score['random'])} random circuits"
    caption = (
        f"{of}. n is what each test counts: examples, or random draws. A hypothesis that is not rejected has not been proved"
    )
    notes = tuple(f"{test['name'].capitalize()}: {test['note']}." for test in score["tests"] if test["note"])
    return Part("Hypothesis tests", of, notes, headers, rows, caption)


def reading(test: ScoreData) -> str:
    """`rejected: speaks for the circuit`."""
    return f"{'' if test['reject'] else 'not '}rejected: speaks {'for' if test['for_circuit'] else 'against'} the circuit"


def _verdict(score: ScoreData) -> Verdict:
    good = [f"{test['name']} ({_outcome(test)})" for test in score["tests"] if test["for_circuit"]]
    bad = [f"{test['name']} ({_outcome(test)})" for test in score["tests"] if not test["for_circuit"]]
    line = f"Hypothesis tests in its favour: {', '.join(good) or 'none'}; against it: {', '.join(bad) or 'none'}."
    idle = [test["name"] for test in score["tests"] if test["for_circuit"] and not test["reject"]]
    if not idle:
        return Verdict((line,))
    return Verdict((line,), (f"A null hypothesis that is not rejected has not been proved: {', '.join(idle)}.",))


def _outcome(test: ScoreData) -> str:
    return f"{'' if test['reject'] else 'not '}rejected, p = {number(float(test['p_value']))}"


SHOWN = ShownScore(_part, _verdict, _tables)
