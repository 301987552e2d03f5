"""Tokenizers that hold the words of every listed task as one token each: byte-level as GPT-2's is, or as SentencePiece writes.

The words are read out of the task files' own constants, so that a new task has its tokenizer by being listed. Every merge
begins with the mark of a space, so that a word is merged letter by letter from its beginning and no merge stands in the way
of another.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

from tiny import FakeModel
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

import circuitdisc.tasks.library

TWO_DIGITS = tuple(f"{number:02d}" for number in range(100))
LONG = 15  # a list of as many words is one that a task draws from


def strings_of(value: object) -> Iterator[str]:
    """Every string inside nested tuples, dicts and records."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_of(key)
            yield from strings_of(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings_of(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from strings_of(list(vars(value).values()))


@cache
def constants() -> tuple[object, ...]:
    """The constants of all files of tasks."""
    found = []
    for info in pkgutil.iter_modules(circuitdisc.tasks.library.__path__):
        module = importlib.import_module(f"circuitdisc.tasks.library.{info.name}")
        found += [value for name, value in vars(module).items() if name.isupper() and name != "TASKS"]
    return tuple(found)


@cache
def words() -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for text in strings_of(constants()) for word in re.findall(r"[A-Za-z]+", text)))


@cache
def every_fifth() -> frozenset[str]:
    """Some words of every long list: a tokenizer without them leaves each list with enough."""
    withheld: set[str] = set()
    for value in constants():
        listed = [text for text in strings_of(value) if re.fullmatch(r"[A-Za-z]+", text)]
        if len(listed) >= LONG:
            withheld |= set(listed[::5])
    return frozenset(withheld)


def _chains(
    texts: Sequence[str], alphabet: Sequence[str], first: Sequence[str]
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A vocabulary and merges that build each text from its beginning."""
    vocabulary = {token: index for index, token in enumerate([*first, *alphabet])}
    merges: dict[tuple[str, str], None] = {}
    for text in texts:
        for end in range(1, len(text)):
            merges.setdefault((text[:end], text[end]))
            vocabulary.setdefault(text[: end + 1], len(vocabulary))
    return vocabulary, list(merges)


@cache
def byte_level(
    without: frozenset[str] = frozenset(), two_digits: bool = True, unspaced: bool = False
) -> PreTrainedTokenizerFast:
    """A space belongs to the word after it; numbers are read two digits at a time, or one; maybe words without a space, too."""
    numbers = [*(str(number) for number in range(100)), *TWO_DIGITS] if two_digits else [str(number) for number in range(10)]
    spaced = [f"Ġ{word}" for word in (*(one for one in words() if one not in without), *numbers)]
    joined = TWO_DIGITS if two_digits else ()  # after the others: 1732 after a space is first merged from its beginning
    joined = (*joined, *words()) if unspaced else joined
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    vocabulary, merges = _chains([*spaced, *joined], sorted(alphabet), ["<|endoftext|>"])
    backend = Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


@cache
def sentence_piece() -> PreTrainedTokenizerFast:
    """A text gets a space at its beginning, every digit is a token, the space before a digit another; BOS comes first."""
    alphabet = sorted({*"▁\n", *(chr(code) for code in range(33, 127))})
    vocabulary, merges = _chains([f"▁{word}" for word in words()], alphabet, ["<unk>", "<s>"])
    backend = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.Replace("▁", " ")  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    bos = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.post_processor = bos  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>")


def model_with(tokenizer: PreTrainedTokenizerFast) -> FakeModel:
    return FakeModel("whole words", tokenizer, len(tokenizer), len(tokenizer), n_ctx=512)
