"""Small tokenizers that treat spaces, digits, cases and special tokens in the ways that real ones do, and files for them."""

import copy
import json
import re
import string
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tiny import FakeModel, bare_model
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram, WordLevel
from transformers import PreTrainedTokenizerFast

from circuitdisc.errors import BadTask, CircuitdiscWarning
from circuitdisc.tasks import Example, Task, load_task

Rows = list[dict[str, Any]]
WORDS = ("The", "the", "key", "keys", "is", "are", "to", "of", "cold", "short", "hot", "tall", "Box", "may", "said", "user")
LETTERS = string.ascii_letters + string.digits + "+=:.,()\"'\n"


def _finish(backend: Tokenizer, template: str | None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens, and what it puts around a text by itself."""
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special.values()])
    if template is not None:
        ids = [(token, backend.token_to_id(token)) for token in special.values() if token in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{name}_token": token for name, token in special.items()})


@cache
def gpt2_like(template: str | None = None, digits: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE: a space belongs to the word after it; with `digits`, each digit is apart from the space before it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    merges: dict[tuple[str, str], None] = {}
    for text in (*(f"Ġ{word}" for word in WORDS), *(f"Ġ{digit}" for digit in string.digits), "The", "Box", "user"):
        for end in range(1, len(text)):
            merges.setdefault((text[:end], text[end]))
            vocabulary.setdefault(text[: end + 1], len(vocabulary))
    backend = Tokenizer(BPE(vocabulary, list(merges)))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = [pre_tokenizers.Digits(individual_digits=True), byte_level] if digits else [byte_level]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return _finish(backend, template, bos="<|im_start|>", eos="<|im_end|>")


@cache
def llama_like(template: str | None = "<s> $A", prepend: str = "always", bytes_too: bool = False) -> PreTrainedTokenizerFast:
    """Unigram with a mark for each space, also before the text; digits one by one; unknown letters as bytes, or unknown."""
    pieces = [("<unk>", 0.0), ("▁", -6.0), *((f"▁{word}", -1.0) for word in WORDS), *((letter, -6.0) for letter in LETTERS)]
    pieces += [("Box", -2.0), ("cold", -2.0), ("▁=", -1.0), ("▁+", -1.0)]
    pieces += [(f"<0x{byte:02X}>", -9.0) for byte in range(256)] if bytes_too else []
    backend = Tokenizer(Unigram(pieces, unk_id=0, byte_fallback=bytes_too))
    digits = pre_tokenizers.Digits(individual_digits=True)
    mark = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    backend.pre_tokenizer = pre_tokenizers.Sequence([mark, digits])  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return _finish(backend, template, bos="<s>", eos="</s>", unk="<unk>", pad="<pad>")


@cache
def uncased(template: str | None = "[CLS] $A [SEP]") -> PreTrainedTokenizerFast:
    """Whole words in lower case without accents, split at spaces and signs, which leave no trace."""
    words = ("[UNK]", *dict.fromkeys(word.lower() for word in WORDS), *":.,()")
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    steps = [normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]
    backend.normalizer = normalizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return _finish(backend, template, unk="[UNK]", bos="[CLS]", sep="[SEP]", pad="[PAD]")


def padding_by_itself(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with left padding to 16 tokens and truncation to 2 switched on in its file."""
    changed = copy.deepcopy(tokenizer)
    changed.backend_tokenizer.enable_padding(direction="left", length=16)
    changed.backend_tokenizer.enable_truncation(2)
    changed.padding_side = "left"
    return changed


# --- files of a few lines


def model_of(tokenizer: PreTrainedTokenizerFast) -> FakeModel:
    return FakeModel("small", tokenizer, len(tokenizer), len(tokenizer), n_ctx=64)


def load(folder: Path, rows: Rows, tokenizer: PreTrainedTokenizerFast | None, **settings: Any) -> tuple[Task, list[str]]:
    """A task of these lines, and its notes, each of which is a warning, too."""
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    model = bare_model() if tokenizer is None else model_of(tokenizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = load_task(path, model, **settings)
    assert [str(one.message) for one in caught] == list(task.notes)
    assert all(one.category is CircuitdiscWarning for one in caught)
    assert all(len(sentence.replace(str(path), "pairs.jsonl")) < 500 for sentence in task.notes)
    return task, list(task.notes)


def refused(folder: Path, rows: Rows, tokenizer: PreTrainedTokenizerFast, **settings: Any) -> str:
    with pytest.raises(BadTask) as caught:
        load(folder, rows, tokenizer, **settings)
    return str(caught.value).partition(":1: ")[2].partition("\n")[0]


def pairs(before: str = "", after: str = "", answers: tuple[str, str] = (" cold", " short"), n: int = 4) -> Rows:
    """Prompts "The key to the ... is", in which something changes from line to line, with either of two answers."""
    words = ("key", "keys", "Box", "user", "the", "to")
    return [
        {
            "clean": f"{before}The {words[i]} is{after}",
            "corrupted": f"{before}The {words[i + 1]} is{after}",
            "answers": answers[i % 2],
            "wrong": answers[1 - i % 2],
        }
        for i in range(n)
    ]


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str, special: bool = False) -> list[int]:
    return tokenizer(text, add_special_tokens=special)["input_ids"]


def all_examples(task: Task) -> list[Example]:
    return [*task.train, *task.heldout]


def only(notes: list[str], start: str) -> str:
    assert len(notes) == 1
    assert re.match(start, notes[0]), notes[0]
    return notes[0]
