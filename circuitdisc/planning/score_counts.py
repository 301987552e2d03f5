"""What a score and the checks before a search will count, as `counts.py` has it for a search."""

from dataclasses import replace

from circuitdisc.ablation import Ablation
from circuitdisc.planning.counts import Counts, Search, Span, counted, span


def counts_of_score(search: Search, n_train: int, n_circuits: Span, n_splits: int, n_chunks: int) -> Counts:
    """What scoring a circuit with its controls counts, on all examples of both splits.

    Args:
        n_train: examples that the ablation learns from.
        n_circuits: full model, circuit, empty circuit and controls.
        n_splits: splits that have examples.
        n_chunks: of both splits together.
    """
    low, high = n_circuits
    each = 1 + search.ablation.method.runs_per_example
    runs = (search.fit[0] + n_splits * each, search.fit[1] + n_splits * each)
    counts = counted(
        search,
        n_splits,
        model_runs=runs,
        circuit_runs=(low * n_chunks, high * n_chunks),
        node_evaluations=(0.0, high * n_splits * search.n_nodes),
        why="how many nodes of a circuit are alive" + ("" if low == high else ", and how many controls `auto` takes"),
    )
    # the full model's own values and those of nothing at all take next to no time
    training, share = search.training, n_train / search.n
    training = replace(training, usual=share * training.usual, forwards=(0.0, share * training.forwards[1]))
    return replace(counts, usual=each + high - 2) + training


def counts_of_checks(ablation: Ablation, allow_chance: bool) -> Counts:
    """Runs before a search, which it does not count: does the model do the task, what do corrupted prompts take away?"""
    low = 2.0 * (not allow_chance) + 2.0 * ablation.method.empty_is_corrupted
    return Counts(model_runs=span(low), forwards=span(low), usual=low)
