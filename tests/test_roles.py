"""Named positions: filled templates, offsets, padding."""

import pytest

from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.tasks import Example, collate, fill, position_of, role_names


def example(length=6, **roles):
    return Example(tuple(range(1, length + 1)), None, (length - 1,), ((0,),), ((),), roles=roles)


def test_a_filled_template_knows_where_its_words_stand():
    filled = fill("When {io} and{s1} met, {_place}", io="Mary", s1=" John", _place="here")
    assert filled.text == "When Mary and John met, here"
    assert {role: filled.text[slice(*span)] for role, span in filled.roles.items()} == {"io": "Mary", "s1": "John"}


@pytest.mark.parametrize(
    ("position", "index"),
    [("s2", 2), ("s2+1", 3), ("s2-2", 0), ("end", 5), ("last", 5), ("end-1", 4), ("first", 0), (3, 3), (-1, 5), ("-2", 4)],
)
def test_positions_by_name_offset_and_index(position, index):
    assert position_of(example(s2=2), position) == index


@pytest.mark.parametrize(
    ("position", "error", "words"),
    [("s3", UnknownName, "s2"), ("s2+9", BadTask, "outside"), (7, BadTask, "outside"), ("s2 + 1", BadSetting, "s2 + 1")],
)
def test_a_position_that_is_none_is_refused(position, error, words):
    with pytest.raises(error, match=words.replace("+", r"\+")):
        position_of(example(s2=2), position)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_moves_positions(side):
    batch = collate([example(6, s=2), example(4, s=1)], side)
    for name in ("s", "end", "s+1", "first"):
        found = batch.clean[[0, 1], batch.position(name)].tolist()
        assert found == [one.clean[position_of(one, name)] for one in batch.examples]


def test_common_roles():
    assert role_names([example(a=1, b=2), example(b=3)]) == ("b",)
