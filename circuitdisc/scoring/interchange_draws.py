"""What interchange accuracy draws: source prompts for each base prompt, and other nodes as controls."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from circuitdisc.controls import different_sets
from circuitdisc.errors import BadTask
from circuitdisc.graph import ComputationGraph
from circuitdisc.tasks.base import Example


def source_pairs(
    examples: Sequence[Example], n_sources: int, rng: np.random.Generator
) -> tuple[list[Example], Int[np.ndarray, "B"]]:
    """Every example with `n_sources` others of its length as its corrupted prompts, and the number of each pair's base.

    Pairs of one length follow each other.

    Raises:
        BadTask: an example has fewer partners.
    """
    pairs: list[Example] = []
    bases: list[int] = []
    for index in sorted(range(len(examples)), key=lambda i: len(examples[i])):
        base = examples[index]
        others = [i for i, one in enumerate(examples) if i != index and len(one) == len(base)]
        if len(others) < n_sources:
            raise BadTask(
                f"example {index} of {len(base)} tokens has {len(others)} others of its length as source prompts, and "
                f"n_sources={n_sources} are asked for: give more examples, or ask for fewer"
            )
        for other in rng.choice(others, size=n_sources, replace=False):
            pairs.append(Example(base.clean, examples[other].clean, base.positions, base.answers, base.wrong))
            bases.append(index)
    return pairs, np.array(bases)


def random_nodes(graph: ComputationGraph, nodes: Sequence[str], n: int, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """Up to n different sets of other nodes: as many heads of the same layers, and as many MLPs; embeddings have no others."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in dict.fromkeys(nodes):
        node = graph.senders[graph.sender_index[name]]
        groups.setdefault((node.kind, node.layer if node.kind == "head" else -1), []).append(name)
    others = {
        key: [
            node.name
            for node in graph.senders
            if node.kind == key[0] and node.name not in own and (node.kind != "head" or node.layer == key[1])
        ]
        for key, own in groups.items()
    }
    if any(len(others[key]) < len(own) for key, own in groups.items()):
        return []
    drawn = different_sets([len(others[key]) for key in groups], [len(own) for own in groups.values()], n, rng)
    return [tuple(others[key][i] for key, places in zip(groups, one, strict=True) for i in places) for one in drawn]
