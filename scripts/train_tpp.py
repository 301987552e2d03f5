"""Train the shipped TPP ladder: a base model that recalls neighbours, and three fine-tuned models that take the chain.

1. Make a word-level tokenizer of the template words and the nouns.
2. Train the base on repeated nouns and on restated facts; no text of its shows a transitive step.
3. Fine-tune the base on 10, 30 and 50 % of one pool of TPP examples, with the loss on the answer only. In a third of
   the pool the chain is broken and the answer is b: without them a model answers from the template alone, saying the
   second premise's object whether or not the chain holds.
4. Save float16 weights, load them again, and measure every checkpoint on held-out examples.

A finished stage is kept in the work folder; the same command goes on after the last one.

Shapes: B examples, T positions, N scored positions.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from training import Document, accuracy, build_model, save_shipped, scored_logits, train, versions, word_tokenizer, words
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitdisc.tasks.base import TextExample
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.library.tpp import TEMPLATES, tpp_examples

STATEMENTS = (
    "{x} implies {y}",
    "{x} also implies {y}",
    "if {x} then {y}",
    "all {x} are {y}",
    "{x} are {y}",
    "{x} is a type of {y}",
    "all {x} are a type of {y}",
    "{x} is also a type of {y}",
)
BASE_SETTINGS = ("seed", "threads", "batch_size", "base_steps", "base_lr")
TUNE_SETTINGS = ("pool", "broken", "lr")


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder.

    Args:
        name: folder of the checkpoint.
        share: share of the fine-tuning pool that is used.
        epochs: passes over that share.
    """

    name: str
    share: float
    epochs: int


LADDER = (Rung("featherweight", 0.1, 3), Rung("lightweight", 0.3, 3), Rung("welterweight", 0.5, 20))


@dataclass(frozen=True)
class Cost:
    """What a stage took.

    Args:
        steps: optimiser steps.
        examples: distinct examples (fine-tuning) or documents (base) used.
        train_seconds: wall time of the training loop.
    """

    steps: int
    examples: int
    train_seconds: float


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the template words, the statement words and the nouns."""
    surfaces = [t.fill("", "", "", "") for t in TEMPLATES] + [s.format(x="", y="") for s in STATEMENTS]
    functional = sorted({word for surface in surfaces for word in words(surface)})
    assert not set(functional) & set(NOUNS), "a noun is also a template word"
    return word_tokenizer((*functional, *NOUNS))


class BaseText:
    """Draws the base's training text: repeated nouns, restated facts, and templates whose premises do not chain."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocabulary = tokenizer.get_vocab()

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in words(text)]

    def nouns(self, n: int) -> list[str]:
        return [NOUNS[i] for i in self.rng.choice(len(NOUNS), size=n, replace=False)]

    def statement(self, kind: int, x: str, y: str) -> list[int]:
        return self.encode(STATEMENTS[kind].format(x=x, y=y))

    def repeated(self) -> Document:
        """Random nouns said twice; the second time is scored from its second noun on."""
        half = [self.vocabulary[noun] for noun in self.nouns(int(self.rng.integers(4, 17)))]
        return Document(half + half, list(range(len(half) + 1, 2 * len(half))))

    def restated(self, n_facts: int) -> Document:
        """Unrelated facts, then the same facts in another order and often another wording; those objects are scored."""
        drawn = self.nouns(2 * n_facts)
        facts = list(zip(drawn[::2], drawn[1::2], self.rng.integers(len(STATEMENTS), size=n_facts), strict=True))
        stop = self.vocabulary["."]
        ids: list[int] = []
        scored: list[int] = []
        for x, y, kind in facts:
            ids += [*self.statement(kind, x, y), stop]
        for i in self.rng.permutation(n_facts):
            x, y, kind = facts[i]
            same = self.rng.random() < 0.5
            ids += self.statement(kind if same else int(self.rng.integers(len(STATEMENTS))), x, y)
            scored.append(len(ids) - 1)
            ids.append(stop)
        return Document(ids[:-1], scored)

    def unchained(self) -> Document:
        """A TPP surface over four distinct nouns; the conclusion restates one of its two premises."""
        template = TEMPLATES[int(self.rng.integers(len(TEMPLATES)))]
        a, b, d, c = self.nouns(4)
        subject, answer = ((a, b), (d, c))[int(self.rng.integers(2))]
        ids = self.encode(f"{template.fill(a, b, d, c, subject=subject)} {answer}")
        return Document(ids, [len(ids) - 1])

    def batch(self, size: int, n_repeated: int) -> list[Document]:
        """So many documents of repeated nouns; of the others a quarter are unchained templates, the rest facts."""
        n_unchained = (size - n_repeated) // 4
        repeated = [self.repeated() for _ in range(n_repeated)]
        unchained = [self.unchained() for _ in range(n_unchained)]
        n_restated = size - n_repeated - n_unchained
        return repeated + unchained + [self.restated(int(self.rng.integers(2, 4))) for _ in range(n_restated)]


def answer_document(example: TextExample, vocabulary: dict[str, int], *, broken: bool = False) -> Document:
    """A TPP prompt and its answer, which alone is scored: the clean one and c, or the broken one and b."""
    prompt, (answer,) = (example.corrupted, example.wrong) if broken else (example.clean, example.answers)
    ids = [vocabulary[word] for word in words(f"{prompt}{answer}")]
    return Document(ids, [len(ids) - 1])


def fine_tuning_pool(
    examples: Sequence[TextExample], vocabulary: dict[str, int], broken_share: float, seed: int
) -> list[Document]:
    """One document per example; a share of them, drawn at random, has the chain broken and b as its answer."""
    broken = np.random.default_rng(seed).random(len(examples)) < broken_share
    return [answer_document(e, vocabulary, broken=bool(flag)) for e, flag in zip(examples, broken, strict=True)]


def fine_tune(
    base: GPT2LMHeadModel, documents: Sequence[Document], rung: Rung, *, lr: float, batch_size: int, seed: int
) -> Cost:
    """Fine-tune in place on the first share of the pool, reshuffled every epoch."""
    used = documents[: round(rung.share * len(documents))]
    rng = np.random.default_rng(seed)

    def batches() -> Iterator[list[Document]]:
        for _ in range(rung.epochs):
            order = rng.permutation(len(used))
            for start in range(0, len(used), batch_size):
                yield [used[i] for i in order[start : start + batch_size]]

    steps = rung.epochs * -(-len(used) // batch_size)
    seconds = train(base, batches(), steps, lr=lr, warmup=min(50, steps // 5), label=rung.name)
    return Cost(steps, len(used), round(seconds, 1))


def pair_figures(logits_NV: Tensor, b_N: Tensor, c_N: Tensor) -> Tensor:
    """Per example, stacked [4 N]: says c, says b, log-loss of c, logit(c) - logit(b)."""
    said_N = logits_NV.argmax(-1)
    loss_N = torch.nn.functional.cross_entropy(logits_NV, c_N, reduction="none")
    rows = torch.arange(len(c_N))
    gap_N = logits_NV[rows, c_N] - logits_NV[rows, b_N]
    return torch.stack([(said_N == c_N).float(), (said_N == b_N).float(), loss_N, gap_N])


@torch.no_grad()
def tpp_figures(model: GPT2LMHeadModel, vocabulary: dict[str, int], examples: Sequence[TextExample]) -> dict[str, float]:
    """The study's three figures on clean prompts, and what is said when the chain is broken."""
    clean: list[Tensor] = []
    broken: list[Tensor] = []
    for start in range(0, len(examples), 500):
        chunk = examples[start : start + 500]
        clean_NV, c_N = scored_logits(model, [answer_document(e, vocabulary) for e in chunk])
        broken_NV, b_N = scored_logits(model, [answer_document(e, vocabulary, broken=True) for e in chunk])
        clean.append(pair_figures(clean_NV, b_N, c_N))
        broken.append(pair_figures(broken_NV, b_N, c_N))
    says_c, says_b, log_loss, gap = torch.cat(clean, dim=1).double().mean(dim=1).tolist()
    broken_c, broken_b, _, broken_gap = torch.cat(broken, dim=1).double().mean(dim=1).tolist()
    figures = {"accuracy": says_c, "log_loss": log_loss, "logit_diff": gap, "says_b": says_b}
    figures |= {"broken_says_c": broken_c, "broken_says_b": broken_b, "broken_logit_diff": broken_gap}
    return {name: round(value, 5) for name, value in figures.items()}


def recall_documents(tokenizer: PreTrainedTokenizerFast, n: int, seed: int) -> list[Document]:
    """Three unrelated facts, then one of them again up to its object, which is scored."""
    text = BaseText(tokenizer, seed)
    drawn = [text.restated(3) for _ in range(n)]
    return [Document(d.ids[: d.scored[0] + 1], d.scored[:1]) for d in drawn]


class Stages:
    """Finished stages in the work folder, each reused only under the settings it was made with."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.folder: Path = args.work_dir
        self.base_settings = {name: getattr(args, name) for name in BASE_SETTINGS}
        self.settings = self.base_settings | {name: getattr(args, name) for name in TUNE_SETTINGS}
        self.folder.mkdir(parents=True, exist_ok=True)

    def expected(self, name: str) -> dict[str, object]:
        """The settings that a stage depends on."""
        return self.base_settings if name == "base" else self.settings

    def load(self, name: str, model: GPT2LMHeadModel) -> Cost | None:
        """Load a finished stage into the model; None when there is none under these settings."""
        note = self.folder / f"{name}.json"
        if not note.exists():
            return None
        kept = json.loads(note.read_text())
        if kept["settings"] != self.expected(name):
            return None
        model.load_state_dict(load_file(self.folder / f"{name}.safetensors"), strict=False)
        model.tie_weights()
        model.eval()
        return Cost(**kept["cost"])

    def keep(self, name: str, model: GPT2LMHeadModel, cost: Cost) -> None:
        """Keep a finished stage; the note is written last, so that a half-written stage is not taken for one."""
        weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
        save_file(weights, self.folder / f"{name}.safetensors")
        note = {"settings": self.expected(name), "cost": asdict(cost)}
        (self.folder / f"{name}.json").write_text(json.dumps(note))


def make_base(tokenizer: PreTrainedTokenizerFast, stages: Stages, args: argparse.Namespace) -> Cost:
    """Train the base, unless the work folder has it."""
    model = build_model(tokenizer, args.seed)
    cost = stages.load("base", model)
    if cost is not None:
        return cost
    text = BaseText(tokenizer, args.seed + 1)

    def batches() -> Iterator[list[Document]]:
        for step in range(args.base_steps):
            early = step < args.base_steps // 3
            yield text.batch(args.batch_size, args.batch_size // 2 if early else args.batch_size // 8)

    watch = recall_documents(tokenizer, 500, args.seed + 2)

    def watched() -> str:
        return f"watched accuracy {accuracy(model, watch):.3f}"

    seconds = train(model, batches(), args.base_steps, lr=args.base_lr, warmup=200, label="base", every=500, watch=watched)
    cost = Cost(args.base_steps, args.base_steps * args.batch_size, round(seconds, 1))
    stages.keep("base", model, cost)
    return cost


def make_rung(
    rung: Rung, pool: Sequence[Document], tokenizer: PreTrainedTokenizerFast, stages: Stages, args: argparse.Namespace
) -> Cost:
    """Fine-tune one rung from the base, unless the work folder has it."""
    model = build_model(tokenizer, args.seed)
    cost = stages.load(rung.name, model)
    if cost is not None:
        return cost
    stages.load("base", model)
    cost = fine_tune(model, pool, rung, lr=args.lr, batch_size=args.batch_size, seed=args.seed + 3)
    stages.keep(rung.name, model, cost)
    return cost


def ship(name: str, tokenizer: PreTrainedTokenizerFast, stages: Stages, out: Path, seed: int) -> GPT2LMHeadModel:
    """Write a stage as a Hugging Face folder with float16 weights, and load that folder in float32."""
    model = build_model(tokenizer, seed)
    stages.load(name, model)
    return save_shipped(model, tokenizer, out / name)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("circuitdisc/shipped/tpp"), help="folder of the checkpoints")
    parser.add_argument("--work-dir", type=Path, default=Path("build/train_tpp"), help="folder of finished stages")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, text, pool and held-out examples")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--batch-size", type=int, default=64, help="documents or examples per step")
    parser.add_argument("--base-steps", type=int, default=5000, help="optimiser steps of the base")
    parser.add_argument("--base-lr", type=float, default=1e-3, help="highest learning rate of the base")
    parser.add_argument("--pool", type=int, default=32_000, help="TPP examples in the fine-tuning pool")
    parser.add_argument("--broken", type=float, default=0.33, help="share of the pool with a broken chain, answered by b")
    parser.add_argument("--lr", type=float, default=1e-3, help="highest learning rate of fine-tuning")
    parser.add_argument("--held-out", type=int, default=3000, help="TPP examples to measure on")
    parser.add_argument("--recall", type=int, default=1500, help="direct-recall prompts to measure on")
    return parser.parse_args()


def main() -> None:
    """Train, fine-tune, save and measure."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    stages = Stages(args)
    tokenizer = build_tokenizer()
    examples = tpp_examples(args.pool + args.held_out, args.seed + 4)
    vocabulary = tokenizer.get_vocab()
    pool = fine_tuning_pool(examples[: args.pool], vocabulary, args.broken, args.seed + 6)
    held_out = examples[args.pool :]
    recall = recall_documents(tokenizer, args.recall, args.seed + 5)
    costs = {"base": make_base(tokenizer, stages, args)}
    costs |= {rung.name: make_rung(rung, pool, tokenizer, stages, args) for rung in LADDER}
    figures: dict[str, dict[str, float]] = {}
    for name, cost in costs.items():
        model = ship(name, tokenizer, stages, args.out, args.seed)
        recalled = round(accuracy(model, recall), 5)
        figures[name] = {**tpp_figures(model, vocabulary, held_out), "n": len(held_out)}
        figures[name] |= {"recall_accuracy": recalled, "recall_n": len(recall), **asdict(cost)}
        print(name, figures[name])
    results = {
        "command": " ".join(["python", *sys.argv]),
        "settings": stages.settings,
        "versions": versions(),
        "train_minutes": round(sum(cost.train_seconds for cost in costs.values()) / 60, 1),
        "checkpoints": figures,
    }
    (args.out / "RESULTS.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
