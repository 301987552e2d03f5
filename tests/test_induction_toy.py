"""On the induction toy the circuit is the known one: previous-token head -> induction head by k, and nothing else."""

import numpy as np
import pytest

import circuitdisc as cd
from circuitdisc.circuit import Circuit
from circuitdisc.engine.backends import full_run
from circuitdisc.tasks.base import collate


@pytest.fixture(scope="module")
def found():
    model = cd.load_model("toys/induction", dtype="float64")
    task = cd.load_task("induction", model, n=60, n_heldout=200, length=8)
    return model, task, cd.discover(model, task, "acdc", threshold=0.3, ablation="resample")


def attention_to_offset(model, task):
    """Mean attention of every head to the previous token, and of the last token to the one after its earlier copy."""
    batch = collate(task.heldout)
    run = full_run(model, batch.clean, batch.is_token, batch.position_ids, keep_patterns=True)
    earlier = [row[:-1].index(row[-1]) + 1 for row in batch.clean.tolist()]
    previous, induction = {}, {}
    for layer, pattern in run.patterns.items():
        for head in range(model.graph.n_heads):
            name = f"a{layer}.h{head}"
            previous[name] = float(pattern[head].diagonal(-1, 1, 2).mean())
            last = pattern[head][:, -1]
            induction[name] = float(np.mean([float(last[row, key]) for row, key in enumerate(earlier)]))
    return previous, induction


def test_the_circuit_is_previous_token_head_to_induction_head_by_k(found):
    model, task, result = found
    previous, induction = attention_to_offset(model, task)
    previous_head = max(previous, key=lambda name: previous[name])
    induction_heads = [name for name, share in induction.items() if share > 0.4]
    assert previous_head.startswith("a0")
    assert previous[previous_head] > 0.8
    assert induction_heads
    assert all(name.startswith("a1") for name in induction_heads)
    hops = {f"{previous_head}->{name}<k>" for name in induction_heads}
    outputs = {f"{name}->logits" for name in induction_heads}
    assert set(result.circuit.edge_names()) == {f"input->{previous_head}<v>"} | hops | outputs


def value(scores, name):
    """A held-out score that must be defined."""
    found = scores.get(name).value
    assert found is not None
    return found


def test_nothing_else_carries_the_task(found):
    """The circuit does the task alone; without the one hop by k it does not; what it cuts does not either."""
    model, task, result = found
    kept = cd.score(model, task, result.circuit, n_random=0)
    assert value(kept, "accuracy") > 0.95
    assert 0.9 < value(kept, "faithfulness") < 1.1
    hop = Circuit.from_edges(model.graph, [name for name in result.circuit.edge_names() if name.endswith("<k>")])
    for without in (result.circuit - hop, ~hop):
        scores = cd.score(model, task, without, ablation="resample", metric="logit_diff", n_random=0)
        assert value(scores, "faithfulness") < 0.2
