"""One reader for every record from outside: a file's schema is a dataclass, and `validate` fills it or says what is wrong.

The schema of a circuit, of scores, of a judgement's parts is the dataclass that the rest of the package works with; those of
files that are read as they are (a run's configuration, a ladder, a journal's lines) stand below. Numbers are finite and of
their own kind: no text is taken for a number, no number for a truth value.
"""

import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import AfterValidator, AllowInfNan, BeforeValidator, ConfigDict, Strict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from circuitdisc import __version__
from circuitdisc.errors import BadFile, CircuitdiscError, shown
from circuitdisc.files import read_json

T = TypeVar("T")

_PLAIN: dict[Any, Any] = {
    int: Annotated[int, Strict()],
    float: Annotated[float, Strict(), AllowInfNan(False)],
    bool: Annotated[bool, Strict()],
    str: Annotated[str, Strict()],
}

AnyFloat = Annotated[float, Strict()]
"""A number that may be infinite, as the logarithm of a probability may."""


def validate(
    kind: type[T], data: Any, where: str, *, error: type[CircuitdiscError] = BadFile, remedy: str = "", closed: bool = False
) -> T:
    """A record of this dataclass from plain JSON.

    Args:
        where: what messages call it, for example the file.
        error: the class of the error.
        remedy: what to do, for the end of the message.
        closed: a key that the schema does not know is an error, in this record and those inside it.

    Raises:
        CircuitdiscError: of the class `error`; the message names the first key that is wrong and what was expected.
    """
    try:
        return _adapter(kind, closed).validate_python(data)
    except ValidationError as problem:
        raise error(f"{where}: {_sentence(problem)}{f': {remedy}' if remedy else ''}") from None


def validate_fields(kind: type, names: Sequence[str], data: Any, where: str) -> dict[str, Any]:
    """Some fields of a dataclass from plain JSON, by name.

    Raises:
        BadFile: the message names the first key that is wrong and what was expected.
    """
    try:
        return TypeAdapter(_table(kind, tuple(names), False)).validate_python(data)
    except ValidationError as problem:
        raise BadFile(f"{where}: {_sentence(problem)}") from None


def read_record(kind: type[T], path: Path, *, remedy: str = "") -> T:
    """A record of this dataclass from a JSON file.

    Raises:
        BadFile: the file is missing or not JSON, or a key of it is wrong.
    """
    return validate(kind, read_json(path), str(path), remedy=remedy)


def check_format(data: Any, format: str, where: str, version: int = 1) -> None:
    """The two keys that say what a file is.

    Raises:
        BadFile: it is something else, or of a version that is not known here.
    """
    given = data.get("format") if isinstance(data, Mapping) else None
    if given != format:
        raise BadFile(f"{where}: format is {shown(given)}, {format!r} was expected")
    if data.get("version") != version:
        raise BadFile(
            f"{where}: it is of version {shown(data.get('version'))} of {format}, which circuitdisc {__version__} "
            "cannot read: update it"
        )


_UNION_LABEL = re.compile(r"str|int|float|bool|.*[\[-].*[\]]")
"""What pydantic puts into a place beside the keys: which kind of several it tried."""


def _sentence(problem: ValidationError) -> str:
    """The first of the errors: which key, what it holds, and what was expected."""
    first = problem.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not _UNION_LABEL.fullmatch(str(part)))
    more = f" (and {problem.error_count() - 1:,} more)" if problem.error_count() > 1 else ""
    if first["type"] == "missing":
        return f"the key '{key}' is missing{more}"
    if first["type"] == "extra_forbidden":
        return f"the key '{key}' is not known{more}"
    wanted = first["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    return f"{f'{key!r} is' if key else 'it is'} {shown(first['input'])}, and {wanted[0].lower()}{wanted[1:]}{more}"


# --- a dataclass as a schema ------------------------------------------------------------------------------------------------


@cache
def _adapter(kind: Any, closed: bool) -> TypeAdapter[Any]:
    return TypeAdapter(_schema(kind, closed))


@cache
def _schema(kind: Any, closed: bool) -> Any:
    """What pydantic checks for a type of a field; dataclasses are filled, arrays made."""
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, inside = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _schema_of_dataclass(kind, closed)
    if origin is types.UnionType:
        return reduce(
            or_, [kind_inside if kind_inside is type(None) else _schema(kind_inside, closed) for kind_inside in inside]
        )
    if origin is tuple:
        return tuple[tuple(kind_inside if kind_inside is ... else _schema(kind_inside, closed) for kind_inside in inside)]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return dict[_schema(inside[0], closed), _schema(inside[1], closed)]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return list[_schema(inside[0], closed)]
    if getattr(kind, "array_type", None) is np.ndarray:
        return Annotated[Any, BeforeValidator(lambda data: _array(kind, data))]
    return kind


def _schema_of_dataclass(kind: Any, closed: bool) -> Any:
    table = _table(kind, tuple(part.name for part in fields(kind)), closed)
    return Annotated[table, AfterValidator(lambda given: kind(**given))]


@cache
def _table(kind: Any, names: tuple[str, ...], closed: bool) -> Any:
    """What pydantic checks for these fields of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    keys = {
        part.name: _schema(hints[part.name], closed)
        if part.name in getattr(kind, "NEEDED", ()) or (part.default is MISSING and part.default_factory is MISSING)
        else NotRequired[_schema(hints[part.name], closed)]
        for part in fields(kind)
        if part.name in names
    }
    table: Any = TypedDict(kind.__name__, keys)  # pyright: ignore[reportArgumentType] - made at run time
    table.__pydantic_config__ = ConfigDict(extra="forbid" if closed and not getattr(kind, "OPEN", False) else "ignore")
    return table


def _array(kind: Any, data: Any) -> np.ndarray:
    """Nested lists of numbers as an array of the dimensions that jaxtyping names; None becomes NaN."""
    wanted = f"it should be {len(kind.dims)} lists in each other, of {'truth values' if 'bool' in kind.dtypes else 'numbers'}"
    try:
        raw = np.asarray(data, dtype=object)
        kinds = (bool, np.bool_) if "bool" in kind.dtypes else (int, float, type(None))
        right = all(
            isinstance(item, kinds) and isinstance(item, bool | np.bool_) == ("bool" in kind.dtypes) for item in raw.flat
        )
        made = raw.astype(bool if "bool" in kind.dtypes else np.float64) if right else None
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(wanted) from error
    if made is None or (made.ndim != len(kind.dims) and made.size > 0) or made.ndim > len(kind.dims):
        raise ValueError(wanted)
    return made


# --- files that are read as they are ------------------------------------------------------------------------------------------


def _named(section: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(section.get("name"), str):
        raise ValueError("it should have a 'name' that is a word")
    return section


Named = Annotated[dict[str, Any], AfterValidator(_named)]
"""A section whose other keys belong to what it names: a task's or an algorithm's settings."""


@dataclass
class ModelSection:
    """Section `model` of a run's configuration."""

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    split_embeddings: bool = False
    exact_norm: bool = False
    components: str = "auto"
    parallel: dict[str, Any] | None = None


@dataclass
class AblationSection:
    """Section `ablation`; its other keys belong to the kind."""

    kind: str
    scope: str = "group"
    prompts: str = "clean"
    target: str = "output"

    OPEN = True


@dataclass
class MetricSection:
    """Section `metric`."""

    name: str | None = None


@dataclass
class ScoringSection:
    """Section `scoring`."""

    n_random: int | Literal["auto"] = "auto"
    confidence: float = 0.95


@dataclass
class Sections:
    """Settings of a command, those of them that it has; None leaves the choice to what it works on."""

    model: ModelSection = field(default_factory=lambda: ModelSection(""))
    task: Named = field(default_factory=dict)
    algorithm: Named = field(default_factory=dict)
    ablation: AblationSection = field(default_factory=lambda: AblationSection(""))
    metric: MetricSection = field(default_factory=MetricSection)
    scoring: ScoringSection = field(default_factory=ScoringSection)
    seed: int | None = None
    memory: str | int | None = None
    progress: bool = True


@dataclass
class RunConfig(Sections):
    """config.json in a run's folder."""

    allow_chance: bool = False
    explorer: bool = False
    stability: int = 0
    command: str = ""
    started: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    NEEDED = ("model", "task", "algorithm", "ablation", "metric", "scoring", "seed", "memory", "allow_chance")


@dataclass
class TransferSettings:
    """`settings` in config.json of a transfer's folder."""

    checkpoints: list[str]
    task: Named
    algorithm: str
    algorithm_settings: dict[str, Any]
    circuits: dict[str, dict[str, Any]] | None
    joint: list[str]
    joint_of_those_that_do_it: bool
    donor: list[tuple[str, str]]
    donors_that_do_it: bool
    ablation: AblationSection
    metric: str | None
    allow_chance: bool | list[str]
    n_random: int
    confidence: float
    model: dict[str, Any]
    seed: int
    memory: str | int


@dataclass
class RungName:
    """A rung in ladder.json, as far as other commands read it."""

    name: str


@dataclass
class LadderFile:
    """ladder.json in the folder of a ladder of checkpoints."""

    format: Literal["circuitdisc.ladder"]
    base: str
    rungs: list[RungName]
    settings: dict[str, Any] = field(default_factory=dict)
    identity: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)


CostFile = dict[str, float | str]
"""cost.json of a run."""


@dataclass
class GroupsFile:
    """groups.json of a run: what a reader named and pinned in its page."""

    format: Literal["circuitdisc.groups"]
    version: Literal[1]
    groups: dict[str, list[str]] = field(default_factory=dict)
    pinned: list[str] = field(default_factory=list)


@dataclass
class StabilitySettings:
    """How a stability was measured, as far as its page says it."""

    algorithm: str
    metric: str
    ablation: AblationSection
    drawn: Literal["examples", "groups"] = "examples"
    n_drawn: int | None = None
    reruns: bool = True
    frozen: bool = False


@dataclass
class StabilityRow:
    """A line of a stability's table, but for the keys that are two words."""

    of: Literal["edges", "heads"]
    Jaccard: float
    low: float | None
    high: float | None
    stable: bool
    n: int


@dataclass
class StabilityFile:
    """stability.json of a run."""

    table: list[StabilityRow]
    shares: dict[Literal["edges", "heads"], dict[str, float]]
    n: int
    n_examples: int
    confidence: float
    settings: StabilitySettings
    random: dict[Literal["edges", "heads"], float] = field(default_factory=dict)


@dataclass
class CertifiedEdge:
    """A line of a certificate's table."""

    edge: str
    kept: bool
    share: float
    low: float
    high: float
    label: Literal["in", "out", "abstained"]
    deletions: int


@dataclass
class CertificateFile:
    """certify.json of a run."""

    table: list[CertifiedEdge]
    counts: dict[Literal["circuit", "others"], dict[Literal["in", "out", "abstained"], int]]
    never: dict[str, int | float | str]
    n: int
    n_needed: int
    n_for_one: int
    delete: float
    confidence: float
    units: Literal["examples", "groups"]
    n_units: int
    n_examples: int
    reruns: bool
    frozen: bool
    forwards: float
    random: float | None
    settings: StabilitySettings
