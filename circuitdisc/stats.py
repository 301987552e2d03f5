"""Intervals and standard errors: every one in the package is made here, over one partition of the examples.

1. `partition` says what is drawn again: the examples, or, where they come in groups (templates, say), whole groups.
2. A figure is a function of the means of one or several values of each example. Its standard error is that of its linear
   part: the spread, over what is drawn, of what each contributes to the figure.
3. The interval is the studentised bootstrap's (bootstrap-t): in each resample the figure's distance from the sample's is
   divided by the resample's own standard error; the quantiles of these ratios take the place of those of Student's t.
4. A share (accuracy) has Wilson's interval, whose number of examples is lowered by as much as groups agree within themselves.

Where step 3 has no answer (fewer than five to draw, or many resamples without any spread) Student's t is used; an interval
says which it is. Coverage was measured: `benchmarks/coverage.py`; percentile and BCa intervals are too short for skewed values.

Sources: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 12 (bootstrap-t); Hall 1988, "Theoretical
Comparison of Bootstrap Confidence Intervals"; Cameron, Gelbach & Miller 2008, "Bootstrap-Based Improvements for Inference with
Clustered Errors" (groups); Wilson 1927; Korn & Graubard 1998 (shares of grouped examples).

Shape letters: V values of each example, X figures of one form, B examples, G what is drawn (examples or groups), W resamples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

RESAMPLES = 2000
FEWEST = 5  # examples or groups that are drawn again; measured: with 3 groups no interval made from them is right
COLLAPSED = 0.05  # a resample whose standard error is below this share of the sample's has next to no spread
_AT_ONCE = 2**20  # numbers in one array of a block of resamples
_STEP = 1e-4  # of a numeric derivative, in standard errors
_ROUNDING = 1e-12  # a standard error below this, relative to the values, is rounding

Figure = Callable[[Float[np.ndarray, "V *X W"]], Float[np.ndarray, "*X W"]]
"""From the means of V values to a figure, element by element along all further axes."""


@dataclass(frozen=True)
class Partition:
    """What is drawn again: examples, or groups of them.

    Args:
        of: the number of the drawn thing that each example belongs to. [B]
        n_groups: groups among the examples; 0 if they have none.
    """

    of: Int[np.ndarray, "B"]
    n_groups: int = 0

    @property
    def n(self) -> int:
        """Examples."""
        return len(self.of)

    @cached_property
    def n_drawn(self) -> int:
        """How many are drawn: groups, or examples."""
        return int(self.of.max()) + 1 if self.n else 0

    @property
    def by_group(self) -> bool:
        return self.n_drawn < self.n

    @property
    def drawn(self) -> str:
        """What is drawn, in a word."""
        return "groups" if self.by_group else "examples"

    @property
    def degrees_of_freedom(self) -> int:
        return self.n_drawn - 1

    def totals(self, values: Float[np.ndarray, "*X B"]) -> Float[np.ndarray, "*X G"]:
        """Sum over the examples of each drawn thing."""
        if not self.by_group:
            return values
        member = np.zeros((self.n, self.n_drawn))
        member[np.arange(self.n), self.of] = 1
        return values @ member

    @property
    def words(self) -> str:
        """`300 examples in 16 groups`."""
        examples = f"{self.n:,} example{'s' * (self.n != 1)}"
        if self.by_group:
            return f"{examples} in {self.n_groups} groups"
        if 1 < self.n_groups < self.n:
            return f"{examples}; their {self.n_groups} groups are too few to be drawn again, so that it holds for these alone"
        return examples


def partition(n: int, groups: Sequence[object] | None = None) -> Partition:
    """What is drawn again for intervals over n examples.

    Groups are drawn whole if there are at least five. With fewer, examples are drawn, and the interval says nothing of other
    groups than these.

    Args:
        groups: the group of each example; None or "" for an example that belongs to none and is drawn by itself.
    """
    if groups is None:
        return Partition(np.arange(n))
    if len(groups) != n:
        raise ValueError(f"{len(groups)} groups for {n} examples")
    alone = [("alone", place) if group is None or group == "" else ("group", group) for place, group in enumerate(groups)]
    places: dict[object, int] = {}
    of = np.array([places.setdefault(name, len(places)) for name in alone], dtype=int)
    n_groups = len({name for name in alone if name[0] == "group"})
    return Partition(of if len(places) >= FEWEST else np.arange(n), n_groups)


@dataclass(frozen=True)
class Interval:
    """Intervals of some figures.

    Args:
        low, high: ends; NaN where there is none. [*X]
        studentised: where the interval is the studentised bootstrap's. [*X]
        over: what was drawn.
        name: of the method, where it is neither the studentised bootstrap nor Student's t.
    """

    low: Float[np.ndarray, "*X"]
    high: Float[np.ndarray, "*X"]
    studentised: Bool[np.ndarray, "*X"]
    over: Partition
    name: str = ""

    @property
    def ends(self) -> tuple[float | None, float | None]:
        """Both ends of a single interval, None where there is none."""
        return plain(float(self.low)), plain(float(self.high))

    @property
    def method(self) -> str:
        """`studentised bootstrap over 300 examples in 16 groups`; empty if there is no interval."""
        known = np.isfinite(self.low) & np.isfinite(self.high)
        if not known.any():
            return ""
        if self.name:
            return f"{self.name} over {self.over.words}"
        if (self.low == self.high)[known].all():
            return f"no spread over {self.over.words}"
        if self.studentised[known].all():
            return f"studentised bootstrap over {self.over.words}"
        if not self.studentised[known].any():
            return f"Student's t over {self.over.words}"
        return f"studentised bootstrap (Student's t where that has no answer) over {self.over.words}"

    def within(self, least: float, most: float = math.inf) -> "Interval":
        """Without what lies outside the values that a figure can have."""
        return replace(self, low=np.clip(self.low, least, most), high=np.clip(self.high, least, most))

    def size(self) -> "Interval":
        """Intervals of the absolute values: from 0 where the sign is not known."""
        low, high = np.abs(self.low), np.abs(self.high)
        both = (self.low <= 0) & (self.high >= 0)
        return replace(self, low=np.where(both, 0.0, np.minimum(low, high)), high=np.maximum(low, high))


def interval(
    samples: Sequence[Float[np.ndarray, "*X B"]],
    figure: Figure | None = None,
    *,
    groups: Sequence[object] | Partition | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Studentised bootstrap intervals of figures made from means over the same examples; every resample serves all figures.

    Args:
        samples: V arrays of values, example by example, that broadcast against each other.
        figure: from the means of these V to the figure; None: the mean of the first.
        groups: each example's group, or the partition itself.
        confidence: coverage of the intervals.
        seed: of the resamples. One seed gives one interval, however many figures share the call.

    Returns:
        Intervals; NaN for fewer than two examples, and where the figure is undefined in the sample or in a resample.

    Source: Efron & Tibshirani 1993, chapter 12.
    """
    shape = np.broadcast_shapes(*(np.shape(sample) for sample in samples))
    over = groups if isinstance(groups, Partition) else partition(shape[-1], groups)
    values = np.stack([np.broadcast_to(np.asarray(sample, np.float64), shape) for sample in samples]).reshape(
        len(samples), -1, shape[-1]
    )
    n_figures = values.shape[1]
    low, high, studentised = np.full(n_figures, math.nan), np.full(n_figures, math.nan), np.zeros(n_figures, dtype=bool)
    if over.n_drawn >= 2:
        at_once = max(1, _AT_ONCE // ((RESAMPLES + 1) * len(samples)))
        for start in range(0, n_figures, at_once):
            some = slice(start, start + at_once)
            low[some], high[some], studentised[some] = _studentised(values[:, some], figure, over, confidence, seed)
    low, high, studentised = (ends.reshape(shape[:-1]) for ends in (low, high, studentised))
    return Interval(low, high, studentised, over)


def share_interval(
    hits: Float[np.ndarray, "B"],
    counts: Float[np.ndarray, "B"] | None = None,
    *,
    groups: Sequence[object] | Partition | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Wilson's interval of a share, such as accuracy.

    With groups, or several trials in each example, the number of trials is replaced by the effective one: that of independent
    trials with the same standard error, lowered for its degrees of freedom and never above the true one. Where all agree,
    groups cannot be told apart, and every trial counts.

    Args:
        hits: of each example.
        counts: trials of each example; None: one each.

    Sources: Wilson 1927; Korn & Graubard 1998, "Confidence Intervals for Proportions with Small Expected Number of Positive
    Counts Estimated from Survey Data".
    """
    hits = np.asarray(hits, np.float64)
    trials = np.ones_like(hits) if counts is None else np.asarray(counts, np.float64)
    over = groups if isinstance(groups, Partition) else partition(len(hits), groups)
    n = float(trials.sum())
    share = float(hits.sum()) / n
    if (over.by_group or not np.isin(hits, (0.0, 1.0)).all() or trials.max() > 1) and 0 < share < 1 and over.n_drawn > 1:
        apart = over.totals(hits - share * trials)
        error = math.sqrt(over.n_drawn / (over.n_drawn - 1) * float((apart**2).sum())) / n
        lowered = _normal(confidence) / float(stats.t.ppf((1 + confidence) / 2, over.degrees_of_freedom))
        n = min(n, share * (1 - share) / error**2 * lowered**2) if error > 0 else n
    low, high = _wilson(share, n, confidence)
    return Interval(np.array(low), np.array(high), np.array(False), over, "Wilson's interval")


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = _normal(confidence)
    centre, reach = share + z**2 / (2 * n), z * math.sqrt(share * (1 - share) / n + (z / n) ** 2 / 4)
    low, high = (centre - reach) / (1 + z**2 / n), (centre + reach) / (1 + z**2 / n)
    return (0.0 if share == 0 else max(0.0, low)), (1.0 if share == 1 else min(1.0, high))


def _normal(confidence: float) -> float:
    return float(stats.norm.ppf((1 + confidence) / 2))


def standard_error(
    values: Float[np.ndarray, "*X B"], groups: Sequence[object] | Partition | None = None
) -> Float[np.ndarray, "*X"]:
    """Standard error of means over examples; NaN for fewer than two."""
    values = np.asarray(values, np.float64)
    over = groups if isinstance(groups, Partition) else partition(values.shape[-1], groups)
    if over.n_drawn < 2:
        return np.full(values.shape[:-1], math.nan)
    apart = over.totals(values - values.mean(-1, keepdims=True))
    return np.sqrt(over.n_drawn / (over.n_drawn - 1) * (apart**2).sum(-1)) / over.n


def mean_of_pairs(pairs: Float[np.ndarray, "C C"]) -> float:
    """Mean off the diagonal."""
    n = len(pairs)
    return float((pairs.sum() - np.trace(pairs)) / (n * (n - 1)))


def jackknife_interval(pairs: Float[np.ndarray, "C C"], confidence: float) -> tuple[float | None, float | None]:
    """Interval of the mean over pairs of a likeness from 0 to 1, by leaving out one at a time; None for fewer than three.

    Source: Arvesen 1969, "Jackknifing U-Statistics".
    """
    n = len(pairs)
    if n < 3:
        return None, None
    with_others = pairs.sum(1) - np.diag(pairs)
    left_out = (with_others.sum() - 2 * with_others) / ((n - 1) * (n - 2))
    error = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    reach = error * float(stats.t.ppf((1 + confidence) / 2, n - 1))
    mean = mean_of_pairs(pairs)
    return max(0.0, mean - reach), min(1.0, mean + reach)


class _Grouped(Protocol):
    @property
    def group(self) -> str: ...


def partition_of(examples: Sequence[_Grouped]) -> Partition:
    """What is drawn again for intervals over these examples of a task."""
    return partition(len(examples), [example.group for example in examples])


def resampled_means(values: Float[np.ndarray, "X B"], over: Partition, seed: int = 0) -> Float[np.ndarray, "X W"]:
    """Means of several values in each resample of the same examples."""
    sizes = np.bincount(over.of, minlength=over.n_drawn).astype(np.float64)
    totals = over.totals(values)
    drawn = islice(_with_sample(over.n_drawn, seed), 1, None)
    return np.concatenate([totals @ counts / (sizes @ counts) for counts in drawn], axis=-1)


def plain(value: float) -> float | None:
    """A number as JSON has it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


# --- the studentised bootstrap --------------------------------------------------------------------------------------------


def _studentised(
    values: Float[np.ndarray, "V X B"], figure: Figure | None, over: Partition, confidence: float, seed: int
) -> tuple[Float[np.ndarray, "X"], Float[np.ndarray, "X"], Bool[np.ndarray, "X"]]:
    centre = values.mean(-1)
    with np.errstate(invalid="ignore"):  # a value that is not finite has no interval
        apart = over.totals(values - centre[..., None])
    sizes = np.bincount(over.of, minlength=over.n_drawn).astype(np.float64)
    n = over.n_drawn
    spread = np.sqrt(n / (n - 1) * (apart**2).sum(-1)) / over.n
    spread = np.where(spread > _ROUNDING * np.abs(values).max(-1), spread, 0.0)
    apart = np.where(spread[..., None] > 0, apart, 0.0)  # a constant stays one in every resample
    figures, errors = [], []
    for counts in _with_sample(n, seed):
        drawn = _figures_and_errors(centre, apart, sizes, spread, counts, figure)
        figures.append(drawn[0])
        errors.append(drawn[1])
    figures_XW, errors_XW = np.concatenate(figures, -1), np.concatenate(errors, -1)
    value, error = figures_XW[:, 0], errors_XW[:, 0]
    scale = np.maximum(np.abs(value), error)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        away = figures_XW[:, 1:] - value[:, None]
        away = np.where(np.abs(away) <= _ROUNDING * scale, 0.0, away)
        ratios = np.where((away == 0) & (errors_XW[:, 1:] <= _ROUNDING * scale), 0.0, away / errors_XW[:, 1:])
        tail = (1 - confidence) / 2
        collapsed = (errors_XW[:, 1:] < COLLAPSED * error[:, None]).mean(-1) > tail / 2
        few, many = np.quantile(ratios, [tail, 1 - tail], axis=-1)
        studentised = np.isfinite(few) & np.isfinite(many) & (n >= FEWEST) & ~collapsed
        reach = stats.t.ppf(1 - tail, over.degrees_of_freedom) * error
        low = np.where(studentised, value - many * error, value - reach)
        high = np.where(studentised, value - few * error, value + reach)
    defined = np.isfinite(figures_XW).all(-1)
    return np.where(defined, low, math.nan), np.where(defined, high, math.nan), studentised


def _figures_and_errors(
    centre: Float[np.ndarray, "V X"],
    apart: Float[np.ndarray, "V X G"],
    sizes: Float[np.ndarray, "G"],
    spread: Float[np.ndarray, "V X"],
    counts: Float[np.ndarray, "G W"],
    figure: Figure | None,
) -> tuple[Float[np.ndarray, "X W"], Float[np.ndarray, "X W"]]:
    """The figure in each resample, and its standard error there.

    Args:
        centre: means of the sample.
        apart: each group's sum of distances from them.
        sizes: examples of each group.
        counts: how often each group is drawn.
    """
    n_values, n = len(centre), len(sizes)
    weights = sizes @ counts  # examples in the resample
    shift = apart @ counts / weights
    means = centre[..., None] + shift
    with np.errstate(divide="ignore", invalid="ignore"):
        value = means[0] if figure is None else np.asarray(figure(means))
        slopes = None if figure is None else _slopes(figure, means, spread)
        with_sizes = [(apart[v] * sizes) @ counts for v in range(n_values)]
        squares = sizes**2 @ counts
        total = np.zeros_like(value)
        for a in range(n_values):
            for b in range(a, n_values):
                product = (apart[a] * apart[b]) @ counts - shift[a] * with_sizes[b] - shift[b] * with_sizes[a]
                product += shift[a] * shift[b] * squares
                slope = 1.0 if slopes is None else slopes[a] * slopes[b]
                total += (1 if a == b else 2) * slope * product
        error = np.sqrt(np.maximum(total, 0.0) * n / (n - 1)) / weights
    return value, error


def _slopes(figure: Figure, means: Float[np.ndarray, "V X W"], spread: Float[np.ndarray, "V X"]) -> Float[np.ndarray, "V X W"]:
    """Derivatives of the figure by each mean, from central differences; 0 for a mean that never changes."""
    slopes = np.zeros_like(means)
    for v in range(len(means)):
        step = _STEP * spread[v][:, None]
        if not step.any():
            continue
        up, down = means.copy(), means.copy()
        up[v] += step
        down[v] -= step
        slopes[v] = np.where(step > 0, (figure(up) - figure(down)) / (2 * np.where(step > 0, step, 1.0)), 0.0)
    return slopes


def _with_sample(n: int, seed: int) -> Iterator[Float[np.ndarray, "G W"]]:
    """How often each of n is drawn: first the sample itself, once each; then resample by resample, in blocks."""
    yield np.ones((n, 1))
    if n * RESAMPLES <= _AT_ONCE:
        yield _resamples(n, seed, RESAMPLES)
        return
    at_once, generator = max(1, _AT_ONCE // n), np.random.default_rng(seed)
    for start in range(0, RESAMPLES, at_once):
        yield _draw(n, min(at_once, RESAMPLES - start), generator)


@lru_cache(maxsize=4)
def _resamples(n: int, seed: int, n_resamples: int) -> Float[np.ndarray, "G W"]:
    return _draw(n, n_resamples, np.random.default_rng(seed))


def _draw(n: int, n_resamples: int, generator: np.random.Generator) -> Float[np.ndarray, "G W"]:
    drawn = generator.integers(n, size=(n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n_resamples, n).T.astype(np.float64)
