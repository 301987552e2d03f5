"""Models, task files and runs that change behind the back of a run: for the tests of what is bound to what."""

import copy
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from circuitdisc.models import Model
from circuitdisc.shipped import shipped_models

LENGTH, VOCABULARY = 7, 20


def changed(model: Model) -> Model:
    """The same model with one other number, in the middle of its largest tensor."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        largest = max(module.parameters(), key=lambda one: one.numel())
        largest.view(-1)[largest.numel() // 2] += 1e-3
    return replace(model, module=module)


def copied_model(folder: Path, name: str = "toys/induction") -> str:
    """A shipped model in a folder of its own."""
    shutil.copytree(shipped_models()[name], folder)
    return str(folder)


def change_weights(folder: Path | str) -> None:
    """Another number in the last place of the largest tensor of a saved model."""
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    largest = max(tensors.values(), key=lambda one: one.numel())
    largest.view(-1)[-1] += 0.25
    save_file(tensors, path, {"format": "pt"})


def task_file(path: Path, seed: int = 0, heldout_seed: int = 1) -> str:
    """Prompts that say a half twice, as the shipped induction toy reads them, in both splits."""
    rows = [row("train", seed, index) for index in range(10)] + [row("heldout", heldout_seed, index) for index in range(6)]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def row(split: str, seed: int, index: int) -> dict:
    generator = np.random.default_rng([seed, index])
    half = generator.permutation(VOCABULARY)[:LENGTH].tolist()
    swapped = [*half[:3], half[5], half[4], half[3], *half[6:]]
    answer, wrong = half[3], half[5]
    return {"clean": half + half[:3], "corrupted": swapped + half[:3], "answers": answer, "wrong": wrong, "split": split}


def cut_back(run: Path, share: float = 0.5) -> None:
    """A finished run as a kill in the middle of its search leaves it."""
    for name in ("circuit.json", "scores.json", "cost.json", "report.html", "edge_scores.npz", "explorer.json"):
        (run / name).unlink(missing_ok=True)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    marks = [index for index, line in enumerate(lines) if '"mark"' in line]
    (run / "journal.jsonl").write_text("".join(lines[: marks[max(1, int(share * (len(marks) - 1)))] + 1]) + '{"half a li')


def edit_json(path: Path, keys: Iterable[str], value: object) -> None:
    """Set one value deep in a JSON file."""
    *outer, last = keys
    data = json.loads(path.read_text())
    place = data
    for key in outer:
        place = place[key]
    place[last] = value
    path.write_text(json.dumps(data))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
