"""Every metric against its definition, written out as a loop over plain numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitdisc.errors import UnknownName
from circuitdisc.jobs.config import conf_dir
from circuitdisc.metrics import METRICS, Labels, get_metric
from circuitdisc.tasks.base import Example, collate

V = 11


def made_up(seed, n_answers=3, n_wrong=4, full=True):
    """Random logits [N, V], and labels with one to several right and wrong tokens that differ from each other."""
    generator = np.random.default_rng(seed)
    n = int(generator.integers(1, 6))
    answers, wrong = [], []
    for _ in range(n):
        tokens = generator.permutation(V).tolist()
        split = int(generator.integers(1, n_answers + 1))
        answers.append(tokens[:split])
        wrong.append(tokens[split : split + int(generator.integers(1, n_wrong + 1))])
    logits = torch.from_numpy(generator.normal(size=(n, V)) * 3)
    full_logprobs = torch.from_numpy(generator.normal(size=(n, V)) * 3).log_softmax(-1) if full else None
    targets = torch.from_numpy(generator.normal(size=n))
    return logits, answers, wrong, Labels(*padded(answers), *padded(wrong), full_logprobs, targets)


def padded(rows):
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def literal(name, row, right, wrong, full, target):
    """One reading, from lists of numbers."""
    p = softmax(row)
    if name == "logit_diff":
        return sum(row[t] for t in right) / len(right) - sum(row[t] for t in wrong) / len(wrong)
    if name == "prob_diff":
        return sum(p[t] for t in right) - sum(p[t] for t in wrong)
    if name == "choice_prob":
        return sum(p[t] for t in right) / sum(p[t] for t in (*right, *wrong))
    if name == "log_prob":
        return math.log(sum(p[t] for t in right))
    if name == "accuracy":
        return 1.0 if max(range(len(row)), key=lambda t: row[t]) in right else 0.0
    if name == "squared_error":
        return -((sum(row[t] for t in right) / len(right) - target) ** 2)
    if name == "pair_accuracy":
        return float(all(any(row[t] > row[w] for t in right) for w in wrong))
    assert name == "kl"
    return -sum(math.exp(f) * (f - math.log(q)) for f, q in zip(full, p, strict=True))


@pytest.mark.parametrize("name", METRICS)
@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_metrics_equal_their_definitions(name, seed):
    logits, answers, wrong, labels = made_up(seed)
    assert labels.full_logprobs is not None
    assert labels.targets is not None
    full, targets = labels.full_logprobs.tolist(), labels.targets.tolist()
    wanted = [literal(name, *rows) for rows in zip(logits.tolist(), answers, wrong, full, targets, strict=True)]
    torch.testing.assert_close(METRICS[name](logits, labels).tolist(), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", METRICS)
def test_rows_of_candidates_are_scored_one_by_one(name):
    logits, *_, labels = made_up(3)
    rows = torch.stack([logits, logits.flip(-1), logits * 0.1])
    together = METRICS[name](rows, labels)
    for index, row in enumerate(rows):
        torch.testing.assert_close(together[index], METRICS[name](row, labels), atol=0, rtol=0)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_answers_columns_give_the_logit_difference_of_the_whole_vocabulary(seed):
    logits, *_, labels = made_up(seed)
    for name, metric in METRICS.items():
        if metric.columns == "answers":
            among = labels.among_columns()
            few = logits.gather(-1, labels.columns)
            assert torch.equal(metric(few, among), metric(logits, labels)), name
            assert torch.equal(few.gather(-1, among.answers)[labels.answers_mask], logits.gather(-1, labels.answers)[
                labels.answers_mask
            ])  # fmt: skip


def test_padding_of_the_answers_counts_for_nothing():
    """Column 0 fills the gaps: a right answer there must not count where the mask says that there is none."""
    logits = torch.zeros(2, V, dtype=torch.float64)
    logits[:, 0] = 100.0
    labels = Labels(*padded([[3, 4], [5]]), *padded([[6], [7, 8]]), torch.zeros(2, V).log_softmax(-1).double())
    assert METRICS["accuracy"](logits, labels).tolist() == [0.0, 0.0]
    assert METRICS["logit_diff"](logits, labels).tolist() == [0.0, 0.0]
    assert METRICS["prob_diff"](logits, labels).abs().max() < 1e-12
    assert METRICS["log_prob"](logits, labels).max() < -90


def test_examples_without_wrong_answers():
    logits, answers, _, labels = made_up(5)
    none = torch.zeros(len(answers), 0, dtype=torch.long)
    bare = Labels(labels.answers, labels.answers_mask, none, none.bool(), labels.full_logprobs)
    for name in ("log_prob", "accuracy", "kl"):
        assert not METRICS[name].needs_wrong
        assert torch.equal(METRICS[name](logits, bare), METRICS[name](logits, labels))
    assert METRICS["logit_diff"].needs_wrong
    assert METRICS["prob_diff"].needs_wrong


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0.01, 50))
def test_kl_is_never_negative_and_zero_for_the_full_model_alone(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    full, other = (torch.randn(4, V, generator=generator, dtype=torch.float64) * spread for _ in range(2))
    none = torch.zeros(4, 0, dtype=torch.long)
    labels = Labels(none, none.bool(), none, none.bool(), full.log_softmax(-1))
    assert METRICS["kl"](full, labels).abs().max() < 1e-12
    assert METRICS["kl"](full + 7.0, labels).abs().max() < 1e-12  # a shift of all logits changes no probability
    assert METRICS["kl"](other, labels).max() < 0
    nearly = full + 1e-9 * other
    assert METRICS["kl"](nearly, labels).max() < 1e-12


def test_kl_without_the_full_model_says_what_is_missing():
    logits, *_, labels = made_up(1, full=False)
    with pytest.raises(ValueError, match="full_logprobs"):
        METRICS["kl"](logits, labels)


def test_a_large_logit_does_not_overflow():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    labels = Labels(*padded([[0]]), *padded([[2]]), torch.tensor([[0.0, -1e4, -2e4]]))
    for name, wanted in (
        ("prob_diff", 1.0),
        ("log_prob", 0.0),
        ("accuracy", 1.0),
        ("kl", 0.0),
        ("logit_diff", 2e4),
        ("choice_prob", 1.0),
    ):
        assert METRICS[name](logits, labels).tolist() == [wanted], name


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 10**6), st.sampled_from(["left", "right"]))
def test_per_example_is_the_mean_over_an_examples_readings(counts, seed, side):
    generator = np.random.default_rng(seed)
    examples = []
    for count in counts:
        length = int(generator.integers(4, 8))
        where = sorted(generator.permutation(length)[:count].tolist())
        clean = tuple(generator.integers(0, V, length).tolist())
        examples.append(Example(clean, None, tuple(where), ((1,),) * count, ((2,),) * count))
    batch = collate(examples, side)
    readings = torch.from_numpy(generator.normal(size=(3, sum(counts))))
    found = batch.per_example(readings)
    for row in range(3):
        at = 0
        for index, count in enumerate(counts):
            values = readings[row, at : at + count].tolist()
            assert found[row, index].item() == pytest.approx(sum(values) / count, abs=1e-12)
            at += count
    tokens = batch.clean[batch.read_example, batch.read_position].tolist()
    assert tokens == [example.clean[p] for example in examples for p in example.positions]


def test_the_probability_of_a_choice_ignores_all_other_tokens():
    labels = Labels(*padded([[1, 4]]), *padded([[2, 5]]))
    logits = torch.tensor([[0.5, 3.0, 1.0, -2.0, 0.2, -1.0]])
    louder = logits + torch.tensor([50.0, 0.0, 0.0, 50.0, 0.0, 0.0])
    assert torch.equal(METRICS["choice_prob"](louder, labels), METRICS["choice_prob"](logits, labels))
    pair = Labels(*padded([[1]]), *padded([[2]]))
    row = torch.tensor([[0.0, 3.0, 1.0]])
    assert METRICS["choice_prob"](row, pair).item() == pytest.approx(1 / (1 + math.exp(-2.0)))


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_a_file_of_settings(name):
    assert (conf_dir() / "metric" / f"{name}.yaml").read_text("utf-8") == f"name: {name}\n"


def test_unknown_metrics_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"unknown metric 'logit_dif'\. Did you mean logit_diff"):
        get_metric("logit_dif")
    assert get_metric("kl") is METRICS["kl"]
    assert get_metric(METRICS["kl"]) is METRICS["kl"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(METRICS)))
def test_values_lie_where_the_metric_says(seed, name):
    logits, *_, labels = made_up(seed)
    values = METRICS[name](logits * 5, labels)
    assert bool((values >= METRICS[name].least - 1e-12).all())
    assert bool((values <= METRICS[name].most + 1e-12).all())
