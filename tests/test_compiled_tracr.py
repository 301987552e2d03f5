"""The way true edges are found, on programs that another compiler made and whose true edges are written down beside them.

Runs where `CIRCUITDISC_TRACR` names a folder with one folder a program: `config.json` and `weights.npz` in TransformerLens
names, `samples.json` (a list with the token `ids` of prompts), `ground_truth.json` (`edges` with `src`, `dst`,
`on_path_to_output` and `constant_under_token_resampling`; `zero_detectable`, the names of those that zero ablation shows).
Else it is skipped.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from circuitdisc.known.compiled.truth import PlainRun, true_edges
from circuitdisc.models.load import cut_toy
from circuitdisc.models.toy import ToyConfig, ToyTransformer, check_weights
from circuitdisc.tasks.base import Example

FOLDER = os.environ.get("CIRCUITDISC_TRACR", "")
PROGRAMS = sorted(path for path in Path(FOLDER).iterdir() if path.is_dir()) if FOLDER else []

PUBLISHED = {  # Conmy et al. 2023: true edges under resample ablation
    "reverse": {"tok_embed->a3.h0<v>", "a3.h0->logits"},
    "frac_prevs": {"tok_embed->m0", "m0->a1.h0<v>", "a1.h0->logits"},
}

pytestmark = pytest.mark.skipif(not FOLDER, reason="CIRCUITDISC_TRACR names no folder")


def edge_name(src: str, dst: str) -> str:
    """`embed->a0.h0.q` and `a0.h0->m0.in` as this project writes them."""
    receiver = f"{dst[:-2]}<{dst[-1]}>" if dst[-2:] in (".q", ".k", ".v") else dst.removesuffix(".in")
    return f"{'tok_embed' if src == 'embed' else src}->{receiver}"


def load(folder: Path) -> ToyTransformer:
    config = ToyConfig.from_dict(json.loads((folder / "config.json").read_text()))
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in np.load(folder / "weights.npz").items()}
    toy = ToyTransformer(config).double()
    toy.load_state_dict(check_weights(tensors, config))
    return toy


def examples_by_length(folder: Path) -> dict[int, list[Example]]:
    """Each prompt with each of the next three of its length; all positions but the first are read."""
    prompts: dict[int, list[tuple[int, ...]]] = {}
    for sample in json.loads((folder / "samples.json").read_text()):
        prompts.setdefault(len(sample["ids"]), []).append(tuple(sample["ids"]))
    return {
        length: [
            Example(prompt, same[(index + shift) % len(same)], tuple(range(1, length)), (), ())
            for shift in (1, 2, 3)
            for index, prompt in enumerate(same)
        ]
        for length, same in prompts.items()
    }


@pytest.mark.parametrize("folder", PROGRAMS, ids=lambda path: path.name)
def test_true_edges_of_another_compiler(folder):
    toy = load(folder)
    graph = cut_toy(toy, split_embeddings=True).graph
    given = json.loads((folder / "ground_truth.json").read_text())
    on_path = [edge for edge in given["edges"] if edge["on_path_to_output"]]
    varying = {edge_name(edge["src"], edge["dst"]) for edge in on_path if not edge["constant_under_token_resampling"]}
    zero, resample = set(), set()
    for examples in examples_by_length(folder).values():
        truth = true_edges(toy, graph, examples)
        assert truth.structural == {edge_name(edge["src"], edge["dst"]) for edge in on_path}
        zero |= truth.edges("zero")
        resample |= truth.edges("resample")
    assert zero == {edge_name(*name.split("->")) for name in given["zero_detectable"]}
    assert (
        resample <= varying
    )  # what varies need not show: with prompts of one length, an edge that carries the length does not
    assert resample == PUBLISHED.get(folder.name, resample)


@pytest.mark.parametrize("folder", PROGRAMS, ids=lambda path: path.name)
def test_plain_run_is_the_model(folder):
    toy = load(folder)
    graph = cut_toy(toy, split_embeddings=True).graph
    for examples in examples_by_length(folder).values():
        tokens = torch.tensor([example.clean for example in examples])
        assert (PlainRun(toy, graph).run(tokens)[1] - toy(tokens)).abs().max() < 1e-9
