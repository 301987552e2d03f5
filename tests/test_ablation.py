"""What cut edges carry: averages against lists of numbers, settings against the words that are allowed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.ablation import Ablation, Means, get_ablation
from circuitdisc.errors import UnknownName
from circuitdisc.tasks.base import Example, collate

S, D = 2, 3
SCOPES = ["group", "position", "dataset"]


def made_up(generator, n, groups, longest):
    """Prompts of unequal lengths, and what every sender writes at each token: a list [T][S][D] for each example."""
    lengths = generator.integers(1, longest + 1, n).tolist()
    names = [str(generator.choice(list(groups))) for _ in range(n)]
    return [(name, generator.normal(size=(length, S, D))) for name, length in zip(names, lengths, strict=True)]


def batch_of(examples, side, dtype=torch.float64):
    """The same as a padded batch; padding holds numbers that would spoil every average."""
    batch = collate([Example((0,) * len(x), None, (0,), ((0,),), ((),), group=name) for name, x in examples], side)
    values = torch.full((S, *batch.clean.shape, D), 1e6, dtype=dtype)
    for index, (_, x) in enumerate(examples):
        values[:, index, batch.is_token[index]] = torch.from_numpy(x).to(dtype).transpose(0, 1)
    return batch, values


def average(rows):
    return sum(rows) / len(rows)


def wanted(scope, seen, group, position):
    """The average that a token at `position` of an example of `group` should carry, over all tokens seen. [S, D]"""
    tokens = [(name, p, x[p]) for name, x in seen for p in range(len(x))]
    if scope == "dataset":
        return average([value for *_, value in tokens])
    if scope == "group" and group in {name for name, *_ in tokens}:
        tokens = [token for token in tokens if token[0] == group]
    here = [value for _, p, value in tokens if p == position]
    return average(here or [value for *_, value in tokens])


@pytest.mark.parametrize("scope", SCOPES)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seen_groups=st.sampled_from(["a", "ab", "abc"]),
    asked_groups=st.sampled_from(["a", "ab", "xy", "ax"]),
    side=st.sampled_from(["left", "right"]),
    asked_side=st.sampled_from(["left", "right"]),
)
def test_averages_equal_the_lists(scope, seed, sizes, seen_groups, asked_groups, side, asked_side):
    generator = np.random.default_rng(seed)
    means, seen = Means(scope), []
    for size in sizes:
        examples = made_up(generator, size, seen_groups, longest=4)
        batch, values = batch_of(examples, side)
        means.add(values, batch.position_ids, batch.is_token, batch.groups)
        seen += examples
    asked = made_up(generator, 3, asked_groups, longest=6)
    batch, _ = batch_of(asked, asked_side)
    found = means.values(batch.position_ids, batch.groups, torch.float64)
    found = found.expand(S, *batch.clean.shape, D)
    for index, (group, x) in enumerate(asked):
        mine = found[:, index, batch.is_token[index]].transpose(0, 1)
        for position in range(len(x)):
            np.testing.assert_allclose(mine[position], wanted(scope, seen, group, position), atol=1e-12)


def test_fallbacks_by_hand():
    """Group a reaches position 1, group b position 0; nobody reaches position 2; group c was never seen."""
    means = Means("group")
    rows = [("a", [2.0, 4.0]), ("a", [6.0]), ("b", [10.0])]
    batch, values = batch_of([(name, np.full((len(x), S, D), np.array(x)[:, None, None])) for name, x in rows], "right")
    means.add(values, batch.position_ids, batch.is_token, batch.groups)
    asked, _ = batch_of([(name, np.zeros((3, S, D))) for name in "abc"], "right")
    found = means.values(asked.position_ids, asked.groups, torch.float64)[0, :, :, 0]
    assert found.tolist() == [
        [4.0, 4.0, 4.0],  # (2 + 6) / 2, then 4, then the group's tokens: (2 + 4 + 6) / 3
        [10.0, 10.0, 10.0],
        [6.0, 4.0, 5.5],  # all groups: (2 + 6 + 10) / 3, then 4, then all tokens: 22 / 4
    ]


def test_without_groups_a_group_is_everyone():
    generator = np.random.default_rng(0)
    examples = [("", x) for _, x in made_up(generator, 5, "a", 4)]
    batch, values = batch_of(examples, "right")
    found = []
    for scope in ("group", "position"):
        means = Means(scope)
        means.add(values, batch.position_ids, batch.is_token, batch.groups)
        found.append(means.values(batch.position_ids, batch.groups, torch.float64))
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("scope", SCOPES)
def test_many_small_numbers_are_summed_in_float64(scope):
    """A million values of 0.1, a thousand at a time: a running sum in float32 drifts by about one part in a million."""
    means = Means(scope)
    values = torch.full((1, 1000, 1, 1), 0.1, dtype=torch.float32)
    positions, tokens = torch.zeros(1000, 1, dtype=torch.long), torch.ones(1000, 1, dtype=torch.bool)
    naive = torch.zeros((), dtype=torch.float32)
    for _ in range(1000):
        means.add(values, positions, tokens, [""] * 1000)
        naive += values.sum()
    found = means.values(positions[:1], [""], torch.float64)
    truth = float(values[0, 0, 0, 0])
    assert abs(float(found) - truth) < 1e-12
    assert abs(float(naive) / 1e6 - truth) > 1e-10
    assert means.values(torch.zeros(1, 1, dtype=torch.long), [""], torch.float32).dtype == torch.float32


# --- settings ------------------------------------------------------------------------------------------------------------


def test_an_ablation_from_its_kind_its_settings_or_itself():
    assert get_ablation("zero") == Ablation("zero")
    one = Ablation("mean", scope="position", prompts="corrupted", target="pattern")
    assert get_ablation(one) is one
    assert get_ablation(one.to_dict()) == one
    assert get_ablation({}) == Ablation()


@pytest.mark.parametrize(
    ("ablation", "says"),
    [
        ("rezample", r"unknown ablation kind 'rezample'. Did you mean resample\?"),
        ("median", r"unknown ablation kind 'median'. Did you mean mean\?"),
        ("", r"unknown ablation kind ''. Known: mean, optimal, resample, zero, zero_folded\."),
        ({"kind": "mean", "scop": "group"}, r"unknown ablation setting 'scop'. Did you mean scope\?"),
        ({"kind": "mean", "scope": "positions"}, r"unknown ablation scope 'positions'. Did you mean position\?"),
        ({"kind": "mean", "prompts": "corupted"}, r"unknown ablation prompts 'corupted'. Did you mean corrupted\?"),
        ({"target": "patterns"}, r"unknown ablation target 'patterns'. Did you mean pattern\?"),
        ({"kind": None}, r"unknown ablation kind 'None'"),
    ],
)
def test_unknown_words_are_refused_with_the_nearest(ablation, says):
    with pytest.raises(UnknownName, match=says):
        get_ablation(ablation)


@pytest.mark.parametrize(
    ("ablation", "label", "needs_corrupted"),
    [
        (Ablation("zero"), "zero", False),
        (Ablation("resample"), "resample", True),
        (Ablation("mean"), "mean (per group and position)", False),
        (Ablation("mean", "position"), "mean (per position)", False),
        (Ablation("optimal"), "optimal (learned constants, 50 steps of 0.1)", False),
        (Ablation("mean", "dataset", "corrupted"), "mean (over the data set, corrupted prompts)", True),
        (Ablation("zero", prompts="corrupted"), "zero", False),
        (Ablation("resample", target="pattern"), "resample of the attention pattern", True),
    ],
)
def test_labels_say_what_was_cut(ablation, label, needs_corrupted):
    assert ablation.label == label
    assert ablation.needs_corrupted is needs_corrupted
