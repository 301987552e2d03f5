"""Tokenizers and stand-in models for the tests of tasks, made on the spot."""

from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitdisc.tasks.library.ioi import FRAMES, NAMES, OBJECTS, PLACES
from circuitdisc.tasks.library.nouns import NOUNS
from circuitdisc.tasks.library.tpp import TEMPLATES

SPECIAL = ("[PAD]", "[UNK]", "[BOS]")


@dataclass(frozen=True)
class FakeModel:
    """What tasks look at, without weights."""

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    d_vocab: int
    d_vocab_out: int
    n_ctx: int = 64


@cache
def word_tokenizer(add_bos: bool = False) -> PreTrainedTokenizerFast:
    """Word-level, as the shipped models have it: the words of the TPP templates and all nouns."""
    texts = [template.fill(a="", b="", link="", c="") for template in TEMPLATES]
    words = dict.fromkeys(word for text in texts for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text))
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate((*SPECIAL, *words, *NOUNS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    if add_bos:
        bos = processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 2)])
        backend.post_processor = bos  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]")


@cache
def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 has it, whose tokens are the words of the IOI task; unknown text falls into letters."""
    words = [" " + word for word in (*NAMES[:-1], *PLACES, *OBJECTS)]
    frames = [frame.format(first="", second="", subject="", place="", object="") for frame in FRAMES.values()]
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue] - untyped constructor
        vocab_size=3000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*words, *frames] * 5, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=end, bos_token=end, eos_token=end)


def word_model(add_bos: bool = False, n_ctx: int = 64) -> FakeModel:
    tokenizer = word_tokenizer(add_bos)
    return FakeModel("words", tokenizer, len(tokenizer), len(tokenizer), n_ctx)


def bpe_model(n_ctx: int = 64) -> FakeModel:
    return FakeModel("bpe", bpe_tokenizer(), len(bpe_tokenizer()), len(bpe_tokenizer()), n_ctx)


def bare_model(d_vocab: int = 50, n_ctx: int = 64) -> FakeModel:
    return FakeModel("bare", None, d_vocab, d_vocab, n_ctx)
