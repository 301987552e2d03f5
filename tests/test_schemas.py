"""Files are read whole and bounded, and a record is either what its schema says or a sentence that names the key."""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from jaxtyping import Bool, Float

from circuitdisc.discovery.lines import LINES, check_lines
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.errors import MOST_CHARACTERS, BadFile, BadRun, CircuitdiscError, UnknownName, shorten, shown, tidy
from circuitdisc.files import parse_json, read_arrays, read_bytes, read_json, read_text, read_yaml, size_words
from circuitdisc.graph import ComputationGraph
from circuitdisc.schemas import check_format, validate

# --- records --------------------------------------------------------------------------------------------------------------


@dataclass
class Inner:
    n: int
    share: float
    word: str = "x"


@dataclass
class Record:
    rows: tuple[Inner, ...]
    by: Literal["head", "edge"]
    means: dict[str, float]
    low: float | None
    flags: Bool[np.ndarray, "N"]
    values: Float[np.ndarray, "N M"]
    names: tuple[str, ...] = ()
    memory: str | int = "4GiB"
    free: dict[str, Any] = field(default_factory=dict)


GOOD: dict[str, Any] = {
    "rows": [{"n": 1, "share": 0.5}, {"n": 2, "share": 1, "word": "y"}], "by": "head", "means": {"full": 1.0}, "low": None,
    "flags": [True, False], "values": [[1, 2.5], [None, 0]],
}  # fmt: skip


def test_a_record_is_filled():
    made = validate(Record, json.loads(json.dumps(GOOD)), "a file")
    assert made.rows == (Inner(1, 0.5), Inner(2, 1, "y"))
    assert (made.by, made.means, made.low, made.names, made.memory) == ("head", {"full": 1.0}, None, (), "4GiB")
    np.testing.assert_array_equal(made.flags, [True, False])
    np.testing.assert_array_equal(made.values, [[1, 2.5], [math.nan, 0]])
    assert validate(Record, {**GOOD, "more": 1}, "a file").by == "head"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rows": 3}, "'rows' is 3"),
        ({"rows": [{"n": 1}]}, "the key 'rows.0.share' is missing"),
        ({"rows": [{"n": True, "share": 1}]}, "'rows.0.n' is True, and it should be a valid integer"),
        ({"rows": [{"n": 1.5, "share": 1}]}, "'rows.0.n' is 1.5"),
        ({"rows": [{"n": "1", "share": 1}]}, "'rows.0.n' is '1'"),
        ({"rows": [{"n": 1, "share": "0.5"}]}, "'rows.0.share' is '0.5', and it should be a valid number"),
        ({"rows": [{"n": 1, "share": math.nan}]}, "'rows.0.share' is nan, and it should be a finite number"),
        ({"rows": [{"n": 1, "share": True}]}, "'rows.0.share' is True"),
        ({"by": "node"}, "'by' is 'node', and it should be 'head' or 'edge'"),
        ({"means": {"full": "1"}}, "'means.full' is '1'"),
        ({"low": "1"}, "'low' is '1'"),
        ({"flags": [1, 0]}, "'flags' is [1, 0], and it should be 1 lists in each other, of truth values"),
        ({"values": [[1, True]]}, "of numbers"),
        ({"values": [[1], [1, 2]]}, "2 lists in each other"),
        ({"values": [1, 2]}, "2 lists in each other"),
        ({"values": [["1"]]}, "of numbers"),
        ({"names": "abc"}, "'names' is 'abc'"),
        ({"memory": 1.5}, "'memory' is 1.5"),
        ({"by": "x" * 3000}, "'by' is 'xxx"),
    ],
)
def test_what_is_wrong_is_named(changes, says):
    with pytest.raises(BadFile) as caught:
        validate(Record, {**GOOD, **changes}, "runs/a/b.json", remedy="make it again")
    sentence = str(caught.value)
    assert says in sentence
    assert sentence.startswith("runs/a/b.json: ")
    assert sentence.endswith(": make it again")
    assert len(sentence) < 300


@pytest.mark.parametrize("data", [None, 3, "x", [], [GOOD], True])
def test_what_is_no_record_at_all(data):
    with pytest.raises(BadFile, match="a file: it is"):
        validate(Record, data, "a file")


def test_a_closed_record_has_no_more_keys():
    for data in ({**GOOD, "more": 1}, {**GOOD, "rows": [{"n": 1, "share": 1, "more": 1}]}):
        with pytest.raises(BadRun, match=r"'(rows\.0\.)?more' is not known"):
            validate(Record, data, "a file", error=BadRun, closed=True)


def test_the_graph_of_a_file_is_whole():
    whole = ComputationGraph(2, 3, has_mlp=False).to_dict()
    assert validate(ComputationGraph, whole, "a file") == ComputationGraph(2, 3, has_mlp=False)
    for name in whole:
        with pytest.raises(BadFile, match=f"'{name}' is missing"):
            validate(ComputationGraph, {key: value for key, value in whole.items() if key != name}, "a file")


def test_another_format_or_version():
    check_format({"format": "a", "version": 1}, "a", "x")
    for data in (None, [], {}, {"format": "b", "version": 1}, {"format": []}):
        with pytest.raises(BadFile, match="'a' was expected"):
            check_format(data, "a", "x")
    for version in (2, None, "1", [1]):
        with pytest.raises(BadFile, match="update it"):
            check_format({"format": "a", "version": version}, "a", "x")


# --- a journal's lines ----------------------------------------------------------------------------------------------------


def test_a_journal_of_another_algorithm_is_refused():
    graph = ComputationGraph(1, 2)
    lines: dict[str, dict[str, Any]] = {
        "dead": {"dead": "m0", "edges": 3},
        "edge": {"edge": "input->logits", "kept": True, "metric": 1, "score": 0.5},
        "head": {"head": "a0.h1", "layer": 0, "kept": False, "metric": [1.0, 2.0]},
        "step": {"step": 50, "loss": 0.5, "edges": 3.5},
        "round": {"round": "a", "plan": {}, "receivers": [], "found": ["a0.h0"], "effects": {}},
        "ranking": {"ranking": "eap", "checksum": 3},
        "start": {"start": "full model", "metric": math.inf, "checksum": 3},
        "flips": {"flips": "logits", "values": {"input": 0.5, "m0": math.inf}},
        "added": {"added": ["input->logits"], "metric": 0.1},
        "size": {"size": 3, "metric": 0.1, "share": 0.5},
        "target": {"target": 0.5, "size": 3, "low": 2, "high": 4, "edges": 3, "share": 0.5, "repair": "none"},
        "group": {"group": 3, "kept": True, "metric": 0.1},
    }
    for algorithm, kinds in LINES.items():
        assert algorithm in ALGORITHMS
        for key, line in lines.items():
            if key in kinds:
                check_lines(algorithm, graph, [line])
            else:
                with pytest.raises(BadRun, match="decision 1"):
                    check_lines(algorithm, graph, [line])
    check_lines("somebody's own", graph, [{"x": 1}])


def test_a_line_with_a_name_of_another_graph():
    graph = ComputationGraph(1, 2)
    good = {"edge": "input->logits", "kept": True, "metric": 1.0}
    for algorithm, line in (
        ("acdc", {"edge": "input->a9.h9<q>", "kept": True, "metric": 1.0}),
        ("acdc", {"dead": "a9.h9<q>", "edges": 1}),
        ("head_ablation", {"head": "m0", "layer": 0, "kept": True, "metric": 1.0}),
    ):
        with pytest.raises(BadRun, match=r"j\.jsonl, decision [12]: .*(graph)"):
            check_lines(algorithm, graph, [*([good] if algorithm == "acdc" else []), line], "j.jsonl")


# --- files ----------------------------------------------------------------------------------------------------------------


def test_only_regular_files_within_their_size_are_read(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(BadFile, match=r"has 5 bytes, more than the 4 bytes"):
        read_bytes(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "link") == b"12345"
    for name, kind in (("pipe", "a pipe"), ("zero", "a device"), (".", "a folder")):
        with pytest.raises(BadFile, match=f"it is {kind}, not a file"):
            read_bytes(tmp_path / name)
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    with pytest.raises(BadFile, match=r"has 1,024 GiB, more than the 128 MiB"):
        read_text(tmp_path / "huge")
    for name in ("nowhere", "a\x00b", "x" * 5000):
        with pytest.raises(BadFile, match="cannot read"):
            read_bytes(tmp_path / name)
    with pytest.raises(BadFile, match="grown"):
        read_bytes(Path("/proc/self/status"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "nested too deeply"), ('{"a": ' + "9" * 6000 + "}", "too many digits"),
        ('"\\ud800"', "half a character"), ('{"a": 1', "cut short"), ("", "not JSON"),
    ],
)  # fmt: skip
def test_json_that_python_cannot_read(text, says):
    with pytest.raises(BadFile, match=f"a file .*{says}"):
        parse_json(text, "a file")


def test_json_of_many_values(tmp_path: Path):
    (tmp_path / "a.json").write_text("[" + "0," * 6_000_000 + "0]")
    with pytest.raises(BadFile, match="holds 6,000,001 values or more"):
        read_json(tmp_path / "a.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_json_is_read_as_python_reads_it(value):
    text = json.dumps(value)
    assert repr(parse_json(text, "x")) == repr(json.loads(text))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
@settings(deadline=None)
def test_yaml_is_read_as_its_library_reads_it(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"

    class NoAliases(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    path.write_text(yaml.dump(value, Dumper=NoAliases))
    if path.stat().st_size < 2**17:
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 20_000, "nested too deeply"), ("a: &x [1]\nb: *x", "alias"), ("a: 2001-99-99", "cannot be read"),
        ("a: [", "not YAML"), ("!!python/object/apply:os.getcwd []", "not YAML"), ("x" * 200_000, "more than the 128 KiB"),
    ],
)  # fmt: skip
def test_yaml_that_is_not_plain(tmp_path, text, says):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadFile, match=says):
        read_yaml(tmp_path / "a.yaml")


numbers = arrays_of.arrays(
    st.sampled_from([np.float64, np.float32, np.int64, np.bool_, np.uint8]),
    arrays_of.array_shapes(min_dims=0, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), numbers, max_size=3), st.booleans())
@settings(deadline=None)
def test_arrays_are_read_as_numpy_reads_them(tmp_path_factory, given_arrays, fortran):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    save: Any = np.savez_compressed
    save(path, **{name: np.asfortranarray(one) if fortran else one for name, one in given_arrays.items()})
    made = read_arrays(path)
    with np.load(path) as file:
        assert set(made) == set(file)
        for name, array in file.items():
            assert (made[name].dtype, made[name].shape) == (array.dtype, array.shape)
            np.testing.assert_array_equal(made[name], array)
            assert made[name].flags.writeable


def test_arrays_are_bounded_before_they_are_unpacked(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10**6))
    assert read_arrays(tmp_path / "a.npz")["a"].shape == (10**6,)
    with pytest.raises(BadFile, match=r"unpacks to 7\.63 MiB, more than the 1 MiB"):
        read_arrays(tmp_path / "a.npz", most=2**20)


# --- messages -------------------------------------------------------------------------------------------------------------


@given(st.text() | st.binary() | st.integers() | json_values)
def test_an_echoed_value_is_short(value):
    assert len(shown(value)) <= 120


def test_a_long_value_is_not_echoed_whole():
    assert len(shown("x" * 3000)) < 70
    assert len(shown(10**5000)) < 70
    assert len(shown([["x" * 100] * 100] * 100)) <= 120
    for error in (CircuitdiscError("a " * 3000), BadRun("b" * 3000), UnknownName("task", "c" * 3000, ["d" * 3000] * 100)):
        assert len(str(error)) <= MOST_CHARACTERS


@given(st.text(), st.integers(30, 600))
def test_shortening_keeps_both_ends(text, most):
    short = shorten(text, most)
    assert len(short) <= most
    assert short == text or len(text) > most
    assert short[:10] == text[:10]
    assert short[-10:] == text[-10:]


def test_a_message_has_no_control_characters():
    assert tidy("a\x1b[31mb\x00c\nd") == "a\\x1b[31mb\\x00c\nd"
    assert str(BadRun("größe → 1")) == "größe → 1"


@pytest.mark.parametrize(
    ("size", "words"),
    [(1, "1 byte"), (96, "96 bytes"), (2**10, "1 KiB"), (14 * 2**20, "14 MiB"), (3.2 * 2**30, "3.2 GiB"), (2**40, "1,024 GiB")],
)
def test_sizes_say_something(size, words):
    assert size_words(size) == words
