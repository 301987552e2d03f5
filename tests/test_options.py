"""A table of options against the signature written out by hand: what can be asked of the one can be asked of the other."""

import inspect
from typing import Annotated, Any

import pytest
from typing_extensions import Unpack

import circuitdisc as cd
from circuitdisc.checks import Whole, bounded, bounds_of
from circuitdisc.errors import BadSetting
from circuitdisc.options import Option, Working, of_others, options_of, takes


class Counting(Working, total=False):
    """How to count."""

    n: Annotated[int, Option(3, "how many.", Whole(1, 9))]
    word: Annotated[str | None, Option(None, "what to count; None: anything.")]


class Open(Counting, total=False, extra_items=Any):
    """The same, and more."""


@bounded(by=Whole(1, 5))
@takes(Counting, n=4)
def count(start: int, *, by: int = 1, **options: Unpack[Counting]) -> dict[str, Any]:
    """Count.

    Args:
        start: where to begin.
        by: the step.
        word: what is counted here.

    Returns:
        All that it was given.
    """
    return {"start": start, "by": by, **options}


def by_hand(
    start: int, *, by: int = 1, n: int = 4, word: str | None = None, memory: str | int = "4GiB", progress: bool = False
) -> dict[str, Any]:
    """Count."""
    return {"start": start, "by": by, "n": n, "word": word, "memory": memory, "progress": progress}


@takes(Open)
def hand_on(**options: Unpack[Open]) -> dict[str, Any]:
    """Hand on.

    Raises:
        BadSetting: never.
    """
    return dict(options)


def test_the_signature_is_that_written_by_hand():
    assert inspect.signature(count) == inspect.signature(by_hand)


@pytest.mark.parametrize("given", [{}, {"n": 2}, {"by": 2, "word": "sheep"}, {"memory": 10, "progress": True}])
def test_a_call_gets_what_it_would_have_got(given: dict[str, Any]):
    assert count(1, **given) == by_hand(1, **given)


def test_what_is_not_known_is_a_type_error_as_ever():
    calls: dict[Any, tuple[int, ...]] = {count: (1,), by_hand: (1,), cd.heads.head_effects: (1, 2), cd.path_patch: (1, 2)}
    for function, given in calls.items():
        with pytest.raises(TypeError, match="unexpected keyword argument 'sheep'"):
            function(*given, sheep=2)


def test_bounds_of_the_table_and_of_the_function_both_hold():
    assert set(bounds_of(count)) == {"n", "by"}
    bads: list[dict[str, Any]] = [{"n": 10}, {"by": 6}]
    for bad in bads:
        with pytest.raises(BadSetting, match=f"{next(iter(bad))}="):
            count(1, **bad)


def test_help_has_a_line_for_every_key_and_its_own_words_win():
    text = inspect.getdoc(count) or ""
    assert "    n: how many.\n" in text
    assert "    word: what is counted here.\n" in text
    assert "anything" not in text
    assert text.index("progress:") < text.index("Returns:")
    assert text.startswith("Count.\n\nArgs:\n    start: where to begin.\n")
    assert (inspect.getdoc(hand_on) or "").startswith("Hand on.\n\nArgs:\n    n: how many.\n")
    assert (inspect.getdoc(hand_on) or "").endswith("\n\nRaises:\n    BadSetting: never.")


def test_an_open_table_lets_others_through():
    given = hand_on(n=2, sheep=3)
    assert of_others(Open, given) == {"sheep": 3}
    assert set(given) == {*options_of(Open), "sheep"}


def test_a_default_for_no_key_is_a_mistake_of_ours():
    with pytest.raises(TypeError, match="no key sheep"):
        takes(Counting, sheep=1)


PUBLIC = [cd.heads.head_effects, cd.heads.knockout_curve, cd.dcm, cd.localised, cd.drift, cd.cmap, cd.finetune, cd.transfer]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda function: function.__name__)
def test_a_public_call_shows_all_its_keys_to_help_and_completion(function):
    parameters = inspect.signature(function).parameters
    assert {"memory", "progress", "seed"} <= set(parameters)
    assert not any(parameter.name == "options" for parameter in parameters.values())
    text = inspect.getdoc(function) or ""
    assert all(f"{name}:" in text or f"{name}, " in text for name in parameters if name not in ("model", "task"))
