"""Indirect object identification: "... Mary and John ... John gave the book to" is continued with Mary.

The indirect object (Mary) is named once, the subject (John) twice. Each frame comes in two orders: `abba`, with the
indirect object first, and `baba`, with the subject first. The corrupted prompt `abc` has three other names, each
once, so that no one of them follows; `flip` names the indirect object in place of the subject the second time, so
that the wrong answer follows. Examples of one frame and order form a group.

Roles: `io`, the indirect object; `s1` and `s2`, the subject where it is named first and again; `place`; `object`; the last
token is `end`. They name the same words in both orders, so that `s1` comes before `io` in `baba`.

Source: Wang et al. 2022, section 2 and appendix A (p_ABC); own frames, names, places and objects.
"""

from collections.abc import Sequence

import numpy as np

from circuitdisc.tasks.base import Task, TextExample
from circuitdisc.tasks.check import check_names
from circuitdisc.tasks.encode import encode_examples, one_token_words
from circuitdisc.tasks.library.ioi_text import FRAMES, NAMES, OBJECTS, PLACES
from circuitdisc.tasks.model import TaskModel, need_tokenizer
from circuitdisc.tasks.roles import Filled, fill
from circuitdisc.tasks.split import draw_distinct, split_examples

ORDERS = {"both": ("abba", "baba"), "abba": ("abba",), "baba": ("baba",)}
CORRUPTIONS = ("abc", "flip")
ROLES = {  # of the slots that hold names
    "abba": {"first": "io", "second": "s1", "subject": "s2"},
    "baba": {"first": "s1", "second": "io", "subject": "s2"},
}
LEAST_NAMES = 5


def build(
    model: TaskModel,
    *,
    n: int,
    n_heldout: int,
    seed: int,
    frames: str | Sequence[str] | None = None,
    order: str = "both",
    corruption: str = "abc",
    prepend_bos: bool | None = None,
) -> Task:
    """Draw indirect-object examples.

    Args:
        model: the model whose tokenizer reads the prompts.
        n: train examples.
        n_heldout: held-out examples.
        seed: seed of the draw.
        frames: names of the frames to draw from; None: all.
        order: `abba`, `baba` or `both`.
        corruption: `abc` or `flip`.
        prepend_bos: whether prompts begin with the BOS token; None leaves it to the tokenizer.

    Raises:
        UnknownName: there is no such frame, order or corruption.
        BadSetting: `frames` is not a list of names.
        BadTask: the model has no tokenizer, or it knows too few of the words as single tokens.
    """
    chosen = check_names("frame of task 'ioi'", frames, FRAMES)
    check_names("order of task 'ioi'", order, ORDERS)
    check_names("corruption of task 'ioi'", corruption, CORRUPTIONS)
    tokenizer = need_tokenizer(model, "ioi")
    names = one_token_words(NAMES, tokenizer, task="ioi", kind="names", need=LEAST_NAMES)
    places = one_token_words(PLACES, tokenizer, task="ioi", kind="places", need=1)
    objects = one_token_words(OBJECTS, tokenizer, task="ioi", kind="objects", need=1)
    rng = np.random.default_rng(seed)

    def draw() -> TextExample:
        frame = chosen[int(rng.integers(len(chosen)))]
        way = ORDERS[order][int(rng.integers(len(ORDERS[order])))]
        place, object_ = places[int(rng.integers(len(places)))], objects[int(rng.integers(len(objects)))]
        people = [names[i] for i in rng.choice(len(names), size=LEAST_NAMES, replace=False)]
        indirect, subject, *others = people
        first, second = (indirect, subject) if way == "abba" else (subject, indirect)

        def prompt(first: str, second: str, subject: str) -> Filled:
            words = {"first": first, "second": second, "subject": subject, "place": place, "object": object_}
            return fill(FRAMES[frame], **{slot: f" {word}" for slot, word in words.items()})

        clean = prompt(first, second, subject)
        corrupted = prompt(*others) if corruption == "abc" else prompt(first, second, indirect)
        roles = {ROLES[way].get(slot, slot): span for slot, span in clean.roles.items()}
        group = f"{frame}_{way}"
        return TextExample(clean.text, corrupted.text, (f" {indirect}",), (f" {subject}",), group=group, roles=roles)

    texts = draw_distinct(draw, n + n_heldout, "ioi")
    examples = encode_examples(texts, tokenizer, prepend_bos=prepend_bos)
    split = split_examples(examples, n, None, n_heldout=n_heldout)
    return Task("ioi", split.train, split.heldout)
