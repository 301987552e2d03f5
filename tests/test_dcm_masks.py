"""Masks of desiderata find planted answers, are drawn fairly, and resume; bad settings are refused."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from changed import changed
from examples import random_examples, toy_desideratum, unchecked
from models import model_of

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.errors import BadRun, BadSetting, GraphMismatch, UnknownName
from circuitdisc.heads.dcm.dcm import dcm
from circuitdisc.heads.dcm.fit import train_mask
from circuitdisc.heads.dcm.parts import draws
from circuitdisc.runs import Journal
from circuitdisc.tasks.base import Task
from circuitdisc.tasks.desiderata import Desideratum, load_desiderata, of_task


@pytest.fixture(scope="module")
def planted():
    """Prompts whose corrupted partner has another token where the answer stands first: only what carries it can bring it."""
    model, one = toy_desideratum()

    def changed(example):
        clean, answer = list(example.clean), example.wrong[0][0]
        new = next(token for token in range(1, model.d_vocab) if token not in clean)
        corrupted = [new if token == answer else token for token in clean]
        return replace(example, corrupted=tuple(corrupted), answers=((new,),))

    splits = (tuple(map(changed, getattr(one, split))) for split in ("train", "choose", "report"))
    return model, Desideratum("value", *splits, positions="end")


def test_the_induction_heads_are_found(planted):
    model, desideratum = planted
    found = dcm(model, desideratum, penalties=[0.01, 1.0], n_random=5)
    one = found.get("value")
    assert set(one.masked) <= {"a1.h0", "a1.h1"}  # the previous-token head a0.h1 reads nothing of it at the last token
    assert one.masked
    assert one.patched.share > 0.7
    assert one.patched.low < one.patched.share <= one.patched.high
    assert one.nothing.share < 0.1
    assert one.nothing.kept > 0.7  # the unpatched model gives its own answer
    assert one.patched.kept < 0.1
    assert one.sizes == {"train": 20, "choose": 20, "report": 40}
    chosen = one.trial
    assert chosen.chosen_by == max(trial.chosen_by for trial in one.trials)
    assert chosen.size == min(trial.size for trial in one.trials if trial.chosen_by == chosen.chosen_by)


def test_groups_are_told_apart(planted):
    model, desideratum = planted
    groups = {"movers": ["a1.h0", "a1.h1"], "previous": ["a0.h1"]}
    found = dcm(model, desideratum, "group", groups=groups, penalties=1.0, n_random=3)
    assert found.get("value").masked == ("movers",)
    movers, previous = found.groups
    assert movers.met.share == found.get("value").patched.share
    assert previous.met.share < 0.1
    assert movers.heads == ("a1.h0", "a1.h1")
    values = found.head_map("value")
    assert values[1, 0] == values[1, 1] > 0.5 > values[0, 1]
    assert np.isnan(values[0, 0])
    assert len(found.groups[0].random) == 3
    assert json.dumps(found.to_dict(), allow_nan=False)
    assert set(found.arrays()) == {"masks_value", "met_value"}
    assert found.arrays()["met_value"].mean(1)[0] == found.get("value").patched.share


def test_edges_of_a_circuit(planted):
    model, desideratum = planted
    circuit = Circuit.from_edges(model.graph, ["a1.h0->logits", "a1.h1->logits", "input->logits", "a0.h0->logits"])
    found = dcm(model, desideratum, "edge", circuit=circuit, penalties=1.0, epochs=4, n_random=2).get("value")
    assert set(found.masked) == {"a1.h0->logits", "a1.h1->logits"}
    assert found.patched.share > 0.7


def test_the_value_of_entity_tracking_is_in_three_heads_of_the_last_layer():
    model = cd.load_model("multitask/base")
    (value,) = load_desiderata("entity_tracking", model, names="value", n_train=20, n_choose=10, n_report=20)
    heads = {head: [head] for head in ("a3.h0", "a3.h1", "a3.h4", "a3.h5", "a2.h0", "a0.h0")}
    found = dcm(model, value, "group", groups=heads, penalties=1.0, epochs=6, n_random=0).get("value")
    assert set(found.masked) == {"a3.h0", "a3.h1", "a3.h4"}
    assert found.patched.share > 0.8
    assert found.nothing.share == 0


def test_random_sets_are_drawn_without_replacement():
    names = [f"x{i}" for i in range(5)]
    found = draws(names, frozenset({0, 1}), 50, np.random.default_rng(0))
    assert len(found) == len(set(found)) == 9  # all pairs but the mask itself
    assert all(len(one) == 2 for one in found)
    assert frozenset({0, 1}) not in found
    assert draws(names, frozenset(), 3, np.random.default_rng(0)) == []


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"over": "group"}, BadSetting, "over=group needs groups"),
        ({"over": "edge"}, BadSetting, "over=edge needs a circuit"),
        ({"over": "heads"}, UnknownName, "Did you mean head"),
        ({"groups": {"A": ["a9.h9"]}, "over": "group"}, GraphMismatch, "'a9.h9' is not a head"),
        ({"groups": {"A": []}, "over": "group"}, BadSetting, "group 'A' holds no head"),
        ({"groups": {"A": ["a0.h0"]}, "over": "group", "positions": {"B": "end"}}, UnknownName, "component in positions 'B'"),
        ({"positions": "s9"}, UnknownName, "s9"),
        ({"penalties": -1.0}, BadSetting, "penalties=-1.0 must be a number from 0"),
        ({"start": 2.0}, BadSetting, "start=2.0 must be a number from 0 to 1"),
        ({"epochs": 0}, BadSetting, "epochs=0 must be a whole number from 1"),
        ({"memory": "1KiB"}, BadSetting, "raise memory="),
    ],
)
def test_bad_settings_get_a_sentence(settings, error, sentence):
    model, one = toy_desideratum(8)
    with pytest.raises(error) as caught:
        dcm(model, one, **settings)
    assert sentence in str(caught.value)


def test_a_model_that_runs_by_hooks_is_refused():
    examples = random_examples(model_of("gpt2"), 6)
    one = of_task(Task("random", tuple(examples[:4]), tuple(examples[4:])))
    with pytest.raises(BadSetting, match="runs through hooks"):
        dcm(model_of("gpt2", components="hooks"), one)


def test_a_killed_call_goes_on_to_the_same_masks(planted, tmp_path, monkeypatch):
    model, one = planted
    settings = {"penalties": [0.01, 1.0], "n_random": 2}
    whole = dcm(model, one, **settings)
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    dcm(model, one, journal=journal, **settings)
    journal.close()
    kept = path.read_text().splitlines()
    path.write_text("\n".join(kept[:3]) + '\n{"unit": "val')  # identity, one mask with its mark, and half a line
    trained = []
    room = sys.modules["circuitdisc.heads.dcm.dcm"]
    monkeypatch.setattr(room, "train_mask", lambda *args: (trained.append(args[4]), train_mask(*args))[1])
    again = dcm(model, one, journal=path, **settings)
    assert trained == [1.0]  # the penalty whose mask was missing
    assert again.to_dict() == whole.to_dict()
    changes = (
        (changed(model), one, {}, "other weights of the model"),
        (model, replace(one, train=one.train[1:]), {}, f"other train examples of desideratum '{one.name}'"),
        (model, replace(one, choose=one.choose[1:]), {}, f"other choose examples of desideratum '{one.name}'"),
        (model, one, {"epochs": 3}, r"another epochs \(2, now 3\)"),
    )
    for other, asked, more, says in changes:
        with pytest.raises(BadRun, match=f"begun with {says}"):
            dcm(other, asked, journal=path, **unchecked({**settings, **more}))
    assert dcm(model, one, journal=path, **settings).to_dict() == whole.to_dict()
