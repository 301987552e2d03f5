"""Real language models, from the cache that `scripts/real_models` fills: the self-check, single edges, a circuit.

What a single edge does is compared with the model's own forward pass under hooks (`literal_edges.py`), which a tiny model holds
to the same comparison.
"""

import os
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from examples import random_examples
from literal_edges import effects, in_float64
from models import hugging_face

import circuitdisc as cd
from circuitdisc.engine.selfcheck import check_model

FOLDERS = {"smollm2": "smollm2-135m-instruct", "gemma3": "gemma-3-270m"}
EDGES = {
    "smollm2": ["input->a0.h3<q>", "a5.h2->a11.h4<k>", "m3->a20.h7<v>", "a12.h0->m25", "m28->logits"],
    "gemma3": ["input->a0.h1<q>", "a4.h2->a6.h3<k>", "m3->a11.h0<v>", "a5.h0->m12", "a16.h1->logits"],
}


def folder_of(name: str) -> Path:
    cache = Path(os.environ.get("CIRCUITDISC_CACHE") or "~/.cache/circuitdisc/models").expanduser()
    if not (cache / FOLDERS[name] / "config.json").is_file():
        pytest.skip(f"{cache / FOLDERS[name]} is not there: scripts/real_models {name} makes it")
    return cache / FOLDERS[name]


def test_the_literal_forward_on_a_tiny_model() -> None:
    module = hugging_face("llama").double()
    model = cd.load_model(module)
    examples = [
        replace(example, positions=example.positions[-1:], answers=((1,),), wrong=((2,),))
        for example in random_examples(model, 4)
    ]
    edges = ["input->a0.h3<q>", "a0.h1->a1.h2<k>", "m0->a1.h0<v>", "a1.h1->m1", "m0->m1", "a0.h2->logits"]
    with in_float64(module):
        both = effects(model, module, examples, edges)
    torch.testing.assert_close(both.engine, both.literal, rtol=0, atol=1e-10)
    assert both.engine.std(0).min() > 1e-4  # each edge does something else


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_single_edges_of_a_real_model(name: str) -> None:
    from transformers import AutoModelForCausalLM

    folder = folder_of(name)
    module: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    module.config.use_cache = False
    with in_float64(module):
        model = cd.load_model(folder, dtype="float64")
        assert max(check_model(model).values()) < 1e-8
        task = cd.load_task("ioi", model, n=2, n_heldout=2)
        both = effects(model, module, task.train, EDGES[name])
    torch.testing.assert_close(both.engine, both.literal, rtol=0, atol=1e-7)
    assert both.engine.std(0).min() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(("name", "edges"), [("smollm2", 500), ("gemma3", 2500)])  # of 123,211 and of 10,342
def test_a_circuit_of_a_real_model_is_better_than_random_ones(name: str, edges: int) -> None:
    """The whole interval lies above the random circuits' median, and the value above each of them."""
    model = cd.load_model(folder_of(name))
    task = cd.load_task("ioi", model, n=20, n_heldout=20)
    discovery = cd.discover(model, task, "eap_ig", ablation="resample", edges=edges)
    faithfulness = cd.score(model, task, discovery.circuit, n_random=5).get("faithfulness")
    random = [value for value in faithfulness.controls if value is not None]
    assert discovery.circuit.n_edges < 0.25 * model.graph.n_edges
    assert len(random) == 5
    assert faithfulness.low is not None
    assert faithfulness.value is not None
    assert faithfulness.low > median(random)
    assert faithfulness.value > max(random)
