"""The words and tables of a page: verdicts, numbers, and what a terminal prints."""

import re

import pytest
from made_pages import RANDOM, SMALL, USUAL, made_up_score, made_up_scores

from circuitdisc.circuit import Circuit
from circuitdisc.pages import scores_table, text_table
from circuitdisc.pages.verdict import verdict
from circuitdisc.wording import duration, number, percent


def test_verdict_of_a_good_circuit():
    assert verdict(USUAL).headline == (
        "On 1,000 held-out examples the circuit (61 of 479 edges, 12.7 %) has a faithfulness of 97 % (95 % interval [94.5 %, "
        "99.5 %]): its mean logit_diff, 3.33, lies that far from the empty circuit's −0.0123 to the full model's 3.41; of 20 "
        "random circuits of the same size and kind the nearest to 100 % has 3 %."
    )
    assert verdict(USUAL).caveats == ()
    assert "9 of 32 heads" in verdict(USUAL, Circuit.from_heads(SMALL, ["a0.h1"])).headline


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [("heldout", None, {"note": "m(full) = m(empty)"})],
            "is undefined: m(full) = m(empty) (mean logit_diff: full model 3.41, circuit 3.33,",
        ),
        ([("heldout", float("nan"), {})], "is undefined (mean"),
        (
            [("heldout", 1.3, {})],
            "lies that far from the empty circuit's −0.0123 to the full model's 3.41, past the full model",
        ),
        ([("heldout", 1.3, {})], "More than 100 % is no merit"),
        ([("heldout", -0.2, {})], "a faithfulness of −20 %"),
        ([("heldout", -0.2, {})], "the far side of the empty circuit"),
        ([("heldout", -1e-6, {})], "the far side of the empty circuit"),
        ([("heldout", 0.01, {})], "The interval reaches 0 %"),
        ([("heldout", 0.5, {})], "not compared with random circuits"),
        (
            [("heldout", 0.5, {"controls": (0.6, 0.1, None)})],
            "1 of 2 random circuits of the same size and kind come at least as near to 100 %: p = 0.667",
        ),
        ([("heldout", 0.5, {"controls": (0.6, 0.1, None)})], "1 random circuits of the same size and kind is undefined"),
        ([("heldout", 0.5, {"controls": (None,)})], "all 1 random circuits of the same size and kind is undefined"),
        (
            [("heldout", 0.6, {}), ("train", 0.98, {})],
            "On the 1,000 search examples the circuit lies nearer to 100 %",
        ),
        (
            [("heldout", 0.98, {}), ("train", 0.6, {})],
            "On the 1,000 search examples the circuit lies farther from 100 %",
        ),
        ([("train", 0.98, {})], "There are no held-out examples"),
        ([("heldout", 0.9, {"low": None})], "No interval"),
    ],
)
def test_verdict_names_every_reason_for_doubt(rows, expected):
    scores = made_up_scores(*(made_up_score("faithfulness", split, value, **more) for split, value, more in rows))
    found = verdict(scores)
    assert expected in " ".join([found.headline, *found.caveats])
    assert "nan" not in found.headline.lower()


def test_verdict_is_silent_about_overlapping_intervals():
    rows = [
        made_up_score("faithfulness", split, value, controls=RANDOM) for split, value in (("train", 0.95), ("heldout", 0.93))
    ]
    assert verdict(made_up_scores(*rows)).caveats == ()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.399, "3.40"),
        (1234.5, "1,234"),
        (-0.01278, "−0.0128"),
        (1.234e-7, "1.2 × 10⁻⁷"),
        (12, "12"),
        (None, "undefined"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97, "97 %"),
        (0.1273, "12.7 %"),
        (0.0316, "3.2 %"),
        (-0.02, "−2 %"),
        (1, "100 %"),
        (0, "0 %"),
        (1 / 123_211, "0.0008 %"),
        (-4e-9, "0 %"),
        (float("inf"), "undefined"),
    ],
)
def test_percent(value, text):
    assert percent(value) == text


def test_duration():
    assert [duration(seconds) for seconds in (3.21, 250, 7500)] == ["3.21 s", "4 min 10 s", "2 h 5 min"]


# --- tables ---------------------------------------------------------------------------------------------------------


def test_text_table_aligns():
    assert text_table(["a", "n"], [["long\nname", 1], ["x", 1234]], "lr") == (
        "a             n\n---------  ----\nlong name     1\nx          1234"
    )
    with pytest.raises(ValueError, match="a row has 1 cells"):
        text_table(["a", "b"], [["x"]])


def test_what_rounding_leaves_is_not_called_less_than_nothing():
    said = verdict(made_up_scores(made_up_score("faithfulness", "heldout", -4e-9, low=-4e-9, high=4e-9)))
    assert "a faithfulness of 0 % (95 % interval [0 %, 0 %])" in said.headline
    assert "away from" not in said.headline
    assert not any("Less than 0" in caveat for caveat in said.caveats)


def test_scores_table_has_every_score_and_encodes_anywhere():
    text = scores_table(USUAL)
    text.encode("ascii")
    assert "61 of 479 edges (12.7 %), 9 of 32 heads" in text
    rows = [line for line in text.splitlines() if re.match(r"(faithfulness|kl|completeness) +(train|heldout) ", line)]
    assert len(rows) == len(USUAL.scores)
    assert "97 %" in rows[1]
    assert "0.0128" in rows[3]
    assert "completeness (held-out examples): undefined: the full model is at chance" in text
    assert scores_table(made_up_scores()).startswith("61 of 479")
