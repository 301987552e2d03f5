"""No sentence about masks, edits, patches, comparisons, transfers or heads is false at the corners of its numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verdicts import PATH, has, one_value, searched

import circuitdisc.pages.cmap
import circuitdisc.pages.dcm
import circuitdisc.pages.heads  # noqa: F401
from circuitdisc.checkpoints.cmap.result import CrossMap, CrossModel, GroupScore, ModelGap, Scored, UnitMap
from circuitdisc.checkpoints.transfer.ladder import Ladder
from circuitdisc.checkpoints.transfer.matrix import FoundCircuit as Row
from circuitdisc.checkpoints.transfer.matrix import Transfer
from circuitdisc.circuit import Circuit
from circuitdisc.heads.dcm.result import Dcm, FoundMask, MaskTrial, Met
from circuitdisc.heads.effects import HeadEffects
from circuitdisc.heads.knockout import KnockoutCurve
from circuitdisc.heads.localised.fit import Learned
from circuitdisc.heads.localised.head_edits import HeadEdit
from circuitdisc.heads.localised.result import EditEffect, Localised
from circuitdisc.heads.logits import LogitAttribution
from circuitdisc.pages.comparison import comparison_table, comparison_verdict
from circuitdisc.pages.description import describe, description_text
from circuitdisc.pages.transfer import transfer_text, transfer_verdict
from circuitdisc.scoring.base import Score
from circuitdisc.scoring.comparison import Comparison, Crossing, Side
from circuitdisc.scoring.faithfulness import UNCLEAR
from circuitdisc.scoring.intervene import Effect, Intervention
from circuitdisc.scoring.overlap import overlap
from circuitdisc.wording import number, percent

HEADS = ("a0.h0", "a0.h1")
rates = st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), max_size=25)

# --- masks ----------------------------------------------------------------------------------------------------------


def masks(
    share: float, random: list[float], *, mask: tuple[float, ...] = (1.0, 0.0), nothing: float = 0.0, n: int = 100
) -> Dcm:
    def met(value: float) -> Met:
        return Met(value, value - 0.1, value + 0.1, 0.0, 1.0, n)

    one = FoundMask(
        "value", HEADS, (MaskTrial(0.1, 0, mask, share),), 0, met(share), met(1.0), met(nothing), tuple(random),
        {"train": n, "choose": n, "report": n}, np.zeros((3 + len(random), n)),
    )  # fmt: skip
    return Dcm("head", (one,), (), (1, 2), 20, 0.95)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from([0.0, 0.5, 1.0]), rates, st.sampled_from([0.0, 0.5, 1.0]))
def test_a_mask_that_random_sets_equal_is_said_to_be_one(share, random, nothing):
    """`met 100 %, random sets at most 100 %` hid p = .5."""
    found = describe(masks(share, random, nothing=nothing)).said
    as_good = sum(one >= share for one in random)
    p = (1 + as_good) / (1 + len(random))
    assert has(found, f"{as_good} of {len(random)} random sets of equal size meet it at least as often: p = {number(p)}") == (
        as_good > 0
    )
    assert has(found, "chance is not ruled out") == (not random or p > 0.05)
    assert has(found, "no more often than with nothing patched") == (share <= nothing)
    assert has(found, f"with nothing patched on {percent(nothing)}")
    assert not random or has(found, f"{percent(min(random))} to {percent(max(random))} (median")


def test_an_empty_and_a_whole_mask():
    empty = describe(masks(1.0, [1.0] * 20, mask=(0.0, 0.0), nothing=1.0, n=10)).said
    assert has(empty, "The mask is empty")
    assert not has(empty, "random sets of equal size meet")
    assert has(empty, "Only 10 examples")
    assert has(describe(masks(1.0, [1.0] * 20, mask=(1.0, 1.0))).said, "The mask holds every head")


# --- edits ----------------------------------------------------------------------------------------------------------


def edited(difference: float, half: float, random: list[float], chosen: float = 1.0) -> Localised:
    effect = EditEffect(
        "logit_diff",
        100,
        1.0,
        0.9,
        1.1,
        1.0 + difference,
        0.9,
        1.1,
        difference,
        difference - half,
        difference + half,
        tuple(random),
    )
    learned = Learned(HeadEdit("first_token", HEADS[:1], factor=2.0), ({"factor": 2.0, "chosen by": chosen},))
    sizes = {"train": 10, "choose": 10}
    return Localised("first_token", learned, (effect,), (), {}, sizes, 0.5, (1, 2), 0.95, {})


@settings(deadline=None, max_examples=60)
@given(st.floats(-1, 1), st.floats(0, 1), st.lists(st.floats(-1, 1), max_size=25), st.floats(0, 1))
def test_an_edit_that_random_heads_equal_is_said_to_be_one(difference, half, random, chosen):
    found = describe(edited(difference, half, random, chosen)).said
    as_good = sum(one >= difference for one in random)
    p = (1 + as_good) / (1 + len(random))
    assert has(found, "raise it at least as much: p =") == (as_good > 0)
    assert has(found, "chance is not ruled out") == (not random or p > 0.05)
    assert has(found, "The interval of the change holds 0") == (difference - half <= 0 <= difference + half)
    assert has(found, "does not raise the mean logit_diff") == (chosen <= 0.5)


# --- cross-model patching -------------------------------------------------------------------------------------------


def crossed(gap: float, noise: float, scores: tuple[float, float] = (0.2, 0.8), random: tuple[float, ...] = ()) -> CrossModel:
    """Two models, and each of two heads patched alone."""
    spread = noise * np.where(np.arange(40) % 2, 1.0, -1.0)
    taker, giver = np.ones(40), np.ones(40) + gap + spread
    between = ModelGap(taker, giver, 0.95, 0)
    values = np.stack([taker + share * (giver - taker) for share in scores])[None]
    low, high = between.intervals(values)
    unit = UnitMap("output", HEADS, tuple((head,) for head in HEADS), values, between.scores(values), low, high)
    part = Scored("all heads", 1.0, 0.5, 0.4, 0.6)
    parts = tuple(
        replace(part, name=name)
        for name in ("nothing", "embedding", "all heads", "m0", "residual before layer 1", "final residual", "everything")
    )
    group = GroupScore("output", HEADS[:1], 1, replace(part, name="G"), np.array(random))
    one = CrossMap("tuned_into_base", "tuned", "base", between, {"output": unit}, parts, (group,), ((part, 1.0),))
    return CrossModel("base", "tuned", "ioi", "logit_diff", "heldout", 40, None, (one,))


@pytest.mark.parametrize(("gap", "noise"), [(0.0, 0.0), (0.0, 1.0), (0.1, 1.0), (-0.1, 1.0)])
def test_models_that_may_be_alike_are_not_ranked(gap, noise):
    description = describe(crossed(gap, noise))
    assert description.said.headline.startswith("There is nothing to rank: ")
    assert [section.title for section in description.sections] == ["The model in pieces"]
    assert list(description.sections[0].rows[0]) == ["patched", "logit_diff"], "means alone, in the model's order"
    text = description_text(description)
    for word in ("closes most", "Highest by kind", "Strongest", "%"):
        assert word not in text


@pytest.mark.parametrize("gap", [1.0, -1.0])
def test_models_that_differ_are_ranked(gap):
    description = describe(crossed(gap, 0.1, random=(0.5,) + (0.0,) * 20))
    assert "nothing to rank" not in description_text(description)
    assert has(description.said, "a0.h1 closes more of the gap by itself than any other: 80")
    assert has(description.said, "Group G, output: 1 of 21 random sets of heads score at least as high")
    assert "Strongest heads" in [section.title for section in description.sections]
    assert has(describe(crossed(gap, 0.1, (-0.2, -0.1))).said, "is the highest, and closes nothing of the gap")
    assert has(describe(crossed(gap, 0.1, (0.0, 1.5))).said, "More than 100 % is no merit")
    assert has(describe(crossed(gap, 0.1, (0.0, -0.5))).said, "by itself it may close nothing")


# --- two circuits ---------------------------------------------------------------------------------------------------


def compared(a: Circuit, b: Circuit, **rest: Any) -> Comparison:
    sides = {label: Side(label, "tiny", "ioi", "acdc", circuit) for label, circuit in (("A", a), ("B", b))}
    return Comparison(sides, overlap(a, b), **rest)


ONE_HEAD = searched([*PATH, "input->a0.h0<v>", "a0.h0->logits"])
OTHER_HEAD = searched([*PATH, "input->a0.h1<v>", "a0.h1->logits"])


def test_what_two_circuits_share_is_held_against_chance():
    same = comparison_verdict(compared(ONE_HEAD, ONE_HEAD))
    assert has(same, "one and the same")
    assert has(same, "do not clearly share more heads than chance"), "1 of 1 in 6: p = .17"
    assert not has(comparison_verdict(compared(ONE_HEAD, OTHER_HEAD)), "one and the same")
    none = comparison_verdict(compared(searched(PATH), ONE_HEAD))
    assert has(none, "A circuit without heads has none to share")
    assert "Jaccard" not in none.headline
    for words in ("A: the task's note.", "B: the search's note."):
        assert has(none, words)


def test_crossings_and_changed_heads_bring_their_caveats():
    noise = one_value(0.5, note=f"{UNCLEAR}: by 0.1 ± 0.2")
    apart = one_value(0.5)
    train = replace(apart.scores[0], split="train", value=0.9, low=0.89, high=0.91)
    apart = replace(apart, scores=(*apart.scores, train))
    effect = Effect(
        (Intervention("a0.h0", 0.0),), "logit_diff", "heldout", 50, 1.0, 0.9, -0.3, 0.1, controls=(-0.5, 0.0, 0.05, 0.2)
    )
    crossings = tuple(Crossing(a, b, scores) for a, b, scores in (("A", "A", apart), ("B", "A", apart), ("A", "B", noise)))
    found = compared(ONE_HEAD, OTHER_HEAD, crossings=crossings, effects={"A": (effect,)}, notes=("not done",))
    said = comparison_verdict(found)
    assert has(said, f"Circuit A on task B: faithfulness says nothing: {UNCLEAR}")
    assert has(said, "Circuit A on task A: On the 1,000 search examples the circuit lies nearer to 100 %")
    assert not has(said, "Circuit B on task A: On the 1,000 search"), "it was not searched on them"
    assert has(said, "Changed heads on task A, logit_diff: the interval of the difference holds 0")
    assert has(said, "2 of 4 draws of other heads of the same layers move the metric at least as far: p = 0.600")
    assert has(said, "not done.")
    assert comparison_table(found).endswith(said.text)


# --- circuits on checkpoints ----------------------------------------------------------------------------------------


def cell(train: float, value: float, faithful: float = 0.9, random: tuple[float, ...] = (0.0,) * 20, half: float = 0.01) -> Any:
    settings: dict[str, Any] = {"low": value - half, "high": value + half, "controls": random}
    found = [Score("accuracy", "heldout", "zero", "accuracy", 100, value, **settings)]
    found += [Score("accuracy", "train", "zero", "accuracy", 100, train, train - half, train + half)]
    found += [Score("faithfulness", split, "zero", "accuracy", 100, faithful) for split in ("heldout", "train")]
    return (*found, *(Score("kl", split, "zero", "kl", 100, 0.1) for split in ("heldout", "train")))


def moved(own: Any, other: Any) -> Transfer:
    rows = (Row("low", "own", ("low",), ONE_HEAD), Row("high", "own", ("high",), OTHER_HEAD))
    cells = {("low", "low"): own, ("high", "low"): other, ("low", "high"): own, ("high", "high"): other}
    return Transfer(("low", "high"), rows, cells, Ladder(("low", "high"), (), {}, ()), "accuracy", "zero", {"high": "not done"})


@pytest.mark.parametrize(
    ("own", "other", "words", "told"),
    [
        (cell(0.9, 0.9), cell(0.5, 0.5), "On low: by accuracy on the 100 search examples its own circuit comes first", True),
        (cell(0.5, 0.5), cell(0.9, 0.9), "the circuit of high comes first", True),
        (cell(0.5, 0.95), cell(0.9, 0.9), "its own circuit is ahead of the circuit of high", True),
        (cell(0.5, 0.9), cell(0.9, 0.905), "neither is clearly ahead", True),
        (cell(0.5, 0.5), cell(0.9, 0.9), "ahead", False),
        (cell(0.9, 0.9, random=(0.9,) * 20), cell(0.5, 0.5), "20 of 20 random circuits", True),
        (cell(0.9, 0.9, random=()), cell(0.5, 0.5), "not compared with random circuits", True),
        (cell(0.9, 0.9, 1.4), cell(0.5, 0.5), "The faithfulness of the circuit of low, 140 %, passes 100 %", True),
        (cell(0.9, 0.9), cell(0.5, 0.5), "Circuit of high: the search's note.", True),
        (cell(0.9, 0.9), cell(0.5, 0.5), "high: not done.", True),
    ],
)
def test_the_first_circuit_of_a_checkpoint(own, other, words, told):
    found = moved(own, other)
    said = transfer_verdict(found)
    assert has(said, words) == told
    assert transfer_text(found).endswith(said.text)


# --- heads ----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2), st.floats(0, 1))
def test_the_head_that_the_metric_misses_most(means, half):
    values = np.array(means)[None, :, None] * np.ones(50)
    found = HeadEffects(
        HEADS, values, values.mean(-1) - half, values.mean(-1) + half, np.ones(50), "logit_diff", "zero", "heldout", 0.95
    )
    said, lowest = describe(found).said, values.mean(-1).min()
    assert ("the largest fall" in said.headline) == (lowest < 0)
    assert ("without no head does it fall" in said.headline) == (lowest >= 0)
    assert has(said, "holds 0, although it comes first") == (lowest - half <= 0 <= lowest + half)


def test_the_largest_part_of_a_logit_difference_may_take_away():
    names = ("a0.h0", "a0.h1")
    values = np.array([[-3.0] * 5, [1.0] * 5])
    after = np.array([[0.0] * 5, [-2.0] * 5])
    found = LogitAttribution(
        names, (0, 0), values, values[:, 0] - 0.1, values[:, 0] + 0.1, values.sum(0), after, 1, 2, "heldout", 0.95, "a note"
    )
    said = describe(found).said
    assert "the largest part of it, of either sign, is that of a0.h0: −3.00 [−3.10, −2.90]" in said.headline
    assert has(said, "a note.")
    assert has(said, "Only 5 examples")


@pytest.mark.parametrize(("drop", "as_large", "below"), [(1.0, 0, False), (0.1, 10, False), (-1.0, 20, True)])
def test_an_order_that_random_orders_equal_is_said_to_be_one(drop, as_large, below):
    values = np.array([[3.0], [2.0 - drop], [1.0]]) * np.ones(40)
    random = np.array([[3.0, 2.0 - 0.02 * (at - 9.5), 1.0] for at in range(20)])
    found = KnockoutCurve(
        HEADS, (0, 1, 2), values, values[:, 0], values[:, 0], random, None, 2, "logit_diff", "zero", "heldout", 0.95
    )
    said = describe(found).said
    reached = sum(area >= found.area for area in found.random_areas)
    assert has(said, f"{reached} of 20 random orders reach as much: p =") == (reached > 0)
    assert has(said, "less harm than in the random ones") == below
    assert (reached == 0) == (as_large == 0)
