"""How tokens are shown in messages, and what a tokenizer makes of spaces and of special tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE_MARKS = ("▁", "Ġ", " ")  # SentencePiece, byte-level BPE, plain
SHOWN_TOKENS = 6
SHOWN_LETTERS = 30
LAST_OF_SPACED = 0x590  # scripts that put spaces between words (Latin, Greek, Cyrillic, Armenian) come before


def token_text(token: int, tokenizer: "PreTrainedTokenizerBase | None") -> str | None:
    """What a token says, with the space that it begins with, if any; None if nothing is known of it."""
    if tokenizer is None or not 0 <= token < len(tokenizer):
        return None
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    piece = tokenizer.convert_ids_to_tokens(token)
    if isinstance(piece, str) and piece.startswith("▁"):  # some decoders drop the space of a text's first token
        return " " * (len(piece) - len(piece.lstrip("▁"))) + text.lstrip(" ")
    return text


def show_token(token: int, tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """A token as messages name it: what it says, and its id in brackets."""
    text = token_text(token, tokenizer)
    return f"[{token}]" if text is None else f"{shorten(text)!r} [{token}]"


def show_tokens(tokens: Sequence[int], tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """The first few tokens of a list, as messages name them."""
    more = ", ..." if len(tokens) > SHOWN_TOKENS else ""
    return ", ".join(show_token(token, tokenizer) for token in tokens[:SHOWN_TOKENS]) + more


def show_difference(first: Sequence[int], second: Sequence[int], tokenizer: "PreTrainedTokenizerBase | None") -> str:
    """Two lists of tokens from where they part."""
    same = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
    start = min(len(first), len(second)) if same is None else same
    sides = [show_tokens(side[start : start + 3], tokenizer) or "nothing" for side in (first, second)]
    return f"from token {start} on {sides[0]} against {sides[1]}"


def shorten(text: str, most: int = SHOWN_LETTERS) -> str:
    """A text that fits into a message."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def keeps_spaces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """True if tokens tell whether a space stands before them; False for tokenizers that only split at spaces."""
    ids = tokenizer("a a a", add_special_tokens=False, verbose=False)["input_ids"]
    pieces = [piece for piece in tokenizer.convert_ids_to_tokens(ids[1:]) if isinstance(piece, str)]
    return any(mark in piece for mark in SPACE_MARKS for piece in pieces)


def special_id(kind: str, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The id of a tokenizer's `bos`, `eos`, `sep`, `cls`, `pad` or `unk` token; None if it has none."""
    token = getattr(tokenizer, f"{kind}_token_id", None)
    return token if isinstance(token, int) else None


def marks_turns(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """True if the BOS token is what the chat template begins every turn with, as `<|im_start|>`."""
    bos, turns = tokenizer.bos_token, [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    if not bos or not tokenizer.chat_template:
        return False
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False)).count(str(bos)) >= len(turns)
    except Exception:  # a template is another's program and raises what it likes; `tasks/framing.py` says so where it is used
        return False


def is_space(text: str | None) -> bool:
    """True for a text of spaces alone; line ends and tabs say something by themselves."""
    return text is not None and text != "" and not text.strip(" ")


def runs_together(before: str, after: str) -> bool:
    """True if a word follows a word without a space between, so that they read as one; numbers go on in digits."""
    last, first = before[-1:], after[:1]
    if not (last.isalnum() and first.isalnum()) or max(last, first) >= chr(LAST_OF_SPACED):
        return False
    return not (last.isdigit() and first.isdigit())


def lacks_space(before: str, after: str) -> bool:
    """True where a space is probably missing: between two words, or after a colon, its like, or an equals sign with a space
    before it.
    """
    if runs_together(before, after):
        return True
    closes = before.endswith((":", ";", "!", "?", " ="))
    return closes and after[:1].isalnum() and after[0] < chr(LAST_OF_SPACED)
