"""What cross-model patching makes of its values: shared heads, ratios with intervals, pairs, groups, growing sets."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from cross_models import N, mapped, model, spec_of, task_of
from scipy import stats

from circuitdisc.checkpoints.cmap.cmap import cmap
from circuitdisc.checkpoints.cmap.sets import Wanted
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadSetting

pytestmark = pytest.mark.usefixtures("llama_in_float64")


def test_heads_that_share_a_value_are_patched_together_and_shown_so():
    found = mapped("llama").maps[0].maps
    assert found["value"].names[:3] == ("a0.h0-1", "a0.h2-3", "a1.h0-1")
    assert found["value"].heads[1] == ("a0.h2", "a0.h3")
    assert found["value"].values.shape == (2, 2, N)
    assert found["output"].names[1] == "a0.h1"
    assert (found["value"].by_head[:, 0] == found["value"].by_head[:, 1]).all()
    rows = mapped("llama").table()
    assert len(rows) == 8
    assert all(row["value with"].startswith(row["head"][:4]) and "-" in row["value with"] for row in rows)
    group = next(one for one in mapped("llama").maps[0].groups if one.kind == "value" and one.patched.name == "A")
    assert (len(group.heads), group.n_units) == (2, 2)


def test_scores_are_ratios_of_means_with_paired_intervals():
    found = mapped("gpt2").maps[0]
    unit, gap = found.maps["output"], found.gap
    wanted = (unit.values.mean(-1) - gap.taker.mean()) / (gap.giver.mean() - gap.taker.mean())
    assert np.allclose(unit.score, wanted)
    assert ((unit.low <= unit.score + 1e-12) & (unit.score <= unit.high + 1e-12)).all()
    closed, whole, score = unit.values[1, 2] - gap.taker, gap.giver - gap.taker, unit.score[1, 2]
    reach = stats.t.ppf(0.975, N - 1) * np.std((closed - score * whole) / whole.mean(), ddof=1) / N**0.5
    assert np.allclose((unit.low[1, 2], unit.high[1, 2]), (score - reach, score + reach))
    assert gap.method.startswith(f"Student's t over {N} examples")


def test_two_models_that_score_the_same_have_no_score_and_it_is_said():
    found = cmap(model("gpt2", "base"), model("gpt2", "base"), task_of("gpt2"), top=2, n_random=1)
    assert "no gap" in found.maps[0].gap.undefined
    data = json.loads(json.dumps(found.to_dict()))
    assert data["directions"][0]["maps"]["output"]["score"][0][0] is None
    assert data["directions"][0]["maps"]["output"]["metric"][0][0] is not None


def test_pairs_groups_and_the_growing_set():
    result = mapped("gpt2").maps[0]
    growth, names = result.growth, result.maps["output"].names
    assert growth is not None
    assert growth.sizes == (0, 2, 5)
    assert sorted(growth.order) == sorted(names)
    assert growth.score[0] == 0
    assert growth.random.shape == (3, 3)
    best = {tuple(pair.name.split(" and ")): pair.score for pair, _ in result.pairs}
    assert len(best) == 3
    assert best[growth.order[0], growth.order[1]] == pytest.approx(growth.score[1], abs=1e-12)
    both = next(one for one in result.groups if one.patched.name == "all groups" and one.kind == "output")
    assert set(both.heads) == {"a1.h0", "a1.h3", "a0.h2", "a1.h1"}
    assert len(both.random) == 3
    whole = cmap(model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), what="output", steps=[12], n_random=2, top=0)
    grown = whole.maps[0].growth
    assert grown is not None
    assert grown.score[0] == pytest.approx(whole.maps[0].part("all heads").score, abs=1e-12)
    assert np.allclose(grown.random, grown.score)


def test_groups_without_single_heads_score_the_same():
    both = model("gpt2", "base"), model("gpt2", "tuned")
    groups = {"A": ["a1.h0", "a1.h3"], "B": ["a0.h2"]}
    whole, few = (
        cmap(*both, task_of("gpt2"), what="output", groups=groups, alone=alone, parts=False, n_random=3)
        for alone in (True, False)
    )
    assert few.maps[0].maps == {}
    assert few.maps[0].pairs == ()
    assert few.maps[0].growth is None
    assert few.table() == []
    assert [one.to_dict() for one in few.maps[0].groups] == [one.to_dict() for one in whole.maps[0].groups]
    assert few.cost["forwards"] < whole.cost["forwards"] / 2
    with pytest.raises(BadSetting, match="nothing is left to patch"):
        cmap(*both, task_of("gpt2"), alone=False, parts=False)


def test_random_sets_have_as_many_units_of_each_layer():
    places = [(0, 1), (2, 0), (2, 3)]
    wanted = Wanted(spec_of("gpt2"), True, ("output",), {"A": places}, n_random=10)
    drawn = [patch.heads for label, patch in wanted.patches([]).items() if label[0] == "random"]
    assert len(set(drawn)) == 10
    assert frozenset(("output", *place) for place in places) not in drawn
    assert all(sorted(layer for _, layer, _ in heads) == [0, 2, 2] for heads in drawn)


def test_a_circuit_gives_its_groups_or_its_heads():
    graph = model("gpt2", "base").graph
    circuit = Circuit.from_heads(graph, ["a0.h1", "a1.h2"])
    call = partial(cmap, model("gpt2", "base"), model("gpt2", "tuned"), task_of("gpt2"), top=0, grow=False, n_random=1)
    assert {group.patched.name for group in call(groups=circuit).maps[0].groups} == {"circuit"}
    grouped = replace(circuit, groups={"A": ("a0.h1",), "B": ("a1.h2",)})
    assert {group.patched.name for group in call(groups=grouped).maps[0].groups} == {"A", "B", "all groups"}
