"""Head roles and attention between named positions: against a loop over tokens on the Hugging Face module's own patterns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from models import model_of, shared

import circuitdisc as cd
from circuitdisc.engine.attention import attention_patterns
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.heads import ROLES, attention_to, head_roles
from circuitdisc.tasks.base import Example, Task


def repeating_examples(n: int = 6, seed: int = 0) -> list[Example]:
    """Prompts of unequal lengths over five tokens, so that some occur again, some at once; two roles."""
    generator = np.random.default_rng(seed)
    found = []
    for index in range(n):
        length = int(generator.integers(4, 9))
        clean, corrupted = (tuple(generator.integers(0, 5, length).tolist()) for _ in range(2))
        roles = {"s1": 1, "s2": length - 2}
        found.append(Example(clean, corrupted, (length - 1,), ((1,),), ((2,),), group="ab"[index % 2], roles=roles))
    found.append(Example((7, 8, 9), (9, 8, 7), (2,), ((1,),), ((2,),), roles={"s1": 1, "s2": 1}))  # nothing is said twice
    return found


def own_patterns(model, tokens):
    """The module's attention patterns. [L, H, T, T]"""
    with torch.no_grad():
        out = model.module(input_ids=torch.tensor([tokens]), output_attentions=True)
    return torch.stack(out.attentions)[:, 0].numpy()


def key_of(role, tokens, query):
    """The key that a query attends to in this role, found by looking back one token at a time; None without one."""
    if query == 0:
        return None
    if role in ("first_token", "self", "previous_token"):
        return {"first_token": 0, "self": query, "previous_token": query - 1}[role]
    for earlier in range(query - 1, -1, -1):
        if tokens[earlier] == tokens[query]:
            key = earlier if role == "duplicate_token" else earlier + 1
            return None if key == query else key
    return None


def slow_score(patterns, tokens, role):
    pairs = [(query, key_of(role, tokens, query)) for query in range(len(tokens))]
    pairs = [(query, key) for query, key in pairs if key is not None]
    return np.mean([patterns[:, :, query, key] for query, key in pairs], axis=0) if pairs else None


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_scores_are_those_of_a_loop_over_tokens(family):
    model, examples = shared(family), repeating_examples()
    found = head_roles(model, examples, threshold=0.2, min_share=0.5)
    tolerance = 1e-9 if family == "gpt2" else 1e-6  # transformers turns queries and keys in float32
    for p, role in enumerate(ROLES):
        slow = [slow_score(own_patterns(model, example.clean), example.clean, role) for example in examples]
        defined = [index for index, score in enumerate(slow) if score is not None]
        assert found.n_defined[p] == len(defined)
        stacked = np.stack([score for score in slow if score is not None], axis=-1)
        assert found.scores[p][..., defined] == pytest.approx(stacked, abs=tolerance)
        assert np.isnan(found.scores[p][..., [i for i in range(len(examples)) if i not in defined]]).all()
        assert found.mean[p] == pytest.approx(stacked.mean(-1), abs=tolerance)
        share = (stacked > 0.2).mean(-1)
        assert found.share[p] == pytest.approx(share)
        expected = [f"a{layer}.h{head}" for layer, head in np.argwhere(share > 0.5)]
        assert found.heads(role) == expected
    assert any(found.heads(role) for role in ROLES), "no head holds a role, so that the test says little"
    assert 0 < found.n_defined[ROLES.index("induction")] < len(examples)


@pytest.mark.parametrize("memory", ["4GiB", "6KB"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_and_chunks_change_nothing(side, memory):
    model, examples = shared("gpt2"), repeating_examples()
    n_chunks = 0
    for some in attention_patterns(model, examples, "corrupted", memory, side):
        for row, example in enumerate(examples[n_chunks : n_chunks + some.batch.n_examples]):
            at = some.batch.is_token[row].nonzero().flatten()
            own = own_patterns(model, example.corrupted)
            for layer, pattern in some.patterns.items():
                assert pattern[:, row][:, at][:, :, at].numpy() == pytest.approx(own[layer], abs=1e-9)
        n_chunks += some.batch.n_examples
    assert n_chunks == len(examples)


def test_the_induction_toy_has_the_heads_that_it_was_trained_for():
    model = cd.load_model("toys/induction")
    task = cd.load_task("induction", model, n=20, n_heldout=100, length=8)
    for found in (head_roles(model, task), head_roles(model, prompts="repeated", n=60, seed=3)):
        assert found.heads("induction") == ["a1.h0", "a1.h1"]
        assert found.heads("previous_token") == ["a0.h1"]
        assert found.heads("duplicate_token") == []
    row = next(row for row in found.table() if row["head"] == "a1.h0")
    assert row["roles"] == "induction"
    assert row["induction"] > 0.8


def test_a_role_without_a_query_is_not_available():
    model = shared("gpt2")
    examples = [Example((1, 2, 3, 4), None, (3,), ((1,),), ((2,),))] * 3
    found = head_roles(model, examples)
    rows = {row["role"]: row for row in found.by_role()}
    assert rows["induction"]["defined in"] == 0
    assert "n/a" in rows["induction"]["heads"]
    assert found.table()[0]["duplicate_token"] is None
    assert found.heads("duplicate_token") == []
    assert rows["self"]["defined in"] == 3


@pytest.mark.parametrize("prompts", ["clean", "corrupted"])
def test_attention_between_positions_is_the_modules_own(prompts):
    model, examples = shared("gpt2"), repeating_examples()
    task = Task("roles", (), tuple(examples))
    places = {
        ("end", "s2"): lambda e: (len(e) - 1, e.roles["s2"]),
        ("s2+1", "s1"): lambda e: (e.roles["s2"] + 1, e.roles["s1"]),
        (-1, "first"): lambda e: (len(e) - 1, 0),
    }
    for (query, key), place in places.items():
        found = attention_to(model, task, query=query, key=key, prompts=prompts, memory="6KB")
        for index, example in enumerate(examples):
            own = own_patterns(model, getattr(example, prompts))
            at, to = place(example)
            assert found.values[..., index] == pytest.approx(own[:, :, at, to], abs=1e-9)
        assert found.mean == pytest.approx(found.values.mean(-1))
        assert (found.low <= found.mean).all()
        assert (found.mean <= found.high).all()
        best = found.table()[0]
        assert best["attention"] == found.mean.max()
        assert best["head"] == "a{}.h{}".format(*np.unravel_index(found.mean.argmax(), found.mean.shape))


def test_bad_input_gets_a_sentence():
    model, examples = shared("gpt2"), repeating_examples()
    with pytest.raises(BadSetting, match="use query=s2 key=s1"):
        attention_to(model, examples[:-1], query="s1", key="s2")
    assert attention_to(model_of("bidirectional"), examples, query="s1", key="s2").mean.max() > 0
    with pytest.raises(UnknownName, match="s3"):
        attention_to(model, examples, query="end", key="s3")
    with pytest.raises(BadTask, match="corrupted prompt for every example"):
        attention_to(model, [replace(examples[0], corrupted=None)], prompts="corrupted")
    with pytest.raises(UnknownName, match="Did you mean corrupted"):
        attention_to(model, examples, prompts="corupted")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownName, match="Did you mean induction"):
        head_roles(model, examples, roles=["inducton"])
    with pytest.raises(UnknownName, match="repeated"):
        head_roles(model, examples, prompts="repeat")  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadSetting, match=r"threshold=1\.5"):
        head_roles(model, examples, threshold=1.5)
    with pytest.raises(BadTask, match="no examples"):
        head_roles(model)
    with pytest.raises(BadSetting, match="fast components"):
        head_roles(model_of("gpt2", components="hooks"), examples)
