"""Train the shipped TPP ladder: a base model that recalls neighbours, and three fine-tuned models that take the chain.

1. Make a word-level tokenizer of the template words and the nouns.
2. Train the base on repeated nouns and on restated facts; no text of its shows a transitive step.
3. Fine-tune the base on 10, 30 and 50 % of one pool of TPP examples, with the loss on the answer only.
4. Save float16 weights, load them again, and measure every checkpoint on held-out examples.

A finished stage is kept in the work folder; the same command goes on after the last one.

Shapes: B examples, T positions, N scored positions.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitdisc.tasks.nouns import NOUNS
from circuitdisc.tasks.tpp_text import TEMPLATES, TPPExample, tpp_examples

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
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
EVAL_SEED_OFFSET = 1_000


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


@dataclass(frozen=True)
class Document:
    """Token ids, and the positions whose token is to be predicted."""

    ids: list[int]
    scored: list[int]


def words(text: str) -> list[str]:
    """Split a text into its words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the template words, the statement words and the nouns."""
    surfaces = [t.fill("", "", "", "") for t in TEMPLATES] + [s.format(x="", y="") for s in STATEMENTS]
    functional = sorted({word for surface in surfaces for word in words(surface)})
    assert not set(functional) & set(NOUNS), "a noun is also a template word"
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *functional, *NOUNS))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        model_max_length=64,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 of 4 layers, 8 heads and width 128, without dropout, freshly drawn."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


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

    def batch(self, size: int) -> list[Document]:
        """Half repeated nouns, three eighths restated facts, one eighth unchained templates."""
        repeated = [self.repeated() for _ in range(size // 2)]
        restated = [self.restated(int(self.rng.integers(2, 4))) for _ in range(3 * size // 8)]
        return repeated + restated + [self.unchained() for _ in range(size - len(repeated) - len(restated))]


def answer_document(example: TPPExample, tokenizer: PreTrainedTokenizerFast) -> Document:
    """A TPP prompt followed by its answer, which alone is scored."""
    vocabulary = tokenizer.get_vocab()
    ids = [vocabulary[word] for word in [*words(example.clean), example.answer]]
    return Document(ids, [len(ids) - 1])


def scored_logits(model: GPT2LMHeadModel, documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Logits [N V] before each scored token, and those tokens [N]; right padding needs no mask under causal attention."""
    width = max(len(d.ids) for d in documents)
    ids_BT = torch.tensor([d.ids + [0] * (width - len(d.ids)) for d in documents])
    rows = torch.tensor([row for row, d in enumerate(documents) for _ in d.scored])
    columns = torch.tensor([column for d in documents for column in d.scored])
    hidden_BTD = model.transformer(input_ids=ids_BT, use_cache=False).last_hidden_state
    return model.lm_head(hidden_BTD[rows, columns - 1]), ids_BT[rows, columns]


def train(
    model: GPT2LMHeadModel,
    batches: Iterator[list[Document]],
    steps: int,
    *,
    lr: float,
    warmup: int,
    label: str,
    every: int = 0,
    watch: Sequence[Document] = (),
) -> float:
    """Train in place with AdamW, linear warm-up and a cosine down to a tenth of the rate.

    Args:
        model: model to train.
        batches: one list of documents per step.
        steps: optimiser steps.
        lr: highest learning rate.
        warmup: steps of linear warm-up.
        label: name on the progress bar.
        every: steps between two measurements on `watch`; 0 for none.
        watch: documents whose accuracy is written beside the bar.

    Returns:
        Seconds taken.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.1 + 0.45 * (1 + np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    start = time.perf_counter()
    bar = tqdm(range(1, steps + 1), desc=label, mininterval=10)
    for step in bar:
        logits_NV, tokens_N = scored_logits(model, next(batches))
        loss = torch.nn.functional.cross_entropy(logits_NV, tokens_N)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if every and step % every == 0:
            bar.write(f"{label} step {step}: loss {loss.item():.3f}, watched accuracy {accuracy(model, watch):.3f}")
    model.eval()
    return time.perf_counter() - start


@torch.no_grad()
def accuracy(model: GPT2LMHeadModel, documents: Sequence[Document]) -> float:
    """Share of scored tokens that are the most likely word of the whole vocabulary."""
    hits: list[Tensor] = []
    for start in range(0, len(documents), 500):
        logits_NV, tokens_N = scored_logits(model, documents[start : start + 500])
        hits.append((logits_NV.argmax(-1) == tokens_N).float())
    return torch.cat(hits).mean().item()


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


@torch.no_grad()
def tpp_figures(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, examples: Sequence[TPPExample]
) -> dict[str, float]:
    """The study's three figures on clean prompts, and the same logit difference with the chain broken."""
    vocabulary = tokenizer.get_vocab()
    rows: list[Tensor] = []
    for start in range(0, len(examples), 500):
        chunk = examples[start : start + 500]
        logits_NV, c_N = scored_logits(model, [answer_document(e, tokenizer) for e in chunk])
        broken = [Document([vocabulary[w] for w in [*words(e.corrupted), e.answer]], []) for e in chunk]
        broken_NV, _ = scored_logits(model, [Document(d.ids, [len(d.ids) - 1]) for d in broken])
        b_N = torch.tensor([vocabulary[e.wrong] for e in chunk])
        c_N1, b_N1 = c_N[:, None], b_N[:, None]
        rows.append(
            torch.stack(
                [
                    (logits_NV.argmax(-1) == c_N).float(),
                    torch.nn.functional.cross_entropy(logits_NV, c_N, reduction="none"),
                    (logits_NV.gather(1, c_N1) - logits_NV.gather(1, b_N1))[:, 0],
                    (broken_NV.argmax(-1) == c_N).float(),
                    (broken_NV.argmax(-1) == b_N).float(),
                    (broken_NV.gather(1, c_N1) - broken_NV.gather(1, b_N1))[:, 0],
                ]
            )
        )
    means = torch.cat(rows, dim=1).double().mean(dim=1).tolist()
    names = ("accuracy", "log_loss", "logit_diff", "broken_says_c", "broken_says_b", "broken_logit_diff")
    return {name: round(value, 5) for name, value in zip(names, means, strict=True)}
