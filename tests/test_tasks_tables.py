"""Tasks that look something up in a list: colored objects and boxes. Answers are found again from the text alone."""

import re
from functools import cache

import pytest
from tiny import FakeModel, bare_model
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE, WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.tasks import Example, load_task
from circuitdisc.tasks.library import colored_objects, entity_tracking
from circuitdisc.tasks.roles import position_of, role_names

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FRAMES, COLORS = colored_objects.FRAMES, colored_objects.COLORS
THINGS, LABELS = entity_tracking.OBJECTS, entity_tracking.LABELS
SENTENCES = (*FRAMES.values(), "The apple is in Box {label}, the apple is in Box {label}. Box {label} contains the")
WORDS = dict.fromkeys((*COLORS, *colored_objects.OBJECTS, *THINGS, *LABELS))
TOKENIZERS = ("words", "bpe")
both = pytest.mark.parametrize("kind", TOKENIZERS)


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    """Word-level, which drops spaces, or byte-level BPE, which keeps them, both with every word of the two tasks."""
    sentences = [re.sub(r"\{\w+\}", "", sentence) for sentence in SENTENCES]
    if kind == "words":
        found = dict.fromkeys(word for text in sentences for word in re.findall(r"\w+|[^\w\s]", text))
        backend = Tokenizer(WordLevel({word: i for i, word in enumerate(["[UNK]", *{**found, **WORDS}])}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
        return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue] - untyped constructor
        vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([*(f" {word}" for word in WORDS), *sentences] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def model_of(kind: str, n_ctx: int = 64) -> FakeModel:
    tokenizer = tokenizer_of(kind)
    return FakeModel(kind, tokenizer, len(tokenizer), len(tokenizer), n_ctx)


def text_of(ids: tuple[int, ...] | None, kind: str) -> str:
    assert ids is not None
    return str(tokenizer_of(kind).decode(list(ids)))


def word_at(example: Example, role: str, kind: str) -> str:
    return text_of((example.clean[position_of(example, role)],), kind).strip()


def answer_words(example: Example, kind: str) -> tuple[str, list[str]]:
    """The right answer, and the wrong ones in their order."""
    right, *wrong = [text_of((token,), kind).strip() for token in (*example.answers[0], *example.wrong[0])]
    assert len(example.answers[0]) == 1
    return right, wrong


def colors_of(text: str) -> tuple[dict[str, str], str]:
    """Each object's color, in the order of the list, and the object asked for."""
    listing, question = text.split(".", 1)
    pairs = re.findall(rf"\ba ({'|'.join(COLORS)}) (\w+)", listing)
    asked = [word for word in re.findall(r"\w+", question) if word in dict(pair[::-1] for pair in pairs)]
    assert len(pairs) == 3
    assert len(asked) == 1
    return {thing: color for color, thing in pairs}, asked[0]


def boxes_of(text: str) -> tuple[dict[str, str], str]:
    """The object in each box, in the order of the list, and the label asked for."""
    pairs = re.findall(r"\b[Tt]he (\w+) is in Box (\w)\b", text)
    label = re.search(r"\. ?Box (\w) contains the$", text.replace(" .", "."))
    assert label is not None
    assert len({label for _, label in pairs}) == len({thing for thing, _ in pairs}) == len(pairs)
    return {label: thing for thing, label in pairs}, label[1]


# --- colored objects


@both
@pytest.mark.parametrize("corruption", ["query", "colors"])
def test_colored_objects_asks_for_a_color_and_the_corrupted_prompt_for_a_wrong_one(kind: str, corruption: str) -> None:
    task = load_task("colored_objects", model_of(kind), n=80, n_heldout=20, corruption=corruption)
    examples = (*task.train, *task.heldout)
    assert len({one.clean for one in examples}) == 100
    groups = set()
    for one in examples:
        (colors, asked), (others, other) = colors_of(one.text), colors_of(text_of(one.corrupted, kind))
        right, wrong = answer_words(one, kind)
        assert right == colors[asked]
        assert sorted([right, *wrong]) == sorted(colors.values())
        assert others[other] == wrong[0], "the corrupted prompt's answer is the first wrong one"
        assert len(one.clean) == len(one.corrupted or ())
        if corruption == "query":
            assert (others, other == asked) == (colors, False)
        else:
            assert other == asked
            assert list(others) == list(colors)
            assert all(others[thing] != color for thing, color in colors.items())
            assert sorted(others.values()) == sorted(colors.values())
        groups.add(one.group)
        assert one.group[-1] == str(list(colors).index(asked) + 1)
        frame = re.sub(r"\{\w+\}", "(\\\\w+)", FRAMES[one.group[:-2]].replace("?", r"\?"))
        assert re.fullmatch(frame, one.text)
    assert groups == {f"{frame}_{place}" for frame in FRAMES for place in (1, 2, 3)}


@both
def test_colored_objects_roles_stand_at_the_words_they_name(kind: str) -> None:
    examples = load_task("colored_objects", model_of(kind), n=30, n_heldout=1).train
    listed = {f"{word}{place}" for word in ("color", "object") for place in (1, 2, 3)}
    assert set(role_names(examples)) == {*listed, "correct_color", "correct_object", "query"}
    for one in examples:
        colors, asked = colors_of(one.text)
        for place, (thing, color) in enumerate(colors.items(), 1):
            assert (word_at(one, f"color{place}", kind), word_at(one, f"object{place}", kind)) == (color, thing)
        assert word_at(one, "correct_color", kind) == colors[asked]
        assert word_at(one, "correct_object", kind) == word_at(one, "query", kind) == asked
        assert one.roles["correct_object"] < one.roles["query"] < position_of(one, "end")


def test_colored_objects_settings() -> None:
    model = model_of("words")
    one_frame = load_task("colored_objects", model, n=30, frames="shelf")
    assert {one.group for one in one_frame.train} == {"shelf_1", "shelf_2", "shelf_3"}
    assert load_task("colored_objects", model, n=5, seed=1) == load_task("colored_objects", model, n=5, seed=1)
    assert load_task("colored_objects", model, n=5, seed=1).train != load_task("colored_objects", model, n=5, seed=2).train
    with pytest.raises(UnknownName, match="Did you mean shelf"):
        load_task("colored_objects", model, frames=["shelff"])
    with pytest.raises(UnknownName, match="corruption of task 'colored_objects'"):
        load_task("colored_objects", model, corruption="objects")
    with pytest.raises(BadTask, match="no tokenizer"):
        load_task("colored_objects", bare_model())


# --- boxes


@both
@pytest.mark.parametrize("corruption", ["query", "value", "position", "label"])
@pytest.mark.parametrize("boxes", [2, 3, 7])
def test_entity_tracking_changes_what_its_corruption_says(kind: str, corruption: str, boxes: int) -> None:
    task = load_task("entity_tracking", model_of(kind), n=50, n_heldout=10, boxes=boxes, corruption=corruption)
    examples = (*task.train, *task.heldout)
    assert len({one.clean for one in examples}) == 60
    assert {one.group for one in examples} == {f"box{place + 1}" for place in range(boxes)}
    for one in examples:
        (held, asked), (other_held, other_asked) = boxes_of(one.text), boxes_of(text_of(one.corrupted, kind))
        things, labels = list(held.values()), list(held)
        other_things, other_labels = list(other_held.values()), list(other_held)
        right, wrong = answer_words(one, kind)
        place, other_place = labels.index(asked), other_labels.index(other_asked)
        assert len(labels) == len(other_labels) == boxes
        assert (right, one.group) == (held[asked], f"box{place + 1}")
        assert {*things} - {right} <= {*wrong}
        assert {*wrong} - {*things} == ({wrong[0]} if corruption == "value" else set())
        same_value, same_place, same_label = other_held[other_asked] == right, other_place == place, other_asked == asked
        if corruption == "query":
            assert other_held == held
            assert not same_label
            assert other_held[other_asked] == wrong[0]
        elif corruption == "value":
            assert (same_value, same_place, same_label) == (False, True, True)
            assert other_labels == labels
            assert not {*other_things} & {*things}
            assert other_held[other_asked] == wrong[0]
        elif corruption == "position":
            assert (same_value, same_place, same_label) == (True, False, True)
            assert other_held == held
            assert all(new != old for new, old in zip(other_things, things, strict=True))
            assert things[other_place] == wrong[0], "who takes the place alone from it says what stood there"
        else:
            assert (same_value, same_place, same_label) == (True, True, False)
            assert other_things == things
            assert all(new != old for new, old in zip(other_labels, labels, strict=True))
            assert held[other_asked] == wrong[0], "who takes the label alone from it says what that box held"


@both
@pytest.mark.parametrize("corruption", ["query", "label"])
def test_entity_tracking_roles_stand_at_the_words_they_name(kind: str, corruption: str) -> None:
    examples = load_task("entity_tracking", model_of(kind), n=30, n_heldout=1, boxes=4, corruption=corruption).train
    listed = {f"{word}{place}" for word in ("object", "label") for place in range(1, 5)}
    assert set(role_names(examples)) == {*listed, "correct_object", "correct_label", "query_box", "query_label"}
    for one in examples:
        held, asked = boxes_of(one.text)
        for place, (label, thing) in enumerate(held.items(), 1):
            assert (word_at(one, f"label{place}", kind), word_at(one, f"object{place}", kind)) == (label, thing)
        assert word_at(one, "correct_object", kind) == held[asked]
        assert word_at(one, "correct_label", kind) == word_at(one, "query_label", kind) == asked
        assert (word_at(one, "query_box", kind), word_at(one, "end", kind)) == ("Box", "the")
        assert one.roles["correct_label"] < one.roles["query_box"] < one.roles["query_label"]
        if corruption == "label":
            assert one.corrupted is not None
            changed = {index for index, (a, b) in enumerate(zip(one.clean, one.corrupted, strict=True)) if a != b}
            assert changed == {one.roles[role] for role in ("label1", "label2", "label3", "label4", "query_label")}


def test_entity_tracking_settings() -> None:
    model = model_of("words")
    assert load_task("entity_tracking", model, n=5, seed=1) == load_task("entity_tracking", model, n=5, seed=1)
    assert load_task("entity_tracking", model, n=5, seed=1).train != load_task("entity_tracking", model, n=5, seed=2).train
    with pytest.raises(BadSetting, match="boxes=1 must be a whole number from 2"):
        load_task("entity_tracking", model, boxes=1)
    with pytest.raises(UnknownName, match="Did you mean label"):
        load_task("entity_tracking", model, corruption="labels")
    with pytest.raises(BadTask, match=r"needs 60 objects that are one token each, but .* has 50 of 50"):
        load_task("entity_tracking", model, boxes=30, corruption="value")
    with pytest.raises(BadTask, match="labels that are one token each"):
        load_task("entity_tracking", model_of("words", n_ctx=400), boxes=30)
    with pytest.raises(BadTask, match="reads at most 20"):
        load_task("entity_tracking", model_of("words", n_ctx=20), n=2)
    with pytest.raises(BadTask, match="no tokenizer"):
        load_task("entity_tracking", bare_model())


@pytest.mark.parametrize(("name", "kind"), [("colored_objects", "colors"), ("entity_tracking", "objects")])
def test_words_that_the_tokenizer_has_not_are_counted_in_a_warning(name: str, kind: str) -> None:
    full = tokenizer_of("words").get_vocab()
    left_out = {"red", "blue", "pink", "apple"}
    kept = [word for word in sorted(full, key=full.__getitem__) if word not in left_out]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(kept)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue] - untyped setter
    model = FakeModel("few", PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), len(kept), len(kept))
    missing, total = {"colors": (3, len(COLORS)), "objects": (1, len(THINGS))}[kind]
    with pytest.warns(UserWarning, match=f"{missing} of {total} {kind} are not one token"):
        task = load_task(name, model, n=50)
    assert not any(word in left_out for one in task.train for word in re.findall(r"\w+", one.text))
