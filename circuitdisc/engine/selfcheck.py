"""The self-check (contract 1): the graph must be exactly the model, or the model is refused with the numbers.

It runs at load, and before the engine first uses a model that it does not know: a module in memory may do more than its weights
say, or have changed since it was wrapped. A model that was checked is checked again only when its module has changed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitdisc.ablation import Ablation
from circuitdisc.engine.backends import full_run, runner
from circuitdisc.engine.chunk import Chunk
from circuitdisc.engine.prepared import prepare
from circuitdisc.engine.ranks import run_together
from circuitdisc.errors import BadModel, BadSetting, CircuitdiscError
from circuitdisc.models.families import find_family, listed_families
from circuitdisc.models.in_memory import converted, model_in_memory
from circuitdisc.models.load import read_model
from circuitdisc.models.model import Model
from circuitdisc.models.own_run import is_bridge
from circuitdisc.models.parallel import Parallel
from circuitdisc.models.plain import check_finite
from circuitdisc.models.wording import first_line
from circuitdisc.tasks.base import Example, collate

# Largest difference accepted, relative to the largest value compared. Float64 models are held to float32's bound, since
# several families compute norms and softmaxes in float32 themselves.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 1e-1}
OWN = "full circuit against the model's own logits"
EXAMPLES_COMPARED = 4  # of a call, for modules that do something beside their weights


def load_model(model: Any = None, tokenizer: Any = None, *, name: str | None = None, **settings: Any) -> Model:
    """Load a model, or wrap one that is in memory, and check that its graph is exactly the model.

    Args:
        model: a name: a shipped one (`tpp/lightweight`), a folder, a .gguf file, a Hugging Face name (`gpt2`, or
            `org/name@step1000` for a revision), any of these with an adapter (`BASE+ADAPTER`). Or a model in memory: of Hugging
            Face or PEFT, a TransformerLens bridge, an nnsight `LanguageModel`, a `ToyTransformer`; it is left as it was.
        tokenizer: for a model in memory; of a name, it is taken in place of the one in its files.
        name: what results call it; None: the name that is given, and `local` for a model in memory. `name` alone is loaded.
        settings: `dtype`, `device`, `split_embeddings`, `components`, `exact_norm`, `parallel`; see
            `circuitdisc.models.read_model`. A model in memory is run in its own precision and where it is, if `dtype` and
            `device` are not given; else a copy is.

    Raises:
        UnknownName, BadFile, BadModel, BadSetting: as `read_model`; BadModel also if the self-check fails.
    """
    if model is None or isinstance(model, str | Path):
        loaded = read_model(name if model is None else model, accepts=is_the_module, **settings)
        loaded = replace(loaded, name=name or loaded.name, tokenizer=loaded.tokenizer if tokenizer is None else tokenizer)
        verify(loaded)
        return loaded
    if Parallel.of(settings.pop("parallel", None)) != Parallel():
        raise BadSetting("a model in memory is whole already: parallel= places models that are loaded by name or from a folder")
    place = {key: settings.pop(key, None) for key in ("dtype", "device")}
    name = name or "local"
    loaded = model_in_memory(model, tokenizer, name=name, accepts=is_the_module, **settings)
    verify(loaded)
    if any(place.values()):
        copied = converted(model, name, **place)
        loaded = model_in_memory(copied, loaded.tokenizer, name=name, accepts=is_the_module, **settings)
        verify(loaded)
    return loaded


def is_the_module(model: Model) -> bool:
    """Whether a cut model, by a guessed declaration, is its module."""
    try:
        verify(model)
    except BadModel:
        return False
    return True


def verify(model: Model, examples: Sequence[Example] = ()) -> None:
    """Check a model before it is used, unless it was checked and its module has not changed since.

    Args:
        examples: of the call. A module with hooks or adapters, which may act on some prompts alone, is compared on the first of
            them, too; one whose architecture was guessed on the longest.

    Raises:
        BadModel: the cut model is not the module.
    """
    run_together(model.n_processes)
    own = model.own_logits
    if not own.checked(model.backend):
        check_model(model)
        own.set_checked(model.backend)
    if examples and own.extras():
        _compare(model, {OWN: _against_own(model, examples[:EXAMPLES_COMPARED])})
    elif examples and model.guessed:  # a window, say, shows in long prompts alone
        _compare(model, {OWN: _against_own(model, sorted(examples, key=len)[-EXAMPLES_COMPARED:])})


@torch.no_grad()
def check_model(model: Model) -> dict[str, float]:
    """Compare the cut model with the model itself, on two short prompts of unequal length.

    Checks: input + head outputs + MLP outputs (+ biases) add up to the final residual; the run of the full circuit gives the
    model's own logits; the run of the empty circuit gives those of the biases alone (every sender cut).

    Returns:
        check -> largest relative difference.

    Raises:
        BadModel: one of them is beyond the tolerance for the model's dtype, or the model does not run at all.
    """
    examples = _probe(model)
    try:
        differences = {
            "sum of all senders against the final residual": _sum_of_parts(model, examples),
            OWN: _against_own(model, examples),
        }
        constant = model.backend.constant_before(model.graph.n_layers)
        if constant is not None:
            differences["empty circuit against every sender cut"] = _empty(model, constant, examples)
    except CircuitdiscError:
        raise
    except Exception as error:  # an architecture's own code, or the bridge's, at shapes that do not fit
        if isinstance(error, torch.OutOfMemoryError):
            raise BadModel(f"{model.name}: there is not enough memory to run it: {first_line(error)}") from error
        check_finite(model.module, model.name)
        raise BadModel(
            f"{model.name}: the architecture {model.architecture} cannot be run head by head here "
            f"({type(error).__name__}: {first_line(error)}). "
            f"{listed_families()} can"
        ) from error
    _compare(model, differences)
    return differences


def _compare(model: Model, differences: dict[str, float]) -> None:
    tolerance = TOLERANCE.get(model.dtype, 0.0)
    wrong = next((name for name, difference in differences.items() if not difference <= tolerance), None)
    if wrong is None:
        return
    check_finite(model.module, model.name)
    check_finite(model.own_logits.module, model.name)
    difference = differences[wrong]
    if difference != difference:
        raise BadModel(
            f"{model.name} ({model.architecture}) gives NaN or infinite logits in {model.dtype}, though its weights are finite "
            "numbers: load it as float32"
        )
    raise BadModel(
        f"{model.name} ({model.architecture}): the computation graph is not the model. {wrong.capitalize()}: "
        f"relative difference {difference:.1e}, {tolerance:.0e} is allowed in {model.dtype}. {_reason(model, wrong)}"
    )


def _reason(model: Model, wrong: str) -> str:
    extras = model.own_logits.extras() if wrong == OWN else []
    if extras:
        more = f" (and {len(extras) - 1} more)" if len(extras) > 1 else ""
        return f"The module does more than its weights: {extras[0][:90]}{more}. Remove it, or make it part of the weights"
    if wrong == OWN and is_bridge(model.own_logits.module):
        return "The bridge computes something else than the model that it wraps (norms folded, weights edited): wrap it again"
    if model.own_logits.was_checked(model.backend):
        return "The module was changed after it was wrapped: wrap it again"
    family = find_family(model.architecture)
    if family is not None and family.not_by_hooks and not model.can("partial runs"):
        return family.not_by_hooks
    return "Its heads do not add up (a norm after attention, say), or its layers are not those of its family: it cannot be cut"


def _against_own(model: Model, examples: Sequence[Example]) -> float:
    chunk = _chunk(model, examples)
    batch = chunk.batch
    own = model.own_logits(batch.clean, batch.is_token.long(), batch.position_ids)
    own = own[batch.read_example, batch.read_position]
    return _difference(_logits(model, chunk, model.graph.edge_mask), own)


def _empty(model: Model, constant: Float[Tensor, "D"], examples: Sequence[Example]) -> float:
    chunk = _chunk(model, examples)
    empty = _logits(model, chunk, np.zeros_like(model.graph.edge_mask))
    return _difference(empty, model.backend.unembed(constant.expand(1, len(empty), -1))[0])


def _chunk(model: Model, examples: Sequence[Example]) -> Chunk:
    return next(prepare(model, Ablation("zero"), examples, None, len(examples)))


@torch.no_grad()
def _logits(model: Model, chunk: Chunk, mask: Bool[np.ndarray, "R S"]) -> Float[Tensor, "N V"]:
    return runner(model).circuit(chunk, mask)[0]


def _probe(model: Model) -> list[Example]:
    generator = np.random.default_rng(0)
    lengths = (min(7, model.n_ctx), min(5, model.n_ctx))
    prompts = [tuple(int(i) for i in generator.integers(0, model.d_vocab, length)) for length in lengths]
    return [Example(prompt, None, tuple(range(len(prompt))), ((0,),) * len(prompt), ((),) * len(prompt)) for prompt in prompts]


def _sum_of_parts(model: Model, examples: list[Example]) -> float:
    batch = collate(examples, device=model.device)
    run = full_run(model, batch.clean, batch.is_token, batch.position_ids)
    rest = (run.residual - run.senders.sum(0))[batch.is_token]
    # beside the senders there are only biases, the same at every token
    constant = model.backend.constant_before(model.graph.n_layers)
    constant = rest.mean(0) if constant is None else constant
    return _difference(rest + run.residual[batch.is_token], constant + run.residual[batch.is_token])


def _difference(left: Tensor, right: Tensor) -> float:
    scale = right.abs().max().clamp(min=1e-6)
    return float(((left - right).abs().max() / scale).item())
