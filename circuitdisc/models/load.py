"""Load a model by its name (`places.py`), or wrap one that is in memory."""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscError, UnknownName
from circuitdisc.models.adapters import merge_adapter
from circuitdisc.models.bridge import plain_model
from circuitdisc.models.components import Components
from circuitdisc.models.coupled import CoupledModel
from circuitdisc.models.families import find_family
from circuitdisc.models.families.family import Family
from circuitdisc.models.families.guess import guesses
from circuitdisc.models.families.reader import read_module
from circuitdisc.models.gguf import is_gguf, load_gguf
from circuitdisc.models.hooked import HookedModel
from circuitdisc.models.model import Model
from circuitdisc.models.own_run import OwnRun, evaluated, own_run
from circuitdisc.models.parallel import Parallel, check_placed, tensor_processes
from circuitdisc.models.places import find_place
from circuitdisc.models.plain import check_finite, unwrapped
from circuitdisc.models.pretrained import load_pretrained
from circuitdisc.models.spread import spread
from circuitdisc.models.stored import check_low_rank, leave_files, read_config, read_tensors, weight_files, without_prefixes
from circuitdisc.models.streamed import StreamedRun
from circuitdisc.models.toy import ToyConfig, ToyTransformer, check_weights, translate
from circuitdisc.models.wording import first_line

Accepts = Callable[[Model], bool]
Make = Callable[[Any, Family], Components]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_model(
    name: Any,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    split_embeddings: bool = False,
    components: str = "auto",
    exact_norm: bool = False,
    parallel: object = None,
    accepts: Accepts | None = None,
) -> Model:
    """Load a model without checking it (`circuitdisc.load_model` also runs the self-check).

    Args:
        name: text or path: a shipped name (`tpp/lightweight`), a folder, a GGUF file, or a Hugging Face name (`gpt2`, a
            revision of one as `org/name@step1000`); `BASE+ADAPTER` for any of these with a PEFT adapter.
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        device: as torch names it (`cpu`, `cuda`).
        split_embeddings: token and position embedding as two senders.
        components: `auto` (fast where the family has them or can be guessed), `fast`, or `hooks` (the fallback, for any bridged
            architecture).
        exact_norm: norms that couple heads are computed anew in every run (see `models/coupled.py`); False holds their size at
            the full model's run.
        parallel: how a model is placed that one device does not hold: `{"tensor": 2}` or `{"device_map": "auto"}`, see
            `models/parallel.py`.
        accepts: of an architecture that no family declares: whether a model by a guessed declaration is the module.

    Raises:
        UnknownName: neither shipped, nor a folder or file, nor (as far as can be seen offline) a Hugging Face name.
        BadFile: the folder's files are missing, malformed or truncated.
        BadModel: the architecture cannot be cut.
    """
    _check_way(split_embeddings, components, exact_norm)
    check_place(dtype, device)
    placed, name = Parallel.of(parallel), _check_name(name)
    place = find_place(name)
    files, adapter = place.files(), place.adapter_files()
    config = {} if is_gguf(files) else read_config(files)
    mesh = tensor_processes(placed.tensor, device) if placed.tensor > 1 else None
    if is_gguf(files) or "model_type" in config:
        check_placed(placed, place.name, components, adapter is not None, is_gguf(files))
        how: dict[str, Any] = {"accepts": accepts, "exact_norm": exact_norm}
        if mesh is not None:
            from circuitdisc.models.split import split_module  # torch.distributed's tensors take a while to import

            module = load_pretrained(files, DTYPES[dtype], mapped=True)
            own = StreamedRun(module, DTYPES[dtype], device, weight_files(files))
            how["make"] = partial(split_module, name=name, mesh=mesh, dtype=DTYPES[dtype], device=device)
        else:
            module = load_module(files, adapter, place.name, DTYPES[dtype]).to(device)
            own = OwnRun(module)
        components = components if placed.device_map is None else "hooks"
        model = _cut(name, module, own, place.tokenizer(), split_embeddings, components, **how)
        if placed.device_map is not None:
            spread(module, placed.device_map, name)
        return model
    if "n_layers" not in config:
        raise BadFile(
            f"{files / 'config.json'} is neither a Hugging Face configuration (no model_type) "
            "nor a TransformerLens one (no n_layers)"
        )
    if adapter is not None:
        raise BadModel(f"{place.name} is in TransformerLens weight names: adapters are merged into Hugging Face models alone")
    toy = _read_toy(files, config).to(device, DTYPES[dtype])
    check_finite(toy, str(files))
    model = cut_toy(toy, name=name, split_embeddings=split_embeddings)
    if mesh is None:
        return model
    from circuitdisc.models.split import split_model

    return replace(model, backend=split_model(model.components, name, mesh))


COMPONENTS = ("auto", "fast", "hooks")


def check_place(dtype: str, device: str) -> None:
    """A precision and a device that there are.

    Raises:
        UnknownName, BadSetting: there is none such.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UnknownName("dtype", str(dtype), DTYPES)
    _check_device(device)


def _check_way(split_embeddings: object, components: object, exact_norm: object) -> None:
    if not isinstance(components, str) or components not in COMPONENTS:
        raise UnknownName("setting components", str(components), COMPONENTS)
    for setting, flag in (("split_embeddings", split_embeddings), ("exact_norm", exact_norm)):
        if not isinstance(flag, bool):
            raise BadSetting(f"{setting}={flag!r} must be true or false")


def load_module(files: Path, adapter: Path | None, base: str, dtype: torch.dtype) -> Any:
    """The Hugging Face model in a folder or GGUF file, an adapter merged into it.

    Args:
        base: the model's name without the adapter's, for messages.

    Raises:
        BadFile, BadModel, BadSetting: as `load_pretrained`, `load_gguf` and `merge_adapter`.
    """
    read = load_gguf if is_gguf(files) else load_pretrained
    if adapter is None:
        return read(files, dtype)
    wide = torch.promote_types(dtype, torch.float32)
    module = merge_adapter(read(files, wide), adapter, base).to(dtype)
    check_finite(module, f"{base} with {adapter}")
    return module


def _read_toy(folder: Path, config: dict[str, Any]) -> ToyTransformer:
    toy_config = ToyConfig.from_dict(config)
    tensors = read_tensors(weight_files(folder))
    check_low_rank(tensors, str(folder))
    tensors = without_prefixes(tensors, ("embed.W_E",), str(folder))
    toy = toy_from_weights(toy_config, tensors)
    leave_files(toy, tensors)
    return toy


def toy_from_weights(config: ToyConfig, tensors: dict[str, Tensor]) -> ToyTransformer:
    """The toy with these weights (TransformerLens names), in their own precision."""
    weights = check_weights(tensors, config)
    toy = ToyTransformer(config)
    toy.load_state_dict(weights, assign=True)
    return toy


def cut_toy(toy: ToyTransformer, *, name: str = "toy", split_embeddings: bool = False) -> Model:
    """Wrap an in-memory toy; it is left as it is, and may go on training."""
    spec, weights = translate(toy)
    return Model(
        name=name,
        graph=spec.graph(split_embeddings),
        backend=Components(spec, _detached(weights)),
        module=toy,
        own_logits=OwnRun(toy, partial(_toy_logits, toy)),
        tokenizer=None,
        d_vocab=spec.d_vocab,
        d_vocab_out=spec.d_vocab_out,
        n_ctx=spec.n_ctx,
        architecture="TransformerLens toy",
    )


def _toy_logits(toy: ToyTransformer, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    return toy(tokens, mask)


def cut_hugging_face(
    module: Any,
    tokenizer: Any = None,
    *,
    name: str = "local",
    split_embeddings: bool = False,
    components: str = "auto",
    exact_norm: bool = False,
    accepts: Accepts | None = None,
) -> Model:
    """Wrap an in-memory Hugging Face causal language model, plain, adapted by PEFT or wrapped by TransformerLens's bridge.

    The module is left as it is: it keeps its gradients, its mode and its settings. Weights are shared with it, except where a
    copy is needed: for PEFT's layers, which are merged into one, for a bridge's, and for a run through hooks. The engine
    compares the wrapped model with the module's own logits before its first use, and again whenever the module has changed.

    Raises:
        BadModel: it is no such model, or cannot be cut.
    """
    _check_way(split_embeddings, components, exact_norm)
    plain = plain_model(module, name)
    copied = all(part is not plain for part in module.modules())
    own = own_run(unwrapped(module))
    return _cut(name, plain, own, tokenizer, split_embeddings, components, accepts, copied, exact_norm)


def _cut(
    name: str,
    module: Any,
    own: OwnRun,
    tokenizer: Any,
    split_embeddings: bool,
    components: str,
    accepts: Accepts | None = None,
    copied: bool = True,
    exact_norm: bool = False,
    make: Make | None = None,
) -> Model:
    """The model by its family's declaration, by a guessed one, or by hooks.

    Args:
        accepts: whether a model by a guessed declaration is the module; None takes the first that can be read.
        copied: the module is nobody else's: hooks may be put into it.
        exact_norm: see `read_model`.
        make: how components are made of a module and its family; None: of all weights, as they are.
    """
    model_type = module.config.model_type
    family = None if components == "hooks" else find_family(model_type)
    if family is not None:
        return _coupled(_by_family(name, module, own, tokenizer, split_embeddings, family, make), exact_norm)
    why = ""
    if components != "hooks":
        guessed, why = _by_guess(name, module, own, tokenizer, split_embeddings, accepts, make)
        if guessed is not None:
            return _coupled(guessed, exact_norm)
    if make is not None:
        raise BadModel(
            f"{name}: parallel.tensor splits fast components, and there are none for '{model_type}' ({why}): leave it out, and "
            "spread the model's layers with parallel.device_map=auto"
        )
    if components == "fast":
        raise BadModel(f"{name}: there are no fast components for '{model_type}' ({why}); use components=hooks")
    if exact_norm:
        raise BadSetting(f"{name}: exact_norm=true recomputes norms of fast components, and this model runs through hooks")
    if split_embeddings:
        raise BadSetting(f"{name}: token and position embedding cannot be split for '{model_type}' (hook-based run)")
    plain = module if copied else copy.deepcopy(module)  # the bridge puts its hooks into the module itself
    try:
        hooked = HookedModel(plain, name)
    except Exception as error:  # a bridge that does not know a setting raises anything
        if not isinstance(error, CircuitdiscError):
            error = _cannot_be_cut(name, module, f"the architecture {type(module).__name__}", "", error)
        raise (BadModel(f"{error}. From its weights: {why}") if why else error) from error
    return Model(
        name, hooked.graph, hooked, plain, own, tokenizer, hooked.d_vocab, hooked.d_vocab, hooked.n_ctx, architecture=model_type
    )


def _by_guess(
    name: str, module: Any, own: OwnRun, tokenizer: Any, split_embeddings: bool, accepts: Accepts | None, make: Make | None
) -> tuple[Model | None, str]:
    """The model by the first guessed declaration that is accepted; or None, and why not."""
    why = ""
    try:
        for guess in guesses(module):
            try:
                model = replace(_by_family(name, module, own, tokenizer, split_embeddings, guess, make), guessed=True)
            except BadModel as error:
                why = str(error).removeprefix(f"{name}: ")
                continue
            if accepts is None or accepts(model):
                return model, ""
            why = "read by its usual shape, it does not give the module's own logits"
    except BadModel as error:
        why = str(error)
    return None, why


def _by_family(
    name: str, module: Any, own: OwnRun, tokenizer: Any, split_embeddings: bool, family: Family, make: Make | None
) -> Model:
    try:
        with evaluated(module), torch.no_grad():
            backend = (make or _whole)(module, family)
    except CircuitdiscError:
        raise
    except Exception as error:  # a layer that is not the family's
        why = ": its parts are not those of its family"
        raise _cannot_be_cut(name, module, f"this {type(module).__name__}", why, error) from error
    spec = backend.spec
    graph, sizes = spec.graph(split_embeddings), (spec.d_vocab, spec.d_vocab_out, spec.n_ctx)
    return Model(name, graph, backend, module, own, tokenizer, *sizes, architecture=module.config.model_type)


def _whole(module: Any, family: Family) -> Components:
    spec, weights = read_module(module, family)
    return Components(spec, _detached(weights))


def _coupled(model: Model, exact_norm: bool) -> Model:
    """The model with norms that couple heads computed anew, if asked for and if it has any."""
    if not exact_norm:
        return model
    components = model.components
    if not components.freezes_scales:
        raise BadSetting(f"{model.name}: exact_norm=true changes nothing: no norm of {model.architecture} couples its heads")
    return replace(model, backend=CoupledModel(components))


def _cannot_be_cut(name: str, module: Any, kind: str, why: str, error: Exception) -> BadModel:
    check_finite(module, name)
    return BadModel(f"{name}: {kind} cannot be cut at heads and inputs{why} ({type(error).__name__}: {first_line(error)})")


def _detached(weights: Any) -> Any:
    """The same weights, in the same memory, without gradients of their own."""
    if isinstance(weights, Tensor):
        return weights.detach()
    if isinstance(weights, tuple):
        return tuple(_detached(part) for part in weights)
    if is_dataclass(weights):
        return type(weights)(**{field.name: _detached(getattr(weights, field.name)) for field in fields(weights)})
    return weights


def _check_name(name: object) -> str:
    if isinstance(name, Path):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise BadSetting(f"model={name!r} names no model: give a shipped name, a folder or a Hugging Face name")
    return name


def _check_device(device: object) -> None:
    try:
        if not isinstance(device, str) or torch.device(device).type == "meta":
            raise BadSetting(f"device={device!r} is not a device: write cpu, cuda or cuda:0")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadSetting(f"device '{device}' cannot be used here: {first_line(error)}") from error
