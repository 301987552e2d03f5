"""What the training scripts share: a word-level tokenizer, a small GPT-2, documents, the training loop, and shipping.

Shapes: B documents, T positions, N scored positions, V vocabulary.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


@dataclass(frozen=True)
class Document:
    """Token ids, the positions whose token is to be predicted, and those whose token counts lightly in training."""

    ids: list[int]
    scored: list[int]
    light: list[int] = field(default_factory=list)


def words(text: str) -> list[str]:
    """Split a text into its words and punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text)


def word_tokenizer(entries: Iterable[str]) -> PreTrainedTokenizerFast:
    """Word-level tokenizer of the special tokens and these words; it drops spaces."""
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *entries))}
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


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, *, activation: str = "gelu_new", d_mlp: int | None = None
) -> GPT2LMHeadModel:
    """A GPT-2 of 4 layers, 8 heads and width 128, without dropout, freshly drawn; MLPs are 512 wide unless `d_mlp` is given."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=128,
        n_layer=4,
        n_head=8,
        n_inner=d_mlp,
        activation_function=activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        pad_token_id=SPECIAL.index("[PAD]"),
        bos_token_id=SPECIAL.index("[BOS]"),
        eos_token_id=SPECIAL.index("[EOS]"),
    )
    return GPT2LMHeadModel(config)


def padded(documents: Sequence[Document]) -> Tensor:
    """Ids [B T], padded on the right, which causal attention never reads."""
    width = max(len(d.ids) for d in documents)
    return torch.tensor([d.ids + [0] * (width - len(d.ids)) for d in documents])


def scored_logits(model: GPT2LMHeadModel, documents: Sequence[Document]) -> tuple[Tensor, Tensor]:
    """Logits [N V] before each scored token, and those tokens [N]."""
    ids_BT = padded(documents)
    rows = torch.tensor([row for row, d in enumerate(documents) for _ in d.scored])
    columns = torch.tensor([column for d in documents for column in d.scored])
    hidden_BTD = model.transformer(input_ids=ids_BT, use_cache=False).last_hidden_state
    return model.lm_head(hidden_BTD[rows, columns - 1]), ids_BT[rows, columns]


def scored_loss(model: GPT2LMHeadModel, documents: Sequence[Document]) -> Tensor:
    """Mean cross-entropy of the scored tokens."""
    logits_NV, tokens_N = scored_logits(model, documents)
    return torch.nn.functional.cross_entropy(logits_NV, tokens_N)


def light_loss(model: GPT2LMHeadModel, documents: Sequence[Document], light: float) -> Tensor:
    """Cross-entropy summed over the scored tokens, and over the light ones times `light`, for each scored token.

    The shorter and the longer half of the documents are read apart, which saves padding.
    """
    by_length = sorted(documents, key=lambda document: len(document.ids))
    total = torch.zeros(())
    for half in (by_length[: len(by_length) // 2], by_length[len(by_length) // 2 :]):
        ids_BT = padded(half)
        rows = torch.tensor([row for row, d in enumerate(half) for _ in (*d.scored, *d.light)])
        columns = torch.tensor([column for d in half for column in (*d.scored, *d.light)])
        weights_N = torch.tensor([weight for d in half for weight in [1.0] * len(d.scored) + [light] * len(d.light)])
        hidden_BTD = model.transformer(input_ids=ids_BT, use_cache=False).last_hidden_state
        logits_NV = model.lm_head(hidden_BTD[rows, columns - 1])
        losses_N = torch.nn.functional.cross_entropy(logits_NV, ids_BT[rows, columns], reduction="none")
        total = total + (weights_N * losses_N).sum()
    return total / sum(len(document.scored) for document in documents)


@torch.no_grad()
def accuracy(model: GPT2LMHeadModel, documents: Sequence[Document]) -> float:
    """Share of scored tokens that are the most likely word of the whole vocabulary."""
    hits: list[Tensor] = []
    for start in range(0, len(documents), 500):
        logits_NV, tokens_N = scored_logits(model, documents[start : start + 500])
        hits.append((logits_NV.argmax(-1) == tokens_N).float())
    return torch.cat(hits).mean().item()


def train(
    model: GPT2LMHeadModel,
    batches: Iterator[list[Document]],
    steps: int,
    *,
    lr: float,
    warmup: int,
    label: str,
    every: int = 0,
    watch: Callable[[], str] = lambda: "",
    loss_of: Callable[[GPT2LMHeadModel, list[Document]], Tensor] = scored_loss,
) -> float:
    """Train in place with AdamW, linear warm-up and a cosine down to a tenth of the rate.

    Args:
        model: model to train.
        batches: one list of documents per step.
        steps: optimiser steps.
        lr: highest learning rate.
        warmup: steps of linear warm-up.
        label: name on the progress bar.
        every: steps between two calls of `watch`; 0 for none.
        watch: what is written beside the bar with the loss.
        loss_of: the loss of a batch.

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
        loss = loss_of(model, next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if every and step % every == 0:
            bar.write(f"{label} step {step}: loss {loss.item():.3f}, {watch()}")
    model.eval()
    return time.perf_counter() - start


def save_shipped(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> GPT2LMHeadModel:
    """Write a Hugging Face folder with float16 weights, and load that folder in float32."""
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    model.config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shipped = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return shipped.eval()


def versions() -> dict[str, str]:
    """Versions of what a training run depends on."""
    return {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }
