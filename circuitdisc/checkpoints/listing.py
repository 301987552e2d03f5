"""The checkpoints that a command is given: names, folders, patterns and ladders, checked before any weights are read.

    names = read_checkpoints(["tpp/base", "tpp/lightweight"])    # shipped names, folders or hub names
    names = read_checkpoints("runs/mine")                        # a ladder of `circuitdisc finetune`: its base, then its rungs
    names = read_checkpoints("runs/mine/10pct/step-*")           # folders in the order of their numbers

What they must share is read from config.json and the tokenizer's files: architecture, sizes, vocabulary. A ladder's folder
holds one folder a rung and ladder.json, which names them in order.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from circuitdisc.engine.selfcheck import load_model
from circuitdisc.errors import BadFile, BadModel, BadSetting
from circuitdisc.models.adapters import read_adapter
from circuitdisc.models.gguf import is_gguf
from circuitdisc.models.model import Model
from circuitdisc.models.places import Place, find_place, local_path
from circuitdisc.models.stored import ADAPTER, read_config, weight_files
from circuitdisc.models.toy import ToyConfig
from circuitdisc.schemas import LadderFile, read_record
from circuitdisc.shipped import shipped_models
from circuitdisc.tasks.base import Example

LADDER = "ladder.json"
HINT = "Give shipped names, folders with config.json, folders of ladders, .gguf files, or Hugging Face names."
LADDER_FORMAT = "circuitdisc.ladder"
SIZES = (  # of a Hugging Face configuration; a family without one of them has None in all its checkpoints
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "head_dim",
    "intermediate_size",
    "vocab_size",
)
TOY_SIZES = ("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "attn_only", "d_vocab", "d_vocab_out")


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, not loaded.

    Args:
        name: as `load_model` takes it.
        place: where its files are.
        sizes: what decides its graph and its vocabulary, from its configuration.
    """

    name: str
    place: Place
    sizes: Mapping[str, Any]

    def tokenizer(self) -> Any:
        """Its tokenizer, without the weights; None if it has none.

        Raises:
            BadFile: its files cannot be read.
        """
        return self.place.tokenizer()


def read_checkpoints(
    names: str | Path | Sequence[str | Path], *, least: int = 1, what: str = "this", same: bool = True
) -> list[str]:
    """The names of checkpoints, in order, as `load_model` takes them; all are there and fit together.

    Args:
        names: shipped names, folders, hub names, patterns of folders (`OUT/10pct/step-*`), or folders of ladders, each of which
            stands for its base and its rungs. One may stand alone.
        least: fewest that make sense.
        what: what needs so many, for the message.
        same: check that they share an architecture, a vocabulary and a tokenizer.

    Raises:
        UnknownName: a name is neither shipped, a folder nor a hub name.
        BadFile: a file of a checkpoint or of a ladder is missing or malformed.
        BadSetting: there are too few, or one is named twice.
        BadModel: they do not fit together.
    """
    given = [names] if isinstance(names, str | Path) else list(names)
    expanded = [name for entry in given for name in _expand(str(entry))]
    if twice := next((name for name in expanded if expanded.count(name) > 1), None):
        raise BadSetting(f"the checkpoint {twice} is named twice: name each once")
    if len(expanded) < least:
        raise BadSetting(
            f"{what} needs at least {least} checkpoint{'s' if least > 1 else ''}, not {len(expanded)}: "
            "give them as checkpoints=[tpp/base,tpp/lightweight], or the folder of a ladder"
        )
    checkpoints = [find_checkpoint(name) for name in expanded]
    if same:
        check_same(checkpoints)
    return expanded


def find_checkpoint(name: str | Path) -> Checkpoint:
    """A checkpoint by name, with its files seen to be there and its sizes read.

    Raises:
        UnknownName, BadFile: as `read_checkpoints`.
    """
    name = str(name)
    place = find_place(name, "checkpoint", HINT)
    if (adapter := place.adapter_files()) is not None:
        read_adapter(adapter)
    folder = place.path
    if folder is None or is_gguf(folder):
        return Checkpoint(name, place, _sizes(place.config()))
    if not (folder / "config.json").is_file() and not (folder / ADAPTER).is_file():
        hint = f" (it holds {LADDER}: leave out the slash and what follows)" if (folder.parent / LADDER).is_file() else ""
        raise BadFile(f"the checkpoint {name} has no config.json: it is not, or not yet, a checkpoint{hint}")
    config = read_config(folder)
    weight_files(folder)
    if "model_type" not in config:
        ToyConfig.from_dict(config)
        return Checkpoint(name, place, {size: config.get(size) for size in TOY_SIZES})
    return Checkpoint(name, place, _sizes(place.config()))


def load(checkpoint: Checkpoint | str, **settings: Any) -> Model:
    """Load one checkpoint, as `load_model` does."""
    return load_model(checkpoint.name if isinstance(checkpoint, Checkpoint) else checkpoint, **settings)


# --- what they share ------------------------------------------------------------------------------------------------------


def check_same(checkpoints: Sequence[Checkpoint | Model | str | PathLike[str]]) -> None:
    """Architecture, sizes and vocabulary of all are those of the first. Weights are not read.

    Tokens are compared where both have a tokenizer: every token of one has the same number in the other.

    Args:
        checkpoints: not loaded, or loaded models: of two models the graphs are compared.

    Raises:
        BadModel: one differs; the message says in what.
    """
    rest = [each if isinstance(each, Checkpoint | Model) else find_checkpoint(str(each)) for each in checkpoints]
    if len(rest) < 2:
        return
    first = rest[0]
    for other in rest[1:]:
        if isinstance(first, Model) and isinstance(other, Model) and first.graph != other.graph:
            raise BadModel(
                f"{first.name} has {first.graph.describe()} and {other.name} {other.graph.describe()}: "
                "checkpoints must share one architecture"
            )
        mine, theirs = _sizes_of(first), _sizes_of(other)
        different = [size for size in mine if size in theirs and mine[size] != theirs[size]]
        if different or not mine.keys() & theirs.keys():
            words = ", ".join(f"{size} {mine[size]} and {theirs[size]}" for size in different) or "another kind of file"
            raise BadModel(
                f"{first.name} and {other.name} differ ({words}): checkpoints must share one architecture and one vocabulary"
            )
    _check_vocabularies(rest)


def check_prompts(checkpoints: Sequence[Checkpoint | Model | str], examples: Sequence[Example]) -> None:
    """Every tokenizer reads the examples' texts as the first one does, and has the same words for their answers.

    Args:
        checkpoints: those without a tokenizer are passed over.
        examples: examples of a task; those without a text count with their answers alone.

    Raises:
        BadModel: a checkpoint reads one of them otherwise; the message shows it.
    """
    texts = list(dict.fromkeys(example.text for example in examples if example.text))
    tokens = sorted({token for example in examples for right in (*example.answers, *example.wrong) for token in right})
    first: tuple[str, list[list[int]], list[str]] | None = None
    for checkpoint in checkpoints:
        checkpoint = find_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
        tokenizer = checkpoint.tokenizer if isinstance(checkpoint, Model) else checkpoint.tokenizer()
        if tokenizer is None:
            continue
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        words = tokenizer.convert_ids_to_tokens(tokens)
        if first is None:
            first = checkpoint.name, ids, words
            continue
        odd = next((text for text, mine, theirs in zip(texts, first[1], ids, strict=True) if mine != theirs), None)
        odd = odd or next((str(mine) for mine, theirs in zip(first[2], words, strict=True) if mine != theirs), None)
        if odd is not None:
            raise BadModel(
                f"the tokenizers of {first[0]} and {checkpoint.name} read {odd[:60]!r} differently: "
                "checkpoints are compared on the same tokens, so they must share a tokenizer"
            )


def _check_vocabularies(checkpoints: Sequence[Checkpoint | Model]) -> None:
    first: tuple[str, dict[str, int]] | None = None
    for checkpoint in checkpoints:
        tokenizer = checkpoint.tokenizer if isinstance(checkpoint, Model) else checkpoint.tokenizer()
        if tokenizer is None:
            continue
        vocabulary = tokenizer.get_vocab()
        if first is None:
            first = checkpoint.name, vocabulary
            continue
        shared = first[1].keys() & vocabulary.keys()
        odd = next((token for token in sorted(shared) if first[1][token] != vocabulary[token]), None)
        if odd is not None or not shared:
            token = "no token" if odd is None else f"the token {odd!r} has another number"
            raise BadModel(
                f"the tokenizers of {first[0]} and {checkpoint.name} differ ({token} in both): they must share a tokenizer"
            )


def _sizes_of(checkpoint: Checkpoint | Model) -> Mapping[str, Any]:
    if isinstance(checkpoint, Checkpoint):
        return checkpoint.sizes
    config = getattr(checkpoint.module, "config", None)
    if hasattr(config, "model_type"):
        return _sizes(config)
    return {"n_layers": checkpoint.graph.n_layers, "n_heads": checkpoint.graph.n_heads, "d_vocab": checkpoint.d_vocab}


# --- files ----------------------------------------------------------------------------------------------------------------


def _expand(name: str) -> list[str]:
    """A ladder's base and rungs, the folders of a pattern, or the name itself."""
    if name in shipped_models():
        return [name]
    if "*" in name:
        return _matching(name)
    folder = local_path(name)
    return read_ladder(folder) if folder is not None and (folder / LADDER).is_file() else [name]


def _matching(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    root = Path(*path.parts[: next(at for at, part in enumerate(path.parts) if "*" in part)])
    matching = root.glob(str(path.relative_to(root)))
    folders = [str(match) for match in matching if (match / "config.json").is_file() or is_gguf(match)]
    if not folders:
        raise BadFile(f"no folder with a config.json and no .gguf file matches {pattern}")
    return sorted(folders, key=lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)])


def read_ladder(folder: Path) -> list[str]:
    """The base of a ladder and its rungs, in order.

    Raises:
        BadFile: ladder.json is malformed, or a rung's file is missing.
    """
    ladder = read_record(LadderFile, folder / LADDER, remedy="it is not a ladder of `circuitdisc finetune`")
    rungs = [rung.name for rung in ladder.rungs]
    for rung in rungs:
        if not (folder / rung / "config.json").is_file():
            raise BadFile(
                f"the ladder {folder} has no {rung}/config.json: the same `circuitdisc finetune` command with out={folder} "
                "makes what is missing, or name the finished checkpoints one by one"
            )
    return [ladder.base, *(str(folder / rung) for rung in rungs)]


def _sizes(config: Any) -> dict[str, Any]:
    return {size: getattr(config, size, None) for size in SIZES}
