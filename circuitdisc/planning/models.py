"""The model of a plan: loaded where its weights are here and fit, else its shapes alone, on torch's meta device."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from circuitdisc.checks import Whole
from circuitdisc.engine.selfcheck import load_model
from circuitdisc.errors import BadFile, BadModel, BadSetting
from circuitdisc.models.gguf import is_gguf
from circuitdisc.models.load import DTYPES, cut_hugging_face
from circuitdisc.models.model import Model
from circuitdisc.models.places import Place, find_place
from circuitdisc.models.pretrained import empty_model
from circuitdisc.models.stored import WEIGHTS, read_config, weight_files
from circuitdisc.planning.sizes import machine_memory
from circuitdisc.tasks.base import Example, Task

MOST_TENSORS = 2**16
"""Of a model whose weights are not here, in place of the number in its files."""
ROOM = 0.8
"""Share of the machine's memory that weights may take before only the shapes are looked at."""


def open_model(name: str, *, measure: bool = True, **settings: Any) -> Model:
    """A model for a plan.

    Args:
        name: as `load_model` takes it; of a folder config.json is enough.
        measure: False never reads weights.
        settings: of `load_model`.

    Returns:
        The model; its weights are on the meta device where they are not here, do not fit in this machine's memory, or are not
        asked for.

    Raises:
        CircuitdiscError: as `load_model`, but for missing weights.
    """
    place = find_place(str(name))
    if _is_toy(place) or (measure and _can_be_read(place, str(settings.get("dtype", "float32")))):
        return load_model(name, **settings)
    if place.adapter is not None:
        raise BadSetting(f"{name}: plan the base alone; a merged adapter changes no shape")
    dtype = settings.get("dtype", "float32")
    if dtype not in DTYPES:
        return load_model(name, **settings)  # it refuses the name
    module = empty_model(place.config(), MOST_TENSORS, place.path or Path(place.name)).to(DTYPES[dtype])
    split = settings.get("split_embeddings", False)
    try:
        model = cut_hugging_face(module, place.tokenizer(), name=str(name), split_embeddings=split, components="fast")
    except NotImplementedError as error:  # a family that looks at its weights' values
        raise BadModel(f"{name} cannot be planned from its shapes alone: load it where its weights are") from error
    return replace(model, name=str(name))


def has_weights(model: Model) -> bool:
    """Whether it can be run."""
    return model.device.type != "meta"


def _is_toy(place: Place) -> bool:
    """Small models in TransformerLens names, which are always loaded."""
    return place.path is not None and not is_gguf(place.path) and "model_type" not in read_config(place.path)


def _can_be_read(place: Place, dtype: str) -> bool:
    """Whether all weights are in files here, and fit in memory; nothing is downloaded for a plan."""
    if (path := place.path or _cached(place)) is None:
        return False
    try:
        files = [path] if is_gguf(path) else weight_files(path)
    except BadFile:
        if place.path is not None and ((path / WEIGHTS).exists() or any(path.glob("*.safetensors*"))):
            raise  # they are here, and something is wrong with them
        return False
    wide = max(1.0, DTYPES[dtype].itemsize / 2) if dtype in DTYPES else 1.0  # files hold 16 bits a weight, as a rule
    return sum(file.stat().st_size for file in files) * wide < ROOM * machine_memory("cpu")


def _cached(place: Place) -> Path | None:
    """The folder of the hub's cache that has a model's configuration, and what else of it was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = place.hub
    at = {} if revision is None else {"revision": revision}
    config = try_to_load_from_cache(name, "config.json", **at)
    return Path(config).parent if isinstance(config, str) else None


def prompts_of_length(model: Model, n: int, n_heldout: int, length: int, seed: int) -> Task:
    """Random prompts, where no tokenizer can make the task's: for counts, memory and time, and nothing else.

    Raises:
        BadSetting: it is no length, or the model takes no prompts so long.
    """
    Whole(1, 2**31 - 1).check("length", length)
    if length > model.n_ctx:
        raise BadSetting(f"length={length} is more than the {model.n_ctx:,} tokens that {model.name} takes")
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, model.d_vocab, (2, n + n_heldout, length))
    tokens[1, :, 0] = tokens[0, :, 0]
    answers = rng.integers(0, model.d_vocab_out, (n + n_heldout, 2)).tolist()
    examples = [
        Example(tuple(clean), tuple(corrupted), (length - 1,), ((right,),), ((wrong,),))
        for clean, corrupted, (right, wrong) in zip(tokens[0].tolist(), tokens[1].tolist(), answers, strict=True)
    ]
    return Task(f"random prompts of {length} tokens", tuple(examples[:n]), tuple(examples[n:]))
