"""The shipped multi-task model does what its RESULTS.json says, and goes by the prompt, the corrupted one too."""

import json
from typing import Any

import pytest
import torch

import circuitdisc as cd
from circuitdisc.models import Model
from circuitdisc.shipped import FOLDER, described_models
from circuitdisc.tasks import Example, collate

NAME = "multitask/base"
RESULTS: dict[str, Any] = json.loads((FOLDER / "multitask" / "RESULTS.json").read_text())["checkpoints"]["base"]
N = 300
SEED = 1000  # of prompts that training did not draw


@pytest.fixture(scope="module")
def model() -> Model:
    return cd.load_model(NAME)


@torch.no_grad()
def share_of(model: Model, examples: tuple[Example, ...], wanted: list[int], *, corrupted: bool = False) -> float:
    """Share of prompts after which the wanted token is the most likely one of the whole vocabulary."""
    hits = 0
    for length in {len(one) for one in examples}:  # prompts of one length, so that nothing is padded
        chosen = [i for i, one in enumerate(examples) if len(one) == length]
        batch = collate([examples[i] for i in chosen])
        ids_BT = batch.corrupted if corrupted else batch.clean
        assert ids_BT is not None
        said_B = model.own_logits(ids_BT, batch.is_token.long(), batch.position_ids)[:, -1].argmax(-1)
        hits += int((said_B == torch.tensor([wanted[i] for i in chosen])).sum())
    return hits / len(examples)


def wilson(share: float, n: int, z: float = 3.3) -> tuple[float, float]:
    """The interval around a share of `n` draws; z = 3.3 leaves out one draw in a thousand."""
    middle, spread = share + z * z / (2 * n), z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def check(share: float, stated: float) -> None:
    low, high = wilson(share, N)
    assert low - 1e-9 <= stated <= high + 1e-9, f"measured {share}, stated {stated}"


@pytest.mark.parametrize("name", RESULTS["tasks"])
def test_each_task_is_done_as_stated(model: Model, name: str) -> None:
    examples = cd.load_task(name, model, n=1, n_heldout=N, seed=SEED).heldout
    share = share_of(model, examples, [one.answers[0][0] for one in examples])
    assert share > 0.7
    check(share, RESULTS["tasks"][name])


@pytest.mark.parametrize("case", RESULTS["own_answer_of_corrupted"])
def test_corrupted_prompts_are_answered_as_stated(model: Model, case: str) -> None:
    name, corruption = case.split()
    settings: dict[str, Any] = {} if corruption == "corrupted" else {"corruption": corruption}
    examples = cd.load_task(name, model, n=1, n_heldout=N, seed=SEED, **settings).heldout
    keeps = corruption in ("position", "label")
    wanted = [(one.answers if keeps else one.wrong)[0][0] for one in examples]
    check(share_of(model, examples, wanted, corrupted=True), RESULTS["own_answer_of_corrupted"][case])


def test_the_list_of_models_tells_each_task() -> None:
    line = dict(described_models())[NAME]
    for name, share in RESULTS["tasks"].items():
        assert f"{name} {share:.1%}" in line
