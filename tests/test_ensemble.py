"""`ensemble` against the mean of its members' scores, written out edge by edge."""

from dataclasses import fields

import numpy as np
import pytest
from examples import random_task
from models import model_of
from packages import VERSION, install

import circuitdisc as cd
from circuitdisc.engine.patching import Cost
from circuitdisc.errors import BadSetting, UnknownName

SETTINGS = {"ablation": "resample", "metric": "logit_diff", "allow_chance": True, "seed": 3}


@pytest.fixture(scope="module")
def toy():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 6)


def literal_mean(graph, members, normalise, unsigned=False):
    """Edge -> mean over members, each brought to its scale by comparing every edge with every other."""
    mean = {}
    tables = [{row["edge"]: row["score"] for row in found.table()} for found in members]
    if unsigned:
        tables = [{edge: abs(score) for edge, score in table.items()} for table in tables]
    for edge in tables[0]:
        values = []
        for table in tables:
            score, sizes = table[edge], [abs(value) for value in table.values()]
            if normalise == "max":
                score /= max(sizes)
            if normalise == "ranks":
                below, equal = sum(size < abs(score) for size in sizes), sum(size == abs(score) for size in sizes)
                score = (below + (equal + 1) / 2) / len(sizes) * (-1 if score < 0 else 1 if score > 0 else 0)
            values.append(score)
        mean[edge] = sum(values) / len(values)
    assert len(mean) == graph.n_edges
    return mean


@pytest.mark.parametrize("normalise", ["none", "max", "ranks"])
@pytest.mark.parametrize("names", [["eap", "eap_ig", "eap_ig_activations"], ["exact", "atp"], ["eap"]])
def test_it_is_the_literal_mean_and_costs_what_its_members_cost(toy, names, normalise):
    model, task = toy
    members = [cd.discover(model, task, name, **SETTINGS) for name in names]
    found = cd.discover(model, task, "ensemble", members=names, normalise=normalise, edges=40, **SETTINGS)
    expected = literal_mean(model.graph, members, normalise)
    assert {row["edge"]: row["score"] for row in found.table()} == pytest.approx(expected, abs=1e-12)
    least = sorted(map(abs, expected.values()))[-40]
    assert all(abs(expected[edge]) >= least - 1e-12 for edge in found.circuit.edge_names())
    for field in fields(Cost):
        if field.name != "seconds":
            assert getattr(found.cost, field.name) == sum(getattr(member.cost, field.name) for member in members), field.name
    notes = found.circuit.provenance.notes
    assert any("every score is an estimate" in note and ", ".join(names) in note for note in notes)
    assert {note for member in members for note in member.circuit.provenance.notes} <= {*notes}


def test_one_member_is_that_member(toy):
    model, task = toy
    alone = cd.discover(model, task, "eap", **SETTINGS)
    found = cd.discover(model, task, "ensemble", members="eap", **SETTINGS)
    assert found.edge_scores is not None
    np.testing.assert_array_equal(found.edge_scores, alone.edge_scores)
    assert found.circuit == alone.circuit


def test_scores_without_a_sign_do_not_cancel_those_with_one(toy):
    model, task = toy
    names = ["exact", "information_flow"]
    members = [cd.discover(model, task, name, **SETTINGS) for name in names]
    found = cd.discover(model, task, "ensemble", members=names, normalise="max", **SETTINGS)
    expected = literal_mean(model.graph, members, "max", unsigned=True)
    assert {row["edge"]: row["score"] for row in found.table()} == pytest.approx(expected, abs=1e-12)
    assert any("information_flow have no sign" in note for note in found.circuit.provenance.notes)
    with pytest.raises(BadSetting, match="by=signed needs scores with a sign, and those of information_flow have none"):
        cd.discover(model, task, "ensemble", members=names, by="signed", **SETTINGS)


@pytest.mark.parametrize(
    ("members", "error", "sentence"),
    [
        (["eap", "acdc"], BadSetting, "'acdc' cannot be a member of an ensemble: it gives no edge scores"),
        (["hisp"], BadSetting, "'hisp' cannot be a member .* gives no edge scores"),
        (["ensemble", "eap"], BadSetting, "'ensemble' cannot be a member .* needs settings of its own"),
        (["from_file"], BadSetting, "'from_file' cannot be a member"),
        (["eap", "eap_gi"], UnknownName, "unknown algorithm 'eap_gi'. Did you mean eap_ig"),
        (["eap", "eap"], BadSetting, "names an algorithm twice"),
        ([], BadSetting, "is no list of algorithms: write members="),
        (3, BadSetting, "members=3 is no list of algorithms"),
    ],
)
def test_what_cannot_be_a_member_gets_a_sentence(toy, members, error, sentence):
    with pytest.raises(error, match=sentence):
        cd.discover(toy[0], toy[1], "ensemble", members=members, **SETTINGS)


SOURCE = '''
import numpy as np

from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery


def decides(model, task, ablation, context):
    """Decides."""
    return Discovery(Circuit.full(model.graph))


def scores(model, task, ablation, context):
    """Scores."""
    return Discovery(Circuit.full(model.graph), np.where(model.graph.edge_mask, -2.0, np.nan))
'''


def test_members_of_another_package(toy, tmp_path, monkeypatch):
    entries = {name: f"lab_search:{name}" for name in ("decides", "scores")}
    install(monkeypatch, tmp_path / "lab", "circuitdisc.algorithms", entries, SOURCE, "lab_search")
    found = cd.discover(toy[0], toy[1], "ensemble", members=["scores"], **SETTINGS)
    assert found.edge_scores is not None
    assert set(np.unique(found.edge_scores[toy[0].graph.edge_mask])) == {2.0}, "who takes no by= says nothing of a sign"
    assert found.circuit.provenance.versions["lab"] == VERSION
    with pytest.raises(BadSetting, match="'decides' cannot be a member of an ensemble: it gives no edge scores"):
        cd.discover(toy[0], toy[1], "ensemble", members=["decides"], **SETTINGS)
