"""Intervals and standard errors against loops over resamples, formulas from books, and their own definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from circuitdisc.stats import RESAMPLES, interval, partition, share_interval, standard_error

EXAMPLES = np.random.default_rng(7).lognormal(size=(3, 40)) + np.array([[3.0], [2.0], [0.0]])  # full, circuit, empty
GROUPS = [f"template {index % 7}" for index in range(40)]


def faithfulness(means):
    return (means[1] - means[2]) / (means[0] - means[2])


def resamples(n, seed):
    """What the bootstrap draws, one resample at a time."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def value_and_error(rows, clusters):
    """Faithfulness of some clusters of examples, and its standard error by the formula of a ratio of two means.

    Args:
        clusters: lists of example numbers; one may come several times.
    """
    n = sum(len(cluster) for cluster in clusters)
    full, circuit, empty = (sum(row[i] for cluster in clusters for i in cluster) / n for row in rows)
    value = (circuit - empty) / (full - empty)
    parts = []
    for cluster in clusters:
        parts.append(sum(((rows[1][i] - rows[2][i]) - value * (rows[0][i] - rows[2][i])) / (full - empty) for i in cluster) / n)
    return value, math.sqrt(len(clusters) / (len(clusters) - 1) * sum(part**2 for part in parts))


@pytest.mark.parametrize("groups", [None, GROUPS, [f"{i // 3}" if i < 30 else "" for i in range(40)]])
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_the_interval_is_that_of_a_loop_over_resamples(groups, confidence):
    rows = EXAMPLES.tolist()
    names = [f"own {i}" for i in range(40)] if groups is None else [name or f"own {i}" for i, name in enumerate(groups)]
    clusters = [[i for i in range(40) if names[i] == name] for name in dict.fromkeys(names)]
    value, error = value_and_error(rows, clusters)
    ratios = []
    for drawn in resamples(len(clusters), 3):
        other, its_error = value_and_error(rows, [clusters[c] for c in drawn])
        ratios.append((other - value) / its_error)
    tail = (1 - confidence) / 2
    few, many = np.quantile(ratios, [tail, 1 - tail])

    found = interval(tuple(EXAMPLES), faithfulness, groups=groups, confidence=confidence, seed=3)
    assert found.ends == pytest.approx((value - many * error, value - few * error), rel=1e-6)
    assert found.method.startswith("studentised bootstrap over 40 examples")


def test_one_mean_has_one_interval_however_many_share_the_call():
    values = np.random.default_rng(1).exponential(size=(600, 30))
    together = interval((values,), groups=GROUPS[:30], seed=5)
    for row in (0, 299, 599):
        alone = interval((values[row],), groups=GROUPS[:30], seed=5)
        assert (together.low[row], together.high[row]) == pytest.approx(alone.ends, rel=1e-10)
        as_figure = interval((values[row],), lambda means: means[0], groups=GROUPS[:30], seed=5)
        assert as_figure.ends == pytest.approx(alone.ends, rel=1e-6)
    assert interval((values[0],), seed=5).ends == interval((values[0],), seed=5).ends != interval((values[0],), seed=6).ends


def test_blocks_of_resamples_are_the_same_resamples():
    values = np.random.default_rng(2).exponential(size=1500)  # more than one block
    drawn = resamples(1500, 0)
    means, spreads = values[drawn].mean(1), values[drawn].std(1, ddof=1) / math.sqrt(1500)
    error = values.std(ddof=1) / math.sqrt(1500)
    few, many = np.quantile((means - values.mean()) / spreads, [0.025, 0.975])
    found = interval((values,))
    assert found.ends == pytest.approx((values.mean() - many * error, values.mean() - few * error), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-50, 50), st.floats(0.01, 100))
def test_intervals_move_and_stretch_with_the_values(seed, shift, scale):
    values = np.random.default_rng(seed).gamma(0.5, size=25)
    ends = np.array(interval((values,)).ends)
    moved = np.array(interval((shift + scale * values,)).ends)
    turned = np.array(interval((-values,)).ends)
    assert moved == pytest.approx(shift + scale * ends, rel=1e-6, abs=1e-6)
    assert turned == pytest.approx(-ends[::-1], rel=1e-6)


def test_groups_without_a_name_are_examples_and_few_groups_are_not_drawn():
    values = EXAMPLES[0]
    assert interval((values,), groups=[""] * 40).ends == interval((values,)).ends
    few = interval((values,), groups=["a", "b"] * 20)
    assert few.ends == interval((values,)).ends
    assert "2 groups are too few" in few.method
    assert interval((values,), groups=GROUPS).method == "studentised bootstrap over 40 examples in 7 groups"
    with pytest.raises(ValueError, match="3 groups for 40 examples"):
        interval((values,), groups=["a"] * 3)


def test_fewer_than_five_have_students_t_and_one_has_none():
    values = np.array([1.0, 2.0, 4.0])
    low, high = scipy_stats.t.interval(0.95, 2, values.mean(), values.std(ddof=1) / math.sqrt(3))
    found = interval((values,))
    assert found.ends == pytest.approx((low, high))
    assert found.method == "Student's t over 3 examples"
    alone = interval((np.array([1.0]),))
    assert (alone.ends, alone.method) == ((None, None), "")


def test_values_whose_resamples_often_have_no_spread_have_students_t():
    values = np.r_[np.zeros(29), 1.0]  # a third of the resamples lack the 1
    low, high = scipy_stats.t.interval(0.95, 29, values.mean(), values.std(ddof=1) / math.sqrt(30))
    assert interval((values,)).ends == pytest.approx((low, high))
    assert interval((values,)).method == "Student's t over 30 examples"


def test_constant_values_have_an_interval_of_no_length():
    found = interval((np.full((2, 30), [[0.1], [17.5]]),))
    assert found.low.tolist() == found.high.tolist() == pytest.approx([0.1, 17.5])
    assert found.method == "no spread over 30 examples"


def test_a_figure_that_is_undefined_has_no_interval():
    values = np.array([[1.0] * 9 + [np.inf], [1.0] * 9 + [2.0]])
    assert interval((values[0],)).ends == (None, None)
    with np.errstate(divide="ignore"):
        found = interval((values[1], np.r_[1.0, np.zeros(9)]), lambda means: means[0] / means[1])  # 0 in some resamples
    assert found.ends == (None, None)


def test_absolute_values_begin_at_zero_where_the_sign_is_open():
    apart = np.array([[-3.0, -2.0, -2.5, -3.5, -2.0], [1.0, -1.0, 2.0, -2.0, 0.5], [3.0, 2.0, 2.5, 3.5, 2.0]])
    found = interval((apart,))
    size = found.size()
    assert (size.low[0], size.high[0]) == (-found.high[0], -found.low[0])
    assert (size.low[1], size.high[1]) == (0.0, max(-found.low[1], found.high[1]))
    assert (size.low[2], size.high[2]) == (found.low[2], found.high[2])


def test_an_interval_stays_within_what_a_figure_can_be():
    found = interval((np.array([[0.0, 0.0, 0.0, 1.0, 0.1], [0.9, 1.0, 1.0, 0.2, 1.0]]),))
    assert found.low[0] < 0
    assert found.high[1] > 1
    bounded = found.within(0.0, 1.0)
    assert (bounded.low.tolist(), bounded.high.tolist()) == ([0.0, found.low[1]], [found.high[0], 1.0])


def test_standard_errors_are_those_of_the_book():
    values = EXAMPLES[0]
    assert standard_error(values) == pytest.approx(values.std(ddof=1) / math.sqrt(40))
    groups = [f"{i // 5}" for i in range(40)]  # of equal size: the error of eight means
    means = values.reshape(8, 5).mean(1)
    assert standard_error(values, groups) == pytest.approx(means.std(ddof=1) / math.sqrt(8))
    assert math.isnan(standard_error(np.ones(1)))


# --- shares --------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from([0.5, 0.95, 0.999]))
def test_a_share_of_single_trials_has_wilsons_interval(hits, misses, confidence):
    if hits + misses == 0:
        return
    found = share_interval(np.r_[np.ones(hits), np.zeros(misses)], confidence=confidence)
    book = scipy_stats.binomtest(hits, hits + misses).proportion_ci(confidence, method="wilson")
    assert found.ends == pytest.approx((book.low, book.high), abs=1e-12)
    assert found.method.startswith("Wilson's interval over")


def test_groups_that_agree_within_lower_the_number_of_trials():
    """Ten groups of twelve trials that all agree: as many trials as groups, less what ten groups cost."""
    of = np.repeat(np.arange(10), 12)
    hits = (of < 6).astype(float)
    share, groups = 0.6, of.tolist()
    error = math.sqrt(10 / 9 * sum((12 * ((g < 6) - share)) ** 2 for g in range(10))) / 120
    n = share * (1 - share) / error**2 * (scipy_stats.norm.ppf(0.975) / scipy_stats.t.ppf(0.975, 9)) ** 2
    assert n < 10
    z = scipy_stats.norm.ppf(0.975)
    centre, reach = share + z**2 / 2 / n, z * math.sqrt(share * (1 - share) / n + z**2 / 4 / n**2)
    wanted = ((centre - reach) / (1 + z**2 / n), (centre + reach) / (1 + z**2 / n))
    assert share_interval(hits, groups=groups).ends == pytest.approx(wanted)
    mixed = (np.arange(120) % 5 < 3).astype(float)  # every group has its 60 %: all trials count
    assert share_interval(mixed, groups=(np.arange(120) // 10).tolist()).ends == pytest.approx(share_interval(mixed).ends)


def test_trials_of_one_example_belong_together():
    """Two trials an example that always agree are one."""
    once = np.r_[np.ones(30), np.zeros(10)]
    found = share_interval(2 * once, np.full(40, 2.0))
    apart = np.array(found.ends) - np.array(share_interval(once).ends)
    assert -0.02 < apart[0] <= 0 <= apart[1] < 0.02


# --- coverage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_cover_the_truth_about_as_often_as_they_say(grouped):
    """200 samples; the full table is that of benchmarks/coverage.py."""
    generator, n_trials, hits = np.random.default_rng(1), 200, 0
    groups = (np.arange(60) % 12).tolist() if grouped else None
    for seed in range(n_trials):
        values = generator.exponential(size=60)
        values += generator.normal(size=12)[np.arange(60) % 12] if grouped else 0.0
        found = interval((values,), groups=groups, seed=seed)
        hits += bool(found.low <= 1.0 <= found.high)
    few, many = (scipy_stats.binom.ppf(q, n_trials, share) for q, share in ((1e-4, 0.93), (1 - 1e-4, 0.97)))
    assert few <= hits <= many


def test_the_partition_counts_what_is_drawn():
    over = partition(40, GROUPS)
    assert (over.n, over.n_drawn, over.degrees_of_freedom, over.by_group) == (40, 7, 6, True)
    single = partition(40)
    assert (single.n_drawn, single.degrees_of_freedom, single.by_group) == (40, 39, False)


def test_resamples_without_spread_do_not_make_an_interval_of_millions():
    """Seven of ten groups have one value: a resample of them alone has a standard error of rounding's size."""
    values = np.array([0, 0, 0, 0, -0.77260842, 0, 0, -0.32278433, -0.91263086, 0, 0, -0.43618648])
    groups = [0, 1, 2, 3, 4, 5, 6, 7, 4, 8, 9, 7]
    for seed in range(20):
        found = interval([values], groups=groups, seed=seed)
        assert found.low < values.mean() < found.high
        assert found.high - found.low < 10 * standard_error(values, partition(12, groups))
        assert "Student" in found.method
