"""Load a model: one that ships with the package, a Hugging Face name or folder, or a folder in TransformerLens weight names."""

import copy
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdisc.errors import BadFile, BadModel, BadSetting, CircuitdiscError, UnknownName
from circuitdisc.models.components import Components
from circuitdisc.models.families import find_family
from circuitdisc.models.families.family import Family
from circuitdisc.models.families.guess import guesses
from circuitdisc.models.families.reader import read_module
from circuitdisc.models.hooked import HookedModel
from circuitdisc.models.model import Model
from circuitdisc.models.own_run import OwnRun, evaluated
from circuitdisc.models.plain import check_finite, plain_module, unwrapped
from circuitdisc.models.pretrained import load_pretrained, load_tokenizer
from circuitdisc.models.stored import (
    ADAPTER,
    INDEX,
    WEIGHTS,
    check_low_rank,
    leave_files,
    read_config,
    read_tensors,
    shard_names,
    weight_files,
    without_prefixes,
)
from circuitdisc.models.toy import ToyConfig, ToyTransformer, check_weights, translate
from circuitdisc.models.wording import first_line
from circuitdisc.shipped import shipped_models

Accepts = Callable[[Model], bool]
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    split_embeddings: bool = False,
    components: str = "auto",
    accepts: Accepts | None = None,
) -> Model:
    """Load a model without checking it (`circuitdisc.load_model` also runs the self-check).

    Args:
        name: a shipped name (`tpp/lightweight`), a folder, or a Hugging Face name (`gpt2`).
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        device: as torch names it (`cpu`, `cuda`).
        split_embeddings: token and position embedding as two senders.
        components: `auto` (fast where the family has them or can be guessed), `fast`, or `hooks` (the fallback, for any bridged
            architecture).
        accepts: of an architecture that no family declares: whether a model by a guessed declaration is the module.

    Raises:
        UnknownName: neither shipped, nor a folder, nor (as far as can be seen offline) a Hugging Face name.
        BadFile: the folder's files are missing, malformed or truncated.
        BadModel: the architecture cannot be cut.
    """
    for setting, value, known in (("dtype", dtype, tuple(DTYPES)), ("setting components", components, COMPONENTS)):
        if not isinstance(value, str) or value not in known:
            raise UnknownName(setting, str(value), known)
    if not isinstance(split_embeddings, bool):
        raise BadSetting(f"split_embeddings={split_embeddings!r} must be true or false")
    device = _check_device(device)
    name = _check_name(name)
    directory = model_folder(name)
    folder = _hub_folder(name) if directory is None else directory
    config = read_config(folder)
    if "model_type" in config:
        module = load_pretrained(folder, DTYPES[dtype]).to(device)
        tokenizer = load_tokenizer(folder if directory is not None else name)
        return _cut(name, module, OwnRun(module), tokenizer, split_embeddings, components, accepts)
    if "n_layers" not in config:
        raise BadFile(
            f"{folder / 'config.json'} is neither a Hugging Face configuration (no model_type) "
            "nor a TransformerLens one (no n_layers)"
        )
    toy = _read_toy(folder, config).to(device, DTYPES[dtype])
    check_finite(toy, str(folder))
    return cut_toy(toy, name=name, split_embeddings=split_embeddings)


COMPONENTS = ("auto", "fast", "hooks")


def model_folder(name: str) -> Path | None:
    """Where the files of a shipped model or of a folder are; None for what can only be a hub name."""
    path = Path(name).expanduser()
    return shipped_models().get(name) or (path if _is_dir(path) else None)


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
        own_logits=OwnRun(toy, lambda tokens, mask, positions: toy(tokens, mask)),
        tokenizer=None,
        d_vocab=spec.d_vocab,
        d_vocab_out=spec.d_vocab_out,
        n_ctx=spec.n_ctx,
        architecture="TransformerLens toy",
    )


def cut_hugging_face(
    module: Any,
    tokenizer: Any = None,
    *,
    name: str = "local",
    split_embeddings: bool = False,
    components: str = "auto",
    accepts: Accepts | None = None,
) -> Model:
    """Wrap an in-memory Hugging Face causal language model.

    The module is left as it is: it keeps its gradients, its mode and its settings. Weights are shared with it, except where a
    copy is needed: for PEFT's layers, which are merged into one, and for a run through hooks. The engine compares the wrapped
    model with the module's own logits before its first use, and again whenever the module has changed.

    Raises:
        BadModel: it is no such model, or cannot be cut.
    """
    plain = plain_module(module, name)
    copied = all(part is not plain for part in module.modules())
    return _cut(name, plain, OwnRun(unwrapped(module)), tokenizer, split_embeddings, components, accepts, copied)


def _cut(
    name: str,
    module: Any,
    own: OwnRun,
    tokenizer: Any,
    split_embeddings: bool,
    components: str,
    accepts: Accepts | None = None,
    copied: bool = True,
) -> Model:
    """The model by its family's declaration, by a guessed one, or by hooks.

    Args:
        accepts: whether a model by a guessed declaration is the module; None takes the first that can be read.
        copied: the module is nobody else's: hooks may be put into it.
    """
    model_type = module.config.model_type
    family = None if components == "hooks" else find_family(model_type)
    if family is not None:
        return _by_family(name, module, own, tokenizer, split_embeddings, family)
    if components != "hooks":
        for guess in guesses(module):
            try:
                model = replace(_by_family(name, module, own, tokenizer, split_embeddings, guess), guessed=True)
            except BadModel:
                continue
            if accepts is None or accepts(model):
                return model
    if components == "fast":
        raise BadModel(f"{name}: there are no fast components for '{model_type}'; use components=hooks")
    if split_embeddings:
        raise BadSetting(f"{name}: token and position embedding cannot be split for '{model_type}' (hook-based run)")
    plain = module if copied else copy.deepcopy(module)  # the bridge puts its hooks into the module itself
    try:
        hooked = HookedModel(plain, name)
    except CircuitdiscError:
        raise
    except Exception as error:  # a bridge that does not know a setting
        raise _cannot_be_cut(name, module, f"the architecture {type(module).__name__}", "", error) from error
    return Model(
        name, hooked.graph, hooked, plain, own, tokenizer, hooked.d_vocab, hooked.d_vocab, hooked.n_ctx, architecture=model_type
    )


def _by_family(name: str, module: Any, own: OwnRun, tokenizer: Any, split_embeddings: bool, family: Family) -> Model:
    try:
        with evaluated(module), torch.no_grad():
            spec, weights = read_module(module, family)
    except CircuitdiscError:
        raise
    except Exception as error:  # a layer that is not the family's
        why = ": its parts are not those of its family"
        raise _cannot_be_cut(name, module, f"this {type(module).__name__}", why, error) from error
    graph, sizes = spec.graph(split_embeddings), (spec.d_vocab, spec.d_vocab_out, spec.n_ctx)
    backend = Components(spec, _detached(weights))
    return Model(name, graph, backend, module, own, tokenizer, *sizes, architecture=module.config.model_type)


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


def _hub_folder(name: str) -> Path:
    """The files of a hub's model, from the cache or downloaded: its configuration and its safetensors, nothing else."""
    hint = "Give a shipped name, a folder with config.json, or a Hugging Face name that is cached or can be downloaded."
    if not known_to_hub(name):
        raise UnknownName("model", name, shipped_models(), hint)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def fetch(file: str, revision: str | None = None) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except EntryNotFoundError:
            return None

    try:
        first = fetch("config.json") or fetch(ADAPTER)
        if first is None:
            raise BadFile(f"the hub's {name} has no config.json: it is not a model that transformers loads")
        folder, revision = first.parent, first.parent.name
        fetch(ADAPTER, revision)
        read_config(folder)
        if fetch(WEIGHTS, revision) is None and fetch(INDEX, revision) is not None:
            for shard in shard_names(folder):
                fetch(shard, revision)
        return folder
    except CircuitdiscError:
        raise
    except Exception as error:  # the hub and the network each raise their own
        raise UnknownName("model", name, shipped_models(), hint) from error


def known_to_hub(name: str) -> bool:
    """Whether a name is cached, or the hub answers for it. Asked once: downloads repeat what fails, for most of a minute."""
    families = {shipped.partition("/")[0] for shipped in shipped_models()}
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name.strip() or name.partition("/")[0] in families:
        return False
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str) or bool(HfApi().model_info(name, timeout=10).id)
    except Exception:  # the hub, the network and a malformed name each raise their own
        return False


def _check_name(name: object) -> str:
    if isinstance(name, Path):
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise BadSetting(f"model={name!r} names no model: give a shipped name, a folder or a Hugging Face name")
    return name


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _check_device(device: object) -> str:
    try:
        if not isinstance(device, str) or torch.device(device).type == "meta":
            raise BadSetting(f"device={device!r} is not a device: write cpu, cuda or cuda:0")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise BadSetting(f"device '{device}' cannot be used here: {first_line(error)}") from error
    return device
