"""No sentence about a circuit's scores, judgement or stability is false, and the caveat that a reader needs is there.

Each sentence is held against the numbers by plain loops; hypothesis looks for numbers that make it false.
"""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_pages import Page

from circuitdisc.circuit import Circuit, Provenance
from circuitdisc.graph import ComputationGraph
from circuitdisc.pages import scores_table, write_report
from circuitdisc.pages.scores import judged
from circuitdisc.pages.stability import stability_verdict
from circuitdisc.pages.verdict import as_sentences, verdict
from circuitdisc.scoring.base import Score, Scores
from circuitdisc.scoring.faithfulness import UNCLEAR
from circuitdisc.wording import number, percent

GRAPH = ComputationGraph(2, 3)
RANDOM = "random circuits of the same size and kind"
WORN = ("better", "Faithful", "keeps", "overshoot", "nan", "None", "inf ")
"""Words that promise more than a number between two ends, and what no reader should see."""

numbers = st.floats(-20, 20).map(lambda x: round(x, 3))
shares = st.one_of(st.sampled_from([-0.2, 0.0, 0.346, 0.998, 1.0, 1.486]), st.floats(-2, 3))
controls = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 3)), max_size=25)


@st.composite
def made_up(draw: Any) -> Scores:
    """Faithfulness on both splits with its three means, accuracies, and a size from empty to whole."""
    full, empty = draw(numbers), draw(numbers)
    rows, means = [], {}
    for split in draw(st.sampled_from([("train", "heldout"), ("heldout",), ("train",)])):
        value, half = draw(shares), draw(st.floats(0, 1))
        n, note = draw(st.integers(1, 60)), draw(st.sampled_from(["", "a note of its own", f"{UNCLEAR}: 1 ± 2"]))
        means[split] = {"full": full, "circuit": empty + value * (full - empty), "empty": empty}
        if full == empty:
            value, note = None, "nothing to keep"
        low, high = (None, None) if value is None or n < 2 else (value - half, value + half)
        settings = {"n": n, "low": low, "high": high, "controls": tuple(draw(controls))}
        rows.append(Score("faithfulness", split, "zero", "logit_diff", value=value, note=note, **settings))
        for name in ("accuracy", "pair_accuracy"):
            for which in ("", "full_"):
                right = draw(st.floats(0, 1))
                row = Score(which + name, split, "zero", name, n, right, max(0, right - 0.1), min(1, right + 0.1))
                rows.append(row if which else replace(row, controls=tuple(draw(controls))))
        rows.append(Score("kl", split, "zero", "kl", n, draw(st.floats(0, 3)), controls=tuple(draw(controls))))
    edges = draw(st.sampled_from([0, 1, 58, 100]))
    return Scores(edges, 100, min(edges, 6), 6, means, tuple(rows))


def one_value(value: float | None = 0.9, **changes: Any) -> Scores:
    """Held-out faithfulness alone, of a circuit of 40 of 100 edges."""
    settings: dict[str, Any] = {"n": 1000, "low": None if value is None else value - 0.01, "high": None}
    settings["high"] = None if value is None else value + 0.01
    settings |= {"controls": (0.0, 0.01) * 10} | changes
    score = Score("faithfulness", "heldout", "zero", "logit_diff", value=value, **settings)
    return Scores(40, 100, 4, 6, {"heldout": {"full": 2.0, "circuit": 2.0 * (value or 0.0), "empty": 0.0}}, (score,))


def ends(full: float, circuit: float, empty: float) -> dict[str, dict[str, float]]:
    return {"heldout": {"full": full, "circuit": circuit, "empty": empty}}


def has(found: Any, words: str) -> bool:
    return any(words in line for line in (*found.lines, *found.caveats))


# --- the scores of one circuit --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=3 * settings().max_examples)
@given(made_up())
def test_the_headline_is_the_position_between_two_ends(scores):
    """With the three numbers that it is made from, wherever there are any."""
    found = verdict(scores)
    score = scores.get("faithfulness", "heldout" if "heldout" in scores.means else "train")
    for which in ("full", "circuit", "empty"):
        assert number(scores.means[score.split][which]) in found.headline
    value = score.value
    says_nothing = value is not None and UNCLEAR in score.note
    assert ("says nothing" in found.headline) == says_nothing
    assert ("is undefined" in found.headline) == (value is None)
    if value is None or says_nothing:
        assert "lies that far" not in found.headline
        assert not has(found, "at least as near")
        assert not has(found, "no merit")
        return
    assert f"has a faithfulness of {percent(value)}" in found.headline
    assert ("past the full model" in found.headline) == (value > 1.005) == has(found, "no merit")
    assert ("away from the full model" in found.headline) == (round(value, 6) < 0) == has(found, "Less than 0 %")
    assert has(found, "The interval reaches 0 %") == (score.low is not None and score.low <= 0 < value)
    assert has(found, "No interval was computed") == (score.low is None)
    assert has(found, "lies below the empty circuit's") == (
        scores.means[score.split]["full"] < scores.means[score.split]["empty"]
    )


@settings(deadline=None, max_examples=3 * settings().max_examples)
@given(made_up())
def test_controls_that_do_as_well_are_counted(scores):
    """The nearer to 1 the better, whichever side: a control of 1 beats 1.486, a control of 2 does not beat .9."""
    found = verdict(scores)
    score = scores.get("faithfulness", "heldout" if "heldout" in scores.means else "train")
    whole = scores.circuit_edges == scores.graph_edges
    if score.value is None or UNCLEAR in score.note or whole:
        assert not has(found, "chance is not ruled out")
        return
    values = [value for value in score.controls if value is not None]
    as_good = [value for value in values if abs(value - 1) <= abs(score.value - 1)]
    p = (1 + len(as_good)) / (1 + len(values))
    assert has(found, "chance is not ruled out") == (not values or p > 0.05)
    counted = f"{len(as_good)} of {len(values)} {RANDOM} come at least as near to 100 %: p = {number(p)}"
    assert has(found, counted) == bool(as_good)
    assert has(found, "are few") == (bool(values) and not as_good and p > 0.05)
    assert has(found, "have the same value") == (len(values) > 1 and len(set(values)) == 1)
    assert has(found, "is undefined; they are left out") == (bool(values) and len(values) < len(score.controls))
    if values:
        (near,) = re.findall(r"nearest to 100 % has (\S+ %)", found.headline)
        assert near in {percent(value) for value in values if all(abs(value - 1) <= abs(other - 1) for other in values)}


@settings(deadline=None, max_examples=3 * settings().max_examples)
@given(made_up())
def test_chance_that_outdoes_the_circuit_in_another_score_is_told(scores):
    """Where more than half of the controls have the lower KL or the higher accuracy, however near the headline is."""
    found = verdict(scores)
    headline = scores.get("faithfulness", "heldout" if "heldout" in scores.means else "train")
    silent = headline.value is None or UNCLEAR in headline.note
    for name in ("kl", "accuracy", "pair_accuracy"):
        score = scores.get(name, headline.split)
        assert score.value is not None
        values = [value for value in score.controls if value is not None]
        ahead = [value for value in values if (value < score.value if name == "kl" else value > score.value)]
        side = "below" if name == "kl" else "above"
        told = f"Chance outdoes the circuit in {name}: {len(ahead)} of {len(values)} {RANDOM} are {side} the circuit's "
        assert has(found, told) == (not silent and len(ahead) > len(values) / 2)


@settings(deadline=None, max_examples=3 * settings().max_examples)
@given(made_up())
def test_sizes_splits_and_few_examples_are_told(scores):
    found = verdict(scores)
    assert has(found, "The circuit is empty") == (scores.circuit_edges == 0)
    assert has(found, "the whole graph") == (scores.circuit_edges == scores.graph_edges)
    split = "heldout" if "heldout" in scores.means else "train"
    score = scores.get("faithfulness", split)
    assert has(found, "behind it: an interval from so few is rough") == (score.n < 30)
    assert has(found, "no held-out examples") == (split == "train")
    here, there = score, scores.get("faithfulness", "train") if "train" in scores.means else None
    told = [caveat for caveat in found.caveats if "does not overlap" in caveat]
    apart = False
    if there is not None and there is not here and there.value is not None and here.value is not None:
        unclear = UNCLEAR in here.note + there.note
        ends = here.low is not None and there.low is not None and not unclear
        apart = ends and (there.high < here.low or here.high < there.low)
        if told:
            far, near = abs(there.value - 1), abs(here.value - 1)
            word = "nearer to" if far < near else "farther from" if far > near else "as far from"
            assert f"the circuit lies {word} 100 %" in told[0]
    assert bool(told) == apart


@settings(deadline=None, max_examples=2 * settings().max_examples)
@given(made_up())
def test_no_sentence_promises_more_than_its_number(scores):
    found = verdict(scores)
    for line in (*found.lines, *found.caveats):
        assert not [word for word in WORN if word in line], line
        assert line.endswith(".")
    assert len(set(found.caveats)) == len(found.caveats)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        (one_value(0.346), "has a faithfulness of 34.6 %"),
        (one_value(1.486), "More than 100 % is no merit"),
        (one_value(-0.1), "Less than 0 %"),
        (one_value(None, note="both ends are equal"), "is undefined: both ends are equal"),
        (one_value(0.5, note=f"{UNCLEAR}: they differ by 0.1 ± 0.2"), f"says nothing: {UNCLEAR}"),
        (one_value(0.5, note="drawn by hand"), "drawn by hand."),
        (one_value(0.5, controls=(0.5,) * 20), f"20 of 20 {RANDOM} come at least as near to 100 %: p = 1.00"),
        (one_value(0.5, controls=(0.5,) * 20), f"All 20 {RANDOM} have the same value"),
        (one_value(1.486, controls=(1.0,) * 2 + (0.0,) * 18), f"2 of 20 {RANDOM} come at least as near"),
        (one_value(0.9, controls=()), "not compared with random circuits"),
        (one_value(0.9, controls=(0.1, 0.2)), "The controls are few"),
        (one_value(0.9, n=12), "Only 12 examples"),
        (one_value(0.9, low=-0.1), "The interval reaches 0 %"),
        (replace(one_value(), circuit_edges=0), "The circuit is empty"),
        (replace(one_value(), circuit_edges=100), "The circuit is the whole graph"),
        (replace(one_value(), means=ends(2.4, 2.41, 2.5)), "lies below the empty circuit's, 2.50"),
        (replace(one_value(), means=ends(2.5, 2.45, 2.4)), "Cutting everything takes away little"),
    ],
)
def test_every_corner_has_its_words(scores, words):
    assert has(verdict(scores), words)


def test_a_control_that_overshoots_farther_is_no_better():
    found = verdict(one_value(0.9, controls=(2.5, 5.0) + (0.0,) * 18))
    assert found.caveats == ()
    assert "nearest to 100 % has 0 %" in found.headline


def test_a_ratio_names_what_it_is_a_ratio_of():
    score = Score("ratio", "heldout", "zero", "log_prob", 100, -0.2, -0.3, -0.1, controls=(0.0,) * 20)
    found = verdict(Scores(40, 100, 4, 6, {"heldout": {"full": 2.0, "circuit": -0.4, "empty": 0.0}}, (score,)))
    assert "its mean log_prob, −0.400, is that share of the full model's, 2.00" in found.headline
    assert has(found, "the other sign than the full model's")
    assert not has(found, "empty circuit")


def accuracies(full: float, circuit: float, full_pair: float, pair: float) -> Scores:
    values = {"full_accuracy": full, "accuracy": circuit, "full_pair_accuracy": full_pair, "pair_accuracy": pair}
    rows = (Score(name, "heldout", "zero", name, 1000, one, one - 0.02, one + 0.02) for name, one in values.items())
    usual = one_value()
    return replace(usual, scores=(*usual.scores, *rows))


def test_accuracy_and_pair_accuracy_are_told_apart():
    """Agreement: the model's top token is right on 25 %, though 98 % of the pairs are."""
    found, text = verdict(accuracies(0.25, 0.24, 0.98, 0.97)), scores_table(accuracies(0.25, 0.24, 0.98, 0.97))
    assert has(
        found, "most likely token of the whole vocabulary is right on 25 % of the examples, and a right answer lies above"
    )
    assert has(found, "every wrong one on 98 %")
    assert re.search(r"^accuracy +heldout +1,000 +25 % \[23 %, 27 %\] +24 %", text, re.MULTILINE)
    assert re.search(r"^pair_accuracy +heldout +1,000 +98 % \[96 %, 100 %\] +97 %", text, re.MULTILINE)
    assert verdict(accuracies(0.95, 0.94, 0.98, 0.97)).caveats == ()
    found = verdict(accuracies(0.95, 0.3, 0.98, 0.6))
    assert has(found, "The most likely token is right on 30 % of the examples with the circuit, on 95 % with the full model")
    assert has(found, "A right answer lies above every wrong one on 60 % of the examples with the circuit, on 98 %")


# --- the circuit itself ---------------------------------------------------------------------------------------------


def searched(names: list[str], **settings: Any) -> Circuit:
    provenance = Provenance("tiny", "ioi", settings=settings, notes=("the task's note", "the search's note."))
    return Circuit.from_edges(GRAPH, names).with_provenance(provenance)


PATH = ["input->m0", "m0->logits"]


@pytest.mark.parametrize(
    ("circuit", "words", "told"),
    [
        (searched(PATH, edges=60, grow="top_k"), "edges=60 asks for 60 edges, and the circuit has 2: chosen edges that", True),
        (searched(PATH, edges=60), "edges=60 asks for 60 edges, and the circuit has 2.", True),
        (searched(PATH, edges=None, fraction=0.5), f"fraction=0.5 asks for {-(-GRAPH.n_edges // 2)} edges", True),
        (searched(PATH, edges=2, fraction=0.5), "asks for", False),
        (searched(PATH, threshold=0.1), "asks for", False),
        (searched([], edges=3), "edges=3 asks for 3 edges, and the circuit has 0", True),
        (searched([]), "The circuit is empty", True),
        (searched(PATH), "path", False),
        (searched([*PATH, "input->a0.h0<q>"]), "1 of its 3 edges have no path to the logits", True),
        (searched(["m0->logits"]), "No path of kept edges leads from an embedding to the logits", True),
        (searched(PATH), "the task's note.", True),
        (searched(PATH), "the search's note.", True),
    ],
)
def test_what_the_circuit_and_its_notes_say(circuit, words, told):
    assert has(verdict(one_value(), circuit), words) == told
    assert has(verdict(None, circuit), words) == told


def test_a_head_circuit_without_heads_is_not_called_empty():
    found = verdict(replace(one_value(), circuit_heads=0), Circuit.from_heads(GRAPH, []))
    assert has(found, "No head is kept")
    assert not has(found, "no edge is kept")


def test_notes_are_sentences_and_each_is_told_once():
    assert as_sentences(["a\n  b", "a b.", "", "why?"]) == ("a b.", "why?")


@settings(deadline=None, max_examples=10)
@given(made_up())
@example(replace(one_value(1.486, controls=(1.0,)), circuit_edges=0))
def test_page_and_terminal_say_the_same(tmp_path_factory, scores):
    circuit = searched(PATH, edges=5)
    found, text = verdict(scores, circuit), scores_table(scores, circuit=circuit)
    path = write_report(tmp_path_factory.mktemp("page") / "report.html", circuit=circuit, scores=scores, run={})
    page = Page(path.read_text("utf-8")).words
    for line in (*found.lines, *found.caveats):
        assert line in page
        assert line.replace("−", "-") in text
    assert text.endswith(found.text)
    text.encode("ascii", errors="xmlcharrefreplace")


# --- a judgement ----------------------------------------------------------------------------------------------------


def gap(kind: str, value: float, half: float, removed: tuple[str, ...] = (), full: float = 10.0) -> dict[str, Any]:
    ends = {"low": max(0.0, value - half), "high": value + half}
    return {"kind": kind, "name": kind, "removed": removed, "circuit": full - value, "full": full, "value": value, **ends}


def completeness(worst: float, half: float, chance: tuple[float, ...] = (), full: float = 10.0, **rest: Any) -> dict[str, Any]:
    gaps = [gap("empty", 0.0, 0.0, full=full), gap("random", worst, half, ("a0.h1", "m0"), full)]
    left = {"value": 0.0, "low": -0.1, "high": 0.1, "note": ""} | rest
    return {"gaps": gaps, "worst": gaps[1], "controls": [{"worst": one} for one in chance], "complement": left}


@given(st.floats(0, 3), st.floats(0, 2), st.lists(st.floats(0, 3), max_size=5))
def test_complete_is_said_only_where_the_whole_interval_is(worst, half, chance):
    found = judged({"completeness": completeness(worst, half, tuple(chance))})
    word = found.headline.partition(":")[0]
    low, high = max(0.0, worst - half), worst + half
    assert word == ("Complete" if high <= 1 else "Not complete" if low > 1 else "Not clearly complete")
    assert f"by {number(worst)} [" in found.headline
    assert f"{percent(worst / 10)} of the model's 10.0" in found.headline
    as_good = sum(one <= worst for one in chance)
    assert has(found, f"{as_good} of {len(chance)} {RANDOM} come apart from the model no farther") == bool(as_good)


def test_what_is_left_without_the_circuit():
    left = judged({"completeness": completeness(0.1, 0.0, value=0.5, low=0.4, high=0.6)})
    assert has(left, "has a faithfulness of 50 % [40 %, 60 %]")
    assert has(left, "Something outside the circuit does part of the task")
    none = judged({"completeness": completeness(0.1, 0.0, value=None, low=None, high=None, note="equal ends")})
    assert has(none, "equal ends.")
    assert not has(none, "without the circuit has")
    assert "of the model's" not in judged({"completeness": completeness(0.1, 0.0, full=0.0)}).headline


def needs(*rows: tuple[float, float]) -> dict[str, Any]:
    parts = [
        {"part": f"a0.h{at}", "change": 20 * share, "low": 20 * low, "high": 20.0, "share": share, "passes": share >= 0.01}
        for at, (share, low) in enumerate(rows)
    ]
    return {"needs": parts, "full": -20.0, "threshold": 0.01, "by": "node"}


@given(st.lists(st.tuples(st.floats(0, 0.05), st.floats(0, 0.05)), min_size=1, max_size=12))
def test_parts_that_are_not_needed_are_counted(rows):
    rows = [(share, min(share, low)) for share, low in rows]
    found = judged({"minimality": needs(*rows)})
    idle = sum(share < 0.01 for share, _ in rows)
    unsure = sum(share >= 0.01 and 20 * low < 0.01 * 20.0 for share, low in rows)
    assert found.headline.startswith(f"{idle or 'None'} of its {len(rows)} nodes change")
    assert has(found, "not clearly needed") == bool(unsure)
    assert not unsure or has(found, f"{unsure} of its {len(rows)} nodes")


def test_a_hypothesis_that_is_not_rejected_proves_nothing():
    outcomes = (("equivalence", True, False, 0.9), ("sufficiency", True, True, 0.001), ("independence", False, True, 0.01))
    tests = [{"name": name, "for_circuit": good, "reject": reject, "p_value": p} for name, good, reject, p in outcomes]
    found = judged({"tests": {"tests": tests}})
    for_it, against = found.headline.split("against it:")
    assert "equivalence (not rejected, p = 0.900)" in for_it
    assert "sufficiency (rejected, p = 0.00100)" in for_it
    assert "independence" in against
    assert found.caveats == ("A null hypothesis that is not rejected has not been proved: equivalence.",)


@given(st.floats(0, 2), st.lists(st.floats(0, 2), max_size=4), st.floats(-1, 2))
def test_random_curves_that_lie_as_near_are_counted(cmd, random, overshoot):
    area = {"value": cmd, "low": cmd, "high": cmd, "controls": random, "note": ""}
    found = judged({"curve": {"cmd": area, "overshoot": {"value": overshoot}}})
    as_good = sum(one <= cmd for one in random)
    assert has(found, f"{as_good} of {len(random)} curves of random scores lie as near") == bool(as_good)
    assert has(found, "passes the full model") == (overshoot > 0.005)
    assert has(judged({"curve": {"cmd": area | {"value": None, "note": "why"}, "overshoot": {}}}), "undefined: why")


# --- stability ------------------------------------------------------------------------------------------------------


def stability(mean: float, low: float | None, high: float | None, chance: float, sizes: list[int], always: int = 1) -> Any:
    row = {"of": "edges", "Jaccard": mean, "low": low, "high": high}
    return {
        "table": [row],
        "random": {"edges": chance},
        "n": len(sizes),
        "sizes": sizes,
        "shares": {"edges": dict.fromkeys(PATH[:always], 1.0), "heads": {}},
    }


@given(st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 1), st.lists(st.sampled_from([0, 2, GRAPH.n_edges]), min_size=3))
def test_stable_is_said_only_where_the_whole_interval_is(mean, half, chance, sizes):
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    found = stability_verdict(stability(mean, low, high, chance, sizes), searched(PATH))
    stable = found.headline.endswith(": stable (stable is above 0.800).")
    assert not stable or (low > 0.8 or (low == high == mean > 0.8))
    assert "not stable" not in found.headline or (mean <= 0.8 and not high > 0.8)
    assert has(found, "random circuits of this size are as alike") == (chance >= mean)
    assert has(found, "not clearly more alike than random ones") == (low <= chance < mean)
    assert has(found, "gave an empty circuit") == (0 in sizes)
    assert has(found, "gave the whole graph") == (GRAPH.n_edges in sizes)
    assert has(found, "samples stand behind it") == (len(sizes) < 10)


def test_stability_of_two_samples_and_of_an_empty_circuit():
    two = stability_verdict(stability(1.0, None, None, 0.1, [2, 2]), searched(PATH))
    assert has(two, "No interval")
    assert has(two, "1 of this circuit's 2 edges (50 %) are found on every sample")
    assert has(stability_verdict(stability(1.0, 1.0, 1.0, 1.0, [0, 0, 0]), searched([])), "0 of this circuit's 0 edges")
