"""Train the shipped multi-task model: one small GPT-2 that does ioi, induction, colored_objects and entity_tracking.

1. Make a word-level tokenizer of the words of the four tasks.
2. Draw a pool of prompts for each task with its default settings, disjoint from its held-out prompts. Beside them: shorter
   induction, two to five boxes, and two ways to put more questions to one list of colored objects or boxes: `asked_on`
   repeats the task's question about other entries, `looked_up` only names an entry and is continued with its answer.
3. Train in phases: copying (induction), then looking up, then the questions, each on top of the ones before. The loss is on
   the answers (for induction on the whole second half), and lightly on the other words of a prompt. The corrupted prompts
   of ioi, which have no answer, are read with the light loss alone, so that they are not strange to the model; those of
   induction are trained on with their own answer.
4. Save float16 weights, load them again, and measure every task on held-out prompts and on their corrupted partners.

Training computes the activation with torch's own tanh GELU, which takes half the time; the folder names it gelu_new, which is
the same function.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from training import Document, accuracy, build_model, light_loss, save_shipped, train, versions, word_tokenizer, words
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitdisc.tasks import Example, load_task
from circuitdisc.tasks.library import colored_objects, entity_tracking, ioi

NAME = "base"
TASKS = ("ioi", "induction", "colored_objects", "entity_tracking")
CHANGES_ANSWER = (  # corruptions under which the first of the wrong answers is right
    ("ioi", "flip"),
    ("induction", ""),
    ("colored_objects", "query"),
    ("colored_objects", "colors"),
    ("entity_tracking", "query"),
    ("entity_tracking", "value"),
)
KEEPS_ANSWER = (("entity_tracking", "position"), ("entity_tracking", "label"))
PHASES = (0, 400, 1100, 3000)  # first step of each phase
# documents of each pool in a batch, in each phase: copying first, then looking up, then questions, since each builds on the
# one before; with all at once from the start, the last two stay at chance for thousands of steps
MIXTURE = {
    "ioi": (0, 6, 5, 6),
    "ioi_abc": (0, 1, 1, 1),
    "induction": (16, 4, 3, 4),
    "induction_short": (14, 0, 0, 1),
    "induction_corrupted": (2, 1, 1, 2),
    "colored_objects looked_up": (4, 14, 3, 1),
    "colored_objects asked_on": (0, 0, 12, 11),
    "entity_tracking looked_up": (4, 14, 3, 1),
    "entity_tracking asked_on": (0, 0, 12, 11),
    "entity_boxes": (0, 0, 0, 2),
}
LISTS = {  # in the tasks with a list: the roles of what is asked by, of what is answered, and of the word in the question
    "colored_objects": ("object", "color", "query"),
    "entity_tracking": ("label", "object", "query_label"),
}


@dataclass(frozen=True)
class Reader:
    """What the tasks ask of a model: a tokenizer and sizes, without weights."""

    tokenizer: PreTrainedTokenizerFast
    name: str = f"multitask/{NAME}"
    n_ctx: int = 64

    @property
    def d_vocab(self) -> int:
        return len(self.tokenizer)

    @property
    def d_vocab_out(self) -> int:
        return len(self.tokenizer)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the words of the frames, and of the names, places, objects, colors and labels."""
    colored, entity = colored_objects, entity_tracking
    boxes = (f"The {entity.SEGMENT.format(place=1)}. {entity.QUESTION}", entity.BOX)
    frames = [re.sub(r"\{\w+\}", " ", frame) for frame in (*ioi.FRAMES.values(), *colored.FRAMES.values(), *boxes)]
    lists = (ioi.NAMES, ioi.PLACES, ioi.OBJECTS, colored.COLORS, colored.OBJECTS, entity.OBJECTS, entity.LABELS)
    functional = sorted({word for frame in frames for word in words(frame)})
    return word_tokenizer(dict.fromkeys((*functional, *(word for each in lists for word in each))))


def document(example: Example, *, corrupted: bool = False) -> Document:
    """A prompt and its answer, which is scored: the clean one and the answer, or the corrupted one and the first wrong."""
    prompt, answer = (example.corrupted, example.wrong[0][0]) if corrupted else (example.clean, example.answers[0][0])
    assert prompt is not None
    return Document([*prompt, answer], [len(prompt)], list(range(1, len(prompt))))


def repeated(example: Example) -> Document:
    """An induction prompt, scored from the second token of its second half on."""
    ids = [*example.clean, example.answers[0][0]]
    return Document(ids, list(range(len(example.clean) // 2 + 1, len(ids))))


def unanswered(example: Example) -> Document:
    """A corrupted prompt that nothing follows."""
    assert example.corrupted is not None
    return Document(list(example.corrupted), [], list(range(1, len(example))))


def asked_on(example: Example, stop: int, roles: tuple[str, str, str], places: Sequence[int]) -> Document:
    """A prompt with its answer, and the same question about the entries at `places` of its list; all answers are scored."""
    key, value, asked = roles
    question = list(example.clean[example.clean.index(stop) + 1 :])
    slot = example.roles[asked] - (len(example) - len(question))
    first = document(example)
    ids, scored = list(first.ids), list(first.scored)
    for place in places:
        ids += [stop, *question[:slot], example.clean[example.roles[f"{key}{place}"]], *question[slot + 1 :]]
        scored.append(len(ids))
        ids.append(example.clean[example.roles[f"{value}{place}"]])
    return Document(ids, scored, first.light)


def looked_up(example: Example, stop: int, roles: tuple[str, str, str], places: Sequence[int]) -> Document:
    """A list, and the entries at `places` said the other way round or in short: the word asked by, then its answer, scored."""
    key, value, _ = roles
    ids, scored = list(example.clean[: example.clean.index(stop) + 1]), []
    for place in places:
        ids.append(example.clean[example.roles[f"{key}{place}"]])
        scored.append(len(ids))
        ids += [example.clean[example.roles[f"{value}{place}"]], stop]
    return Document(ids[:-1], scored)


def draw_pools(
    reader: Reader, n: int, n_heldout: int, seed: int
) -> tuple[dict[str, list[Document]], dict[str, list[Document]]]:
    """The documents to train on, by pool, and the held-out ones of each task with its default settings."""
    tasks = {name: load_task(name, reader, n=n, n_heldout=n_heldout, seed=seed) for name in TASKS}
    short = [load_task("induction", reader, n=n // 8, n_heldout=1, seed=seed, length=length) for length in range(5, 13)]
    boxes = [load_task("entity_tracking", reader, n=n // 3, n_heldout=1, seed=seed, boxes=boxes) for boxes in (2, 4, 5)]
    pools = {name: [document(one) for one in task.train] for name, task in tasks.items()}
    pools["ioi_abc"] = [unanswered(one) for one in tasks["ioi"].train]
    pools["induction"] = [repeated(one) for one in tasks["induction"].train]
    corrupted = (document(one, corrupted=True) for one in tasks["induction"].train)
    pools["induction_corrupted"] = [Document(one.ids, one.scored) for one in corrupted]
    pools["induction_short"] = [repeated(one) for task in short for one in task.train]
    stop, rng = reader.tokenizer.get_vocab()["."], np.random.default_rng(seed)
    for name, roles in LISTS.items():
        for kind, make, more in (("asked_on", asked_on, 3), ("looked_up", looked_up, 6)):
            places = rng.integers(1, 4, size=(n, more))
            examples = zip(tasks[name].train, places, strict=True)
            pools[f"{name} {kind}"] = [make(one, stop, roles, chosen.tolist()) for one, chosen in examples]
    pools["entity_boxes"] = [document(one) for task in boxes for one in task.train]
    return pools, {name: [document(one) for one in task.heldout] for name, task in tasks.items()}


def batches(pools: dict[str, list[Document]], steps: int, seed: int) -> Iterator[list[Document]]:
    """One batch for each step, drawn from the pools as `MIXTURE` says."""
    rng = np.random.default_rng(seed)
    for step in range(steps):
        phase = sum(step >= first for first in PHASES) - 1
        drawn = {name: rng.integers(len(pools[name]), size=share[phase]) for name, share in MIXTURE.items()}
        yield [pools[name][i] for name, chosen in drawn.items() for i in chosen]


def accuracies(model: GPT2LMHeadModel, heldout: dict[str, list[Document]]) -> dict[str, float]:
    """Share of answers that are the most likely word of the whole vocabulary, for each task."""
    return {name: round(accuracy(model, documents), 4) for name, documents in heldout.items()}


def shortcut_checks(model: GPT2LMHeadModel, reader: Reader, n: int, seed: int) -> dict[str, float]:
    """Share of corrupted prompts to which the model gives their own answer, for each corruption that leaves one."""
    checks: dict[str, float] = {}
    for name, corruption in (*CHANGES_ANSWER, *KEEPS_ANSWER):
        settings: dict[str, Any] = {"corruption": corruption} if corruption else {}
        heldout = load_task(name, reader, n=1, n_heldout=n, seed=seed, **settings).heldout
        documents = [document(one, corrupted=True) for one in heldout]
        if (name, corruption) in KEEPS_ANSWER:
            kept = [one.answers[0][0] for one in heldout]
            documents = [Document([*one.ids[:-1], answer], one.scored) for one, answer in zip(documents, kept, strict=True)]
        checks[f"{name} {corruption or 'corrupted'}"] = round(accuracy(model, documents), 4)
    return checks


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("circuitdisc/shipped/multitask"), help="folder of the checkpoint")
    parser.add_argument("--work-dir", type=Path, default=Path("build/train_multitask"), help="folder of the latest weights")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and prompts")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps, of 40 documents each")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--light", type=float, default=0.02, help="weight of a word that is no answer")
    parser.add_argument("--pool", type=int, default=12_000, help="prompts of each task to train on")
    parser.add_argument("--held-out", type=int, default=2000, help="prompts of each task to measure on")
    return parser.parse_args()


def main() -> None:
    """Train, save and measure."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = build_tokenizer()
    reader = Reader(tokenizer)
    pools, heldout = draw_pools(reader, args.pool, args.held_out, args.seed)
    model = build_model(tokenizer, args.seed, activation="gelu_pytorch_tanh", d_mlp=256)
    latest = args.work_dir / "latest.safetensors"
    watched = {name: documents[:300] for name, documents in heldout.items()}
    watched |= {name: documents[:50] for name, documents in pools.items() if " " in name}
    args.work_dir.mkdir(parents=True, exist_ok=True)

    def watch() -> str:
        save_file({name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}, latest)
        return str(accuracies(model, watched))

    seconds = train(
        model,
        batches(pools, args.steps, args.seed + 1),
        args.steps,
        lr=args.lr,
        warmup=200,
        label=NAME,
        every=250,
        watch=watch,
        loss_of=partial(light_loss, light=args.light),
    )
    model.config.activation_function = "gelu_new"
    shipped = save_shipped(model, tokenizer, args.out / NAME)
    figures = {
        "tasks": accuracies(shipped, heldout),
        "n": args.held_out,
        "own_answer_of_corrupted": shortcut_checks(shipped, reader, args.held_out, args.seed + 2),
        "parameters": sum(weights.numel() for weights in shipped.parameters()),
        "tokens": len(tokenizer),
        "steps": args.steps,
        "train_seconds": round(seconds, 1),
    }
    settings = {name: getattr(args, name) for name in ("seed", "threads", "steps", "lr", "light", "pool")}
    results = {"command": " ".join(["python", *sys.argv]), "settings": settings, "versions": versions()}
    results |= {"train_minutes": round(seconds / 60, 1), "checkpoints": {NAME: figures}}
    print(json.dumps(figures, indent=2))
    (args.out / "RESULTS.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
