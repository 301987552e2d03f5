"""A program that tracr compiled: its folder read as a model, a task and its true edges.

A folder has `config.json` and `weights.npz` in TransformerLens names and `samples.json`, a list with the token `ids` of
prompts. The task: of the prompts of the most frequent length, each with another one as its corrupted partner; at the
positions after the first where the two answers differ, the model's own answer is right and its answer to the partner wrong.
The truth is found as for our own compiled models (`circuitdisc.known.compiled.truth`, which agrees with what tracr says:
tests/test_compiled_tracr.py).
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from circuitdisc.errors import BadFile, BadTask
from circuitdisc.files import read_arrays, read_json
from circuitdisc.known.compiled.truth import CompiledTruth, true_edges
from circuitdisc.models.load import cut_toy
from circuitdisc.models.model import Model
from circuitdisc.models.toy import ToyConfig, ToyTransformer, check_weights
from circuitdisc.tasks.base import Example, Task


def load_tracr(folder: Path, n: int, n_heldout: int, seed: int) -> tuple[Model, Task, CompiledTruth]:
    """The model, a task and the true edges.

    Raises:
        BadFile: a file is missing or malformed.
        BadTask: the model writes a number instead of an answer, or there are too few prompts.
    """
    config = ToyConfig.from_dict(read_json(folder / "config.json"))
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in read_arrays(folder / "weights.npz").items()}
    toy = ToyTransformer(config).double()
    toy.load_state_dict(check_weights(tensors, config))
    model = cut_toy(toy, name=f"tracr/{folder.name}", split_embeddings=True)
    if model.d_vocab_out < 2:
        raise BadTask(f"{folder.name} writes a number, not one of several answers: no metric compares its answers")
    examples = _examples(toy, _prompts(folder), n + n_heldout, np.random.default_rng(seed))
    train = examples[: max(1, len(examples) * n // (n + n_heldout))]
    task = Task(model.name, tuple(train), tuple(examples[len(train) :]), settings={"n": len(train), "seed": seed})
    return model, task, true_edges(toy, model.graph, train)


def _prompts(folder: Path) -> np.ndarray:
    try:
        prompts = {tuple(sample["ids"]) for sample in json.loads((folder / "samples.json").read_text(encoding="utf-8"))}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{folder / 'samples.json'} is not a list of samples with `ids` ({error})") from error
    length = Counter(map(len, prompts)).most_common(1)[0][0]
    return np.array(sorted(prompt for prompt in prompts if len(prompt) == length))


@torch.no_grad()
def _examples(toy: ToyTransformer, prompts: np.ndarray, n: int, generator: np.random.Generator) -> list[Example]:
    answers = toy(torch.tensor(prompts)).argmax(-1).numpy()
    pairs = [(i, j) for i in range(len(prompts)) for j in range(len(prompts)) if (answers[i] != answers[j])[1:].any()]
    if len(pairs) < 2:
        raise BadTask("its prompts of one length have no different answers")
    found = []
    for at in generator.permutation(len(pairs))[:n]:
        i, j = pairs[at]
        differ = [position for position in range(1, prompts.shape[1]) if answers[i, position] != answers[j, position]]
        right, wrong = (tuple((int(answers[k, position]),) for position in differ) for k in (i, j))
        found.append(Example(tuple(prompts[i].tolist()), tuple(prompts[j].tolist()), tuple(differ), right, wrong))
    return found
