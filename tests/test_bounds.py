"""Every numeric setting has bounds beside its function, and what lies outside them gets a sentence before anything runs."""

import inspect
import math
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
from examples import random_task
from hypothesis import given
from hypothesis import strategies as st
from models import model_of
from tiny import word_model

import circuitdisc as cd
from circuitdisc.ablation.registry import ABLATIONS, get_kind
from circuitdisc.checks import Bounds, Real, Whole, bounded, bounds_of, check_values, takes_none
from circuitdisc.discovery.registry import ALGORITHMS
from circuitdisc.engine.memory import parse_memory
from circuitdisc.errors import BadSetting, CircuitdiscError
from circuitdisc.schemas import ScoringSection
from circuitdisc.scoring.intervene import effects
from circuitdisc.tasks.registry import TASKS, load_task

# no settings with bounds of their own: sizes that parse_memory reads, and places in a prompt, which bounds them
PLACES = {
    "memory", "prompts", "positions", "query", "key", "keys", "at", "attend", "sender_positions", "receiver_positions",
    "rotate", "sizes", "device_memory",
}  # fmt: skip
OF_LOAD_TASK = {"n", "n_heldout", "seed"}


def functions() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Everything that takes settings from a user: algorithms, ablations, tasks, and what `import circuitdisc as cd` offers."""
    for name, algorithm in ALGORITHMS.items():
        yield f"algorithm {name}", algorithm.function
    for name in ABLATIONS:
        yield f"ablation {name}", get_kind(name).function.__init__
    for name, kind in TASKS.items():
        yield f"task {name}", kind.build
    for name in cd.__all__:
        found = getattr(cd, name)
        if inspect.isfunction(found):
            yield f"cd.{name}", found
    for room in ("heads", "known.siit", "known.compiled"):
        module = import_module(f"circuitdisc.{room}")
        for name in module.__all__:
            if inspect.isfunction(getattr(module, name)):
                yield f"cd.{room}.{name}", getattr(module, name)
    yield "scoring.intervene.effects", effects


FUNCTIONS = dict(functions())
BOUNDS = [(name, setting) for name, function in FUNCTIONS.items() for setting in bounds_of(function)]


def parts(annotation: Any) -> list[Any]:
    inside = get_args(annotation)
    return [annotation, *(one for part in inside for one in parts(part))]


def numeric(function: Callable[..., Any]) -> list[str]:
    """Keyword settings whose type has a number in it."""
    own = inspect.signature(function).parameters.values()
    return [one.name for one in own if {int, float} & {part for part in parts(one.annotation) if isinstance(part, type)}]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_numeric_setting_has_bounds(name):
    function = FUNCTIONS[name]
    exempt = PLACES | (OF_LOAD_TASK if name.startswith("task ") else set())
    exempt -= {"sizes"} if name.startswith("cd.heads") else set()
    assert set(numeric(function)) - exempt <= set(bounds_of(function))


@pytest.mark.parametrize(("name", "setting"), BOUNDS)
def test_what_lies_outside_gets_a_sentence(name, setting):
    function = FUNCTIONS[name]
    for bad in bounds_of(function)[setting].bad_values():
        with pytest.raises(BadSetting) as caught:
            check_values(function, {setting: bad})
        assert str(caught.value).startswith(f"{setting}="), bad
        assert 20 < len(str(caught.value)) < 300, bad
    if not takes_none(function, setting):
        with pytest.raises(BadSetting):
            check_values(function, {setting: None})


@pytest.mark.parametrize(("name", "setting"), BOUNDS)
def test_the_defaults_and_the_ends_lie_within(name, setting):
    function = FUNCTIONS[name]
    default = inspect.signature(function).parameters[setting].default
    bounds = bounds_of(function)[setting]
    inside = [] if default is inspect.Parameter.empty else [default]
    inside += [end for end, is_open in ends(bounds) if not is_open]
    for value in inside:
        checked = check_values(function, {setting: value})[setting]
        assert (list(checked) if isinstance(value, tuple) else checked) == (list(value) if isinstance(value, tuple) else value)


def ends(bounds: Bounds) -> list[tuple[float, bool]]:
    opened = (bounds.open_low, bounds.open_high) if isinstance(bounds, Real) else (False, False)
    return list(zip((bounds.low, bounds.high), opened, strict=True))


@given(st.floats() | st.integers(), st.floats(-5, 5), st.floats(-5, 5), st.booleans(), st.booleans())
def test_a_number_is_let_through_if_it_lies_within(value, low, high, open_low, open_high):
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    bounds = Real(low, high, open_low, open_high)
    if above and below and math.isfinite(value):
        assert bounds.check("x", value) == value
    else:
        with pytest.raises(BadSetting, match="x="):
            bounds.check("x", value)


def test_a_list_is_checked_one_by_one():
    assert Whole(1, 3, many=True).check("x", (1, 3)) == [1, 3]
    assert Whole(1, 3, many=True).check("x", 2) == 2
    for bad in ([1, 4], [1, "2"], [True], {"a": 1}, "12"):
        with pytest.raises(BadSetting):
            Whole(1, 3, many=True).check("x", bad)
    with pytest.raises(BadSetting):
        Whole(1, 3).check("x", [1])


def test_bounds_of_a_setting_that_is_not_there_are_a_mistake_of_ours():
    with pytest.raises(TypeError, match="no parameter y"):
        bounded(y=Whole(1, 2))(lambda x: x)


def test_a_call_is_checked_and_its_signature_stays():
    @bounded(n=Whole(1, 3))
    def triple(n: int, *, by: int | None = None) -> int:
        return 3 * n

    assert triple(2) == 6
    assert list(inspect.signature(triple).parameters) == ["n", "by"]
    for call in (lambda: triple(4), lambda: triple(n=0)):
        with pytest.raises(BadSetting, match="n="):
            call()


@pytest.fixture(scope="module")
def toy():
    model = model_of("layer_norm_gated")
    return model, random_task(model, 4)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_discover_refuses_before_it_computes(toy, algorithm, monkeypatch):
    model, task = toy
    monkeypatch.setattr("circuitdisc.discovery.registry.refuse_chance", lambda *_: pytest.fail("something was computed"))
    for setting, bounds in bounds_of(ALGORITHMS[algorithm].function).items():
        for bad in bounds.bad_values()[:4]:
            settings: dict[str, Any] = {setting: bad}
            with pytest.raises(BadSetting, match=f"{setting}="):
                cd.discover(model, task, algorithm, **settings)
    with pytest.raises(BadSetting, match="seed="):
        cd.discover(model, task, algorithm, seed=-1)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "file"])
def test_load_task_refuses_what_lies_outside(task):
    both = {**bounds_of(load_task), **bounds_of(TASKS[task].build)}
    for setting, bounds in both.items():
        for bad in bounds.bad_values():
            settings: dict[str, Any] = {setting: bad}
            with pytest.raises(CircuitdiscError, match=f"{setting}="):
                load_task(task, word_model(), **settings)


@pytest.mark.parametrize("memory", [0, -1, True, 1.5, None, "lots", "0", "9" * 400, 10**400, "1e9", "2000000GiB", "-1GiB", [1]])
def test_a_memory_that_is_no_size(memory):
    with pytest.raises(BadSetting, match=r"memory=.* is not a size") as caught:
        parse_memory(memory)
    assert len(str(caught.value)) < 200


def test_scoring_has_the_settings_of_score():
    """The section of a configuration and the function that takes it have the same settings and defaults."""
    defaults = {name: one.default for name, one in inspect.signature(cd.score).parameters.items()}
    assert {name: defaults[name] for name in vars(ScoringSection())} == vars(ScoringSection())


def test_the_settings_of_the_command_line_are_those_with_bounds():
    """Every number in conf/ is a setting that some function bounds."""
    from omegaconf import OmegaConf

    from circuitdisc.jobs.config import conf_dir

    known = {setting for function in FUNCTIONS.values() for setting in bounds_of(function)} | {"n_samples", "stability"}
    for path in sorted(Path(conf_dir()).rglob("*.yaml")):
        if "launcher" in path.parts or path.stem == "cells":
            continue
        written: Any = OmegaConf.to_container(OmegaConf.load(path))
        numbers = {name for name, value in written.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        numbers |= {
            name for name, value in written.items() if isinstance(value, list) and value and isinstance(value[0], float)
        }
        assert numbers <= known, path
