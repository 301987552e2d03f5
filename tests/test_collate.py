"""Padding: on either side, the same readings; positions, labels and groups as the examples say."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.metrics import METRICS
from circuitdisc.tasks import Example, collate

VOCABULARY = 11
ids = st.integers(0, VOCABULARY - 1)


@st.composite
def example(draw: st.DrawFn) -> Example:
    clean = draw(st.lists(ids, min_size=1, max_size=6).map(tuple))
    corrupted = draw(st.lists(ids, min_size=len(clean), max_size=len(clean)).map(tuple))
    positions = draw(st.lists(st.integers(0, len(clean) - 1), min_size=1, max_size=3, unique=True).map(tuple))
    one = st.lists(ids, min_size=1, max_size=3, unique=True).map(tuple)
    answers = tuple(draw(one) for _ in positions)
    wrong = tuple(draw(st.lists(ids, max_size=2, unique=True).map(tuple)) for _ in positions)
    return Example(clean, corrupted, positions, answers, wrong, group=draw(st.sampled_from("ab")))


def logits_of(tokens_BT: torch.Tensor, is_token_BT: torch.Tensor, position_BT: torch.Tensor) -> torch.Tensor:
    """A toy causal model: each position sees the sum of its own and earlier real tokens, and its place in the prompt."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = (table[tokens_BT] * is_token_BT[..., None]).cumsum(1)
    return seen + position_BT[..., None] * torch.arange(VOCABULARY, dtype=torch.float64)


@settings(deadline=None)
@given(st.lists(example(), min_size=1, max_size=5))
def test_padding_on_either_side_gives_the_same_readings(examples: list[Example]) -> None:
    """And both equal what each example gives alone."""
    alone = []
    for one in examples:
        prompt = torch.tensor([one.clean])
        logits = logits_of(prompt, torch.ones_like(prompt, dtype=torch.bool), torch.arange(len(one))[None])
        alone += [logits[0, position] for position in one.positions]
    for side in ("right", "left"):
        batch = collate(examples, padding_side=side)
        logits = logits_of(batch.clean, batch.is_token, batch.position_ids)[batch.read_example, batch.read_position]
        torch.testing.assert_close(logits, torch.stack(alone))


@settings(deadline=None)
@given(st.lists(example(), min_size=1, max_size=5), st.sampled_from(["right", "left"]))
def test_tokens_and_labels_are_the_examples(examples: list[Example], side: str) -> None:
    batch = collate(examples, padding_side=side)
    assert batch.corrupted is not None
    for index, one in enumerate(examples):
        real = batch.is_token[index]
        assert tuple(batch.clean[index][real].tolist()) == one.clean
        assert tuple(batch.corrupted[index][real].tolist()) == one.corrupted
        assert batch.position_ids[index][real].tolist() == list(range(len(one)))
    readings = [(one, k) for one in examples for k in range(len(one.positions))]
    labels = batch.labels
    for row, (one, k) in enumerate(readings):
        assert tuple(labels.answers[row][labels.answers_mask[row]].tolist()) == one.answers[k]
        assert tuple(labels.wrong[row][labels.wrong_mask[row]].tolist()) == one.wrong[k]
    assert batch.groups == tuple(one.group for one in examples)


@settings(deadline=None)
@given(st.lists(example(), min_size=1, max_size=4))
def test_metrics_do_not_see_the_padding_side(examples: list[Example]) -> None:
    values = []
    for side in ("right", "left"):
        batch = collate(examples, padding_side=side)
        logits = logits_of(batch.clean, batch.is_token, batch.position_ids)[batch.read_example, batch.read_position]
        values.append(batch.per_example(METRICS["logit_diff"](logits, batch.labels)))
    torch.testing.assert_close(*values)


def test_per_example_is_the_mean_of_an_examples_readings() -> None:
    two = Example((1, 2, 3), None, (0, 2), ((1,), (2,)), ((), ()))
    one = Example((4,), None, (0,), ((1,),), ((),))
    batch = collate([two, one])
    assert batch.corrupted is None
    assert batch.per_example(torch.tensor([1.0, 5.0, 7.0])).tolist() == [3.0, 7.0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_corrupted_is_none_unless_every_example_has_one(side: str) -> None:
    both = Example((1, 2), (1, 3), (1,), ((4,),), ((5,),))
    assert collate([both], side).corrupted is not None
    assert collate([both, Example((1, 2), None, (1,), ((4,),), ((5,),))], side).corrupted is None
