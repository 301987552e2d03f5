"""Information flow routes: follow what the answer is made of from `logits` downwards, on the clean prompts alone.

1. Run the model on the clean prompts. Split what every receiver reads at every token into messages: one of the embedding and of
   each MLP before it, and one of each head for every token that it attends to.
2. The importance of a message is its proximity to the sum, max(0, |y| - |z - y|), as a share of all messages' there.
3. Go down from `logits` at the answer positions, only along messages whose importance reaches a threshold. The score of an edge
   is the largest threshold at which it is still on a route, averaged over examples.
4. Keep the edges whose score reaches `threshold`, or as many of the best as were asked for.

No corrupted prompt, no metric and no gradient enters the scores; the ablation is what the circuit is judged with.

Source: Ferrando and Voita 2024, "Information Flow Routes: Automatically Interpreting Language Models at Scale", section 2
(https://arxiv.org/abs/2403.00824). What differs, because our graph has edges from every sender to every later
receiver: their sum after a block has as parts the block's messages and the residual stream before it, which a route then
follows upwards block by block; here the residual stream is not a node, and its parts are the messages of all earlier senders.
They find the routes of one prompt at one threshold; the score here holds all thresholds at once, and its mean over examples
makes one circuit of a task. They take attention patterns as given, so that nothing flows into queries and keys; with
`attention` (ours) a route that uses a head's message goes on to the q and k inputs that made its pattern, too, without which
a circuit cannot attend.
"""

import numpy as np
from typing_extensions import Unpack

from circuitdisc.ablation import Ablation
from circuitdisc.checks import SHARE, bounded
from circuitdisc.circuit import Circuit
from circuitdisc.discovery.base import Discovery, SearchContext
from circuitdisc.discovery.selection import Aiming, Selection
from circuitdisc.engine.information_flow import flow_scores
from circuitdisc.engine.patching import Cost
from circuitdisc.models.model import Model
from circuitdisc.options import takes
from circuitdisc.progress import progress_bar
from circuitdisc.tasks.base import Task


@bounded(threshold=SHARE)
@takes(Aiming, grow="greedy")
def information_flow(
    model: Model,
    task: Task,
    ablation: Ablation,
    context: SearchContext,
    *,
    threshold: float | None = None,
    attention: bool = False,
    **options: Unpack[Aiming],
) -> Discovery:
    """Score every edge by the widest route through it, on the clean prompts.

    Args:
        threshold: keep the edges whose score reaches this share (0.04 is usual); None takes `edges` or `fraction`.
        attention: routes go on from a head's message to its q and k inputs; false leaves these edges at 0, as the paper does.

    Returns:
        A circuit and the score of every edge, from 0 to 1: the largest threshold at which the edge is on a route, averaged over
        examples. The trace is empty.

    Raises:
        BadSetting: a setting is out of its bounds, or the model has no fast components.
    """
    graph, cost = model.graph, Cost()
    selection = Selection(**options)
    selection.n_edges(graph)
    bar = progress_bar(len(task.train), f"information_flow on {model.name}", "example", context.progress)
    scores = flow_scores(model, task.train, attention=attention, memory=context.memory, cost=cost, on_progress=bar.update)
    bar.close()
    if threshold is None:
        circuit = selection.circuit(graph, scores)
    else:
        circuit = Circuit(graph, graph.edge_mask & (np.nan_to_num(scores, nan=-1.0) >= threshold)).prune()
    return Discovery(circuit, scores, cost=cost)
