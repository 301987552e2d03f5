"""The statistics of the hypothesis tests: against sums written out, and their size and power on simulated data."""

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from circuitdisc.scoring.exact_tests import gaussian_kernel, holm, hsic_test, less_often, more_often, sign_test

SIMULATIONS = 400
ALPHA = 0.05


def within_interval(n_rejections, expected):
    """Whether a count of rejections is what a test of this size gives, but for one set of simulations in a thousand."""
    low, high = stats.binom.interval(0.999, SIMULATIONS, expected)
    return low <= n_rejections <= high


def mass(count, n, p):
    return comb(n, count) * p**count * (1 - p) ** (n - count)


# --- literal values ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(0, 30), st.sampled_from([0.0, 0.1, 0.3]))
def test_the_sign_test_sums_both_tails(n, above, epsilon):
    above = min(above, n)
    first = np.array([1.0] * above + [-1.0] * (n - above))
    statistic, p_value, counted = sign_test(first, np.zeros(n), epsilon)
    tails = [k for k in range(n + 1) if abs(2 * k - n) >= abs(2 * above - n)]
    assert counted == n
    assert statistic == pytest.approx(abs(above / n - 0.5))
    assert p_value == pytest.approx(sum(mass(k, n, 0.5 + epsilon) for k in tails), abs=1e-12)


def test_ties_are_left_out_of_the_sign_test():
    full = np.array([1.0, 2.0, 3.0, 4.0])
    assert sign_test(full, full, 0.1) == (0.0, 1.0, 0)
    moved = full + np.array([0.0, 1e-9, 0.5, 0.5])
    assert sign_test(moved, full, 0.1) == sign_test(np.ones(2), np.zeros(2), 0.1)


def test_binomial_tails_are_sums():
    assert more_often(97, 100, 0.9) == pytest.approx(sum(mass(k, 100, 0.9) for k in range(97, 101)))
    assert less_often(80, 100, 0.9) == pytest.approx(sum(mass(k, 100, 0.9) for k in range(81)))


def test_hsic_is_the_trace_and_p_counts_the_orders_it_is_given():
    generator = np.random.default_rng(3)
    first, second = generator.normal(size=7), generator.normal(size=7)

    def literal(x, y):
        n = len(x)
        kernels = []
        for values in (x, y):
            width = np.median([abs(a - b) for i, a in enumerate(values) for b in values[:i]])
            kernels.append(np.array([[np.exp(-((a - b) ** 2) / (2 * width**2)) for b in values] for a in values]))
        centre = np.eye(n) - np.full((n, n), 1 / n)
        return np.trace(kernels[0] @ centre @ kernels[1] @ centre) / n**2

    observed, p_value = hsic_test(first, second, 50, np.random.default_rng(1))
    orders = np.random.default_rng(1)
    drawn = [literal(first, second[orders.permutation(7)]) for _ in range(50)]
    assert observed == pytest.approx(literal(first, second))
    assert p_value == (1 + sum(value >= observed - 1e-12 for value in drawn)) / 51


def test_a_constant_is_independent_of_everything():
    values = np.random.default_rng(0).normal(size=9)
    assert hsic_test(values, np.full(9, 0.3), 20, np.random.default_rng(0))[1] == 1.0


def test_the_kernel_of_values_that_are_mostly_equal_still_tells_them_apart():
    kernel = gaussian_kernel(np.array([1.0, 1, 1, 1, 1, 0]))
    assert kernel[0, 1] == 1
    assert kernel[0, 5] == pytest.approx(np.exp(-0.5))


def test_holm_multiplies_the_smallest_by_all_the_next_by_one_less_and_never_falls():
    assert holm(np.array([0.02, 0.9, 0.01, 0.016])) == pytest.approx([0.048, 0.9, 0.04, 0.048])
    assert holm(np.array([0.4, 0.6])) == pytest.approx([0.8, 0.8])


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=8))
def test_holm_rejects_as_the_stepwise_procedure_does(p_values):
    kept = False
    rejected = [False] * len(p_values)
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        kept = kept or p_values[index] * (len(p_values) - step) > ALPHA
        rejected[index] = not kept
    assert [p <= ALPHA for p in holm(np.array(p_values))] == rejected


# --- size and power ------------------------------------------------------------------------------------------------------


def sign_rejections(p, n=200, epsilon=0.1, seed=0):
    generator = np.random.default_rng(seed)
    draws = (generator.random((SIMULATIONS, n)) < p) * 2.0 - 1
    return sum(sign_test(row, np.zeros(n), epsilon)[1] <= ALPHA for row in draws)


def test_size_and_power_of_the_sign_test():
    n, p = 200, 0.6
    size = sum(
        mass(k, n, p) for k in range(n + 1) if sign_test(np.array([1.0] * k + [-1.0] * (n - k)), np.zeros(n), 0.1)[1] <= ALPHA
    )
    assert 0.02 < size <= ALPHA  # what whole numbers allow at the edge of H0
    assert within_interval(sign_rejections(p), size)
    assert sign_rejections(0.5) < 0.01 * SIMULATIONS
    assert sign_rejections(0.75) > 0.95 * SIMULATIONS
    assert sign_rejections(0.25) > 0.95 * SIMULATIONS


def hsic_rejections(dependence, seed):
    generator = np.random.default_rng(seed)
    found = 0
    for _ in range(SIMULATIONS):
        first = generator.normal(size=20)
        second = dependence * first**2 + generator.normal(size=20)  # not a linear one: their correlation is 0
        found += hsic_test(first, second, 39, generator)[1] <= ALPHA
    return found


def test_size_and_power_of_the_independence_test():
    assert within_interval(hsic_rejections(0.0, seed=1), ALPHA)  # 2 of 40 orders: exactly alpha
    assert hsic_rejections(3.0, seed=2) > 0.8 * SIMULATIONS


@pytest.mark.parametrize(("test", "planted"), [(more_often, 0.99), (less_often, 0.7)])
def test_size_and_power_of_the_binomial_tests(test, planted):
    n = 100
    p_values = np.array([test(k, n, 0.9) for k in range(n + 1)])
    size = sum(mass(k, n, 0.9) for k in range(n + 1) if p_values[k] <= ALPHA)
    assert 0.01 < size <= ALPHA
    generator = np.random.default_rng(5)
    assert within_interval((p_values[generator.binomial(n, 0.9, SIMULATIONS)] <= ALPHA).sum(), size)
    assert (p_values[generator.binomial(n, planted, SIMULATIONS)] <= ALPHA).sum() > 0.9 * SIMULATIONS


def test_holm_holds_its_level_over_all_tests_together():
    generator = np.random.default_rng(6)
    false = sum(holm(generator.random(20)).min() <= ALPHA for _ in range(SIMULATIONS))
    assert within_interval(false, 1 - (1 - ALPHA / 20) ** 20)
