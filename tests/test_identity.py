"""An identity is another one if, and only if, a weight, an example, a setting that matters or the version is another one."""

import copy
import gc
import json
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from changed import changed
from examples import random_examples, random_task
from hypothesis import given
from hypothesis import strategies as st
from models import hugging_face, model_of, shared

import circuitdisc
import circuitdisc.identity as room
from circuitdisc.discovery.registry import search_identity
from circuitdisc.errors import BadFile
from circuitdisc.identity import (
    Identity,
    hash_configuration,
    hash_examples,
    hash_weights,
    identity_of,
    in_words,
    package_version,
    with_contents,
)
from circuitdisc.runs import versions

words = st.text(max_size=8)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
hashes = st.dictionaries(words, words, max_size=3)
identities = st.builds(Identity, hashes, hashes, st.dictionaries(words, plain, max_size=3), words)


# --- weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "rms_rotary_grouped"])
def test_one_number_of_any_tensor_makes_other_weights(family):
    """The first, the middle and the last number of every parameter and buffer, one at a time, and back again."""
    module = copy.deepcopy(model_of(family, torch.float32).module)
    before = hash_weights(module)
    assert before == hash_weights(copy.deepcopy(module))
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        for place in {0, tensor.numel() // 2, tensor.numel() - 1}:
            original = tensor.detach().clone()
            with torch.no_grad():
                tensor.view(-1)[place] += 1
            assert hash_weights(module) != before, (name, place)
            with torch.no_grad():
                tensor.copy_(original)
            assert hash_weights(module) == before, (name, place)


def test_names_shapes_and_types_count():
    def module(**tensors: torch.Tensor) -> torch.nn.Module:
        made = torch.nn.Module()
        for name, tensor in tensors.items():
            made.register_buffer(name, tensor)
        return made

    zeros = torch.zeros(4, 6)
    variants = [
        module(a=zeros), module(b=zeros), module(a=zeros.reshape(6, 4)), module(a=zeros.int()), module(a=zeros.half()),
        module(a=zeros.bfloat16()), module(a=zeros.bool()), module(a=torch.zeros(())), module(a=torch.zeros(0)),
        module(a=zeros, b=zeros), module(), module(a=zeros + 1e-30),
    ]  # fmt: skip
    assert len({hash_weights(one) for one in variants}) == len(variants)
    turned = torch.arange(24.0).reshape(4, 6).T
    assert hash_weights(module(a=turned)) == hash_weights(module(a=turned.contiguous()))


@pytest.mark.parametrize("n", [1, room.LEAF // 4 - 1, room.LEAF // 4, room.LEAF // 4 + 1, room.LEAF])
def test_pieces_of_a_large_tensor_are_all_hashed(n):
    def hashed(at: int | None) -> str:
        module = torch.nn.Module()
        module.register_buffer("a", torch.zeros(n))
        if at is not None:
            module.a[at] = 1  # pyright: ignore[reportIndexIssue] - a buffer
        return hash_weights(module)

    found = [hashed(at) for at in (None, 0, n // 2, n - 1)]
    assert len(set(found)) == len({None, 0, n // 2, n - 1})


def test_a_module_is_hashed_once_until_it_changes(monkeypatch):
    calls = []
    original = room._hash_tensors
    monkeypatch.setattr(room, "_hash_tensors", lambda tensors: calls.append(1) or original(tensors))
    module = hugging_face("gpt2")
    first = hash_weights(module)
    assert [hash_weights(module) for _ in range(3)] == [first] * 3
    assert len(calls) == 1
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    optimizer.step()
    second = hash_weights(module)
    assert second != first
    module.transformer.wte.weight.data.mul_(2)  # which torch does not count
    third = hash_weights(module)
    assert third not in (first, second)
    module.transformer.wte.weight = torch.nn.Parameter(module.transformer.wte.weight.detach().clone() * 2)
    assert hash_weights(module) not in (first, second, third)
    assert len(calls) == 4


def test_a_hash_keeps_no_model_in_memory():
    module = hugging_face("gpt2")
    hash_weights(module)
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def test_the_same_weights_under_other_switches_are_another_model():
    model = model_of("gpt2")
    same = model_of("gpt2")
    assert hash_configuration(model) == hash_configuration(same)
    spec = model.components.spec
    other_cut = copy.copy(model.components)
    other_cut.spec = replace(spec, eps=2 * spec.eps)  # pyright: ignore[reportAttributeAccessIssue]
    assert hash_configuration(replace(model, backend=other_cut)) != hash_configuration(model)
    assert hash_configuration(model_of("gpt2", split_embeddings=True)) != hash_configuration(model)
    assert hash_weights(model.module) == hash_weights(model_of("gpt2", split_embeddings=True).module)


# --- examples, settings ---------------------------------------------------------------------------------------------------


def test_whatever_an_example_holds_counts_but_its_text():
    one, *rest = random_examples(model_of("gpt2"), 3)
    before = hash_examples([one, *rest])
    others: dict[str, Any] = {
        "clean": (*one.clean[:-1], one.clean[-1] + 1), "corrupted": None, "positions": (0,), "answers": ((7,),),
        "wrong": ((8,),), "group": "c", "roles": {"end": 1}, "whole": (1, 2), "targets": (0.5,),
    }  # fmt: skip
    assert set(others) | {"text", "source"} == {field.name for field in fields(one)}
    for name, value in others.items():
        assert hash_examples([replace(one, **{name: value}), *rest]) != before, name
    assert hash_examples([replace(one, text="for people"), *rest]) == before
    assert hash_examples([*rest, one]) != before
    assert hash_examples(rest) != before
    assert hash_examples([replace(one, roles={"a": 1, "b": 2})]) == hash_examples([replace(one, roles={"b": 2, "a": 1})])


def test_a_file_in_the_settings_counts_by_what_is_in_it(tmp_path):
    for name, text in (("a.json", "1"), ("b.json", "1"), ("c.json", "2")):
        (tmp_path / name).write_text(text)
    a, b, c = (with_contents({"path": str(tmp_path / name)}) for name in ("a.json", "b.json", "c.json"))
    assert a == b != c
    assert with_contents({"path": "nowhere.json", "plan": "auto", "n": 3}) == {"path": "nowhere.json", "plan": "auto", "n": 3}


def test_budgets_and_names_do_not_count():
    model, task = model_of("gpt2"), random_task(model_of("gpt2"))
    settings: dict[str, Any] = {"threshold": 0.1}
    asked = (model, task, "acdc", "mean", "logit_diff", 0, settings)
    identity = search_identity(*asked)
    assert identity == search_identity(replace(model, name="moved"), replace(task, name="moved"), *asked[2:])
    assert "memory" not in identity.settings
    assert search_identity(model, task, "acdc", "mean", None, 0, settings) == identity
    assert search_identity(model, task, "acdc", "mean", None, 0, {**settings, "order": "descending"}) == identity


# --- differences in words -------------------------------------------------------------------------------------------------


@given(identities)
def test_an_identity_comes_back_from_json(identity):
    again = Identity.from_dict(json.loads(json.dumps(identity.to_dict())))
    assert again == identity
    assert again is not None
    assert again.digest == identity.digest
    assert identity.differences(again) == []


@given(identities, identities)
def test_two_identities_differ_if_and_only_if_there_are_words_for_it(one, other):
    same = json.dumps(one.to_dict(), sort_keys=True) == json.dumps(other.to_dict(), sort_keys=True)
    if not same and one.differences(other) == []:  # a missing setting counts as null, -0.0 as 0.0
        assert json.dumps([one.settings, other.settings]).replace("-0.0", "0.0") != "[]"
    if same:
        assert one.differences(other) == []


@pytest.mark.parametrize(
    "data",
    [
        3,
        [],
        {"weights": {}},
        {"weights": [], "examples": {}, "settings": {}},
        {"weights": {"w": True}, "examples": {}, "settings": {}},
        {"weights": {}, "examples": {"e": None}, "settings": {}},
    ],
)
def test_what_is_no_identity_is_refused(data):
    with pytest.raises(BadFile, match="its identity is no table of hashes"):
        Identity.from_dict(data)


@pytest.mark.parametrize("data", [None, {}])
def test_without_an_identity_it_is_unknown(data):
    assert Identity.from_dict(data) is None


def test_the_difference_is_named():
    model, task = model_of("gpt2"), random_task(model_of("gpt2"))

    def of(model: Any = model, task: Any = task, **settings: Any) -> Identity:
        return search_identity(model, task, "acdc", settings.pop("ablation", "mean"), None, settings.pop("seed", 0), settings)

    mine = of(threshold=0.02)
    assert mine.differences(of(changed(model), threshold=0.02)) == ["other weights of the model"]
    assert mine.differences(of(task=replace(task, train=task.train[1:]), threshold=0.02)) == ["other train examples"]
    assert mine.differences(of(task=replace(task, heldout=task.heldout[1:]), threshold=0.02)) == []
    assert mine.differences(of(threshold=0.05)) == ["another algorithm.threshold (0.02, now 0.05)"]
    assert mine.differences(of(threshold=0.02, seed=1)) == ["another seed (0, now 1)"]
    assert mine.differences(of(threshold=0.02, ablation="zero")) == ['another ablation.kind ("mean", now "zero")']
    assert mine.differences(replace(mine, version="9")) == [f"another version of circuitdisc ({package_version()}, now 9)"]
    assert mine.differences(of(threshold=0.05), but=("algorithm",)) == []
    assert mine.differences(of(changed(model), threshold=0.05), parts=("settings",)) == mine.differences(of(threshold=0.05))
    assert in_words([f"another {n}" for n in range(9)]) == "another 0, another 1, another 2, another 3 and 5 more"
    long = identity_of(model, {}, {"plan": "x" * 5000}).differences(identity_of(model, {}, {"plan": "y" * 5000}))
    assert len(in_words(long)) < 120


def test_what_names_the_version_names_the_one_that_runs():
    root, version = Path(__file__).parents[1], circuitdisc.__version__
    assert package_version() == versions()["circuitdisc"] == version
    assert f"\nversion: {version}\n" in (root / "CITATION.cff").read_text()
    assert (root / "CHANGELOG.md").read_text().split("\n## ")[1].startswith(version)


def test_switches_that_came_later_do_not_change_what_a_model_is():
    """A journal that an earlier version began goes on."""
    assert not {"rotary", "rotary_pairs", "norm_across_heads"} & set(shared("gemma2").backend.configuration())
    assert shared("cohere").backend.configuration()["rotary_pairs"] == "neighbours"
    assert shared("olmo2").backend.configuration()["norm_across_heads"] is True
