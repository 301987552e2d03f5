"""Load a model: one that ships with the package, a Hugging Face name or folder, or a folder in TransformerLens weight names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitdisc.errors import BadFile, BadModel, BadSetting, UnknownName
from circuitdisc.files import read_json
from circuitdisc.models.components import Components
from circuitdisc.models.families import find_translator
from circuitdisc.models.hooked import HookedModel
from circuitdisc.models.model import Model
from circuitdisc.models.toy import ToyConfig, ToyTransformer, check_weights, translate
from circuitdisc.shipped import shipped_models

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    split_embeddings: bool = False,
    components: str = "auto",
) -> Model:
    """Load a model without checking it (`circuitdisc.load_model` also runs the self-check).

    Args:
        name: a shipped name (`tpp/lightweight`), a folder, or a Hugging Face name (`gpt2`).
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        device: as torch names it (`cpu`, `cuda`).
        split_embeddings: token and position embedding as two senders.
        components: `auto` (fast where the family has them), `fast`, or `hooks` (the fallback, for any bridged architecture).

    Raises:
        UnknownName: neither shipped, nor a folder, nor (as far as can be seen offline) a Hugging Face name.
        BadFile: the folder's files are missing, malformed or truncated.
        BadModel: the architecture cannot be cut.
    """
    if dtype not in DTYPES:
        raise UnknownName("dtype", dtype, DTYPES)
    if components not in ("auto", "fast", "hooks"):
        raise UnknownName("setting components", components, ["auto", "fast", "hooks"])
    device = _check_device(device)
    folder = shipped_models().get(name) or (Path(name).expanduser() if Path(name).expanduser().is_dir() else None)
    if folder is None:
        module, tokenizer = _from_hub(name, DTYPES[dtype])
        return _cut_hugging_face(name, module.to(device), tokenizer, split_embeddings, components)
    config = read_json(folder / "config.json")
    if isinstance(config, dict) and "model_type" in config:
        module, tokenizer = _from_folder(folder, DTYPES[dtype])
        return _cut_hugging_face(name, module.to(device), tokenizer, split_embeddings, components)
    if not isinstance(config, dict) or "n_layers" not in config:
        raise BadFile(
            f"{folder / 'config.json'} is neither a Hugging Face configuration (no model_type) "
            "nor a TransformerLens one (no n_layers)"
        )
    tensors = _read_safetensors(folder / "model.safetensors")
    toy = toy_from_weights(ToyConfig.from_dict(config), tensors).to(device, DTYPES[dtype])
    return cut_toy(toy, name=name, split_embeddings=split_embeddings)


def toy_from_weights(config: ToyConfig, tensors: dict[str, Tensor]) -> ToyTransformer:
    """The toy with these weights (TransformerLens names)."""
    toy = ToyTransformer(config)
    toy.load_state_dict(check_weights(tensors, config))
    return toy


def cut_toy(toy: ToyTransformer, *, name: str = "toy", split_embeddings: bool = False) -> Model:
    """Wrap an in-memory toy."""
    toy.requires_grad_(False)
    spec, weights = translate(toy)
    return Model(
        name=name,
        graph=spec.graph(split_embeddings),
        cut=Components(spec, weights),
        module=toy,
        own_logits=lambda tokens, mask, positions: toy(tokens, mask),
        tokenizer=None,
        d_vocab=spec.d_vocab,
        d_vocab_out=spec.d_vocab_out,
        n_ctx=spec.n_ctx,
        architecture="TransformerLens toy",
    )


def cut_hugging_face(
    module: Any, tokenizer: Any = None, *, name: str = "local", split_embeddings: bool = False, components: str = "auto"
) -> Model:
    """Wrap an in-memory Hugging Face causal language model (as `read_model` does; not checked)."""
    return _cut_hugging_face(name, module, tokenizer, split_embeddings, components)


def _cut_hugging_face(name: str, module: Any, tokenizer: Any, split_embeddings: bool, components: str) -> Model:
    module.eval().requires_grad_(False)
    module.config.use_cache = False
    model_type = module.config.model_type
    translator = None if components == "hooks" else find_translator(model_type)
    if translator is None and components == "fast":
        raise BadModel(f"{name}: there are no fast components for '{model_type}'; use components=hooks")

    def own_logits(tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        return module(input_ids=tokens, attention_mask=mask.long(), position_ids=positions).logits

    if translator is not None:
        spec, weights = translator(module)
        cut: Components | HookedModel = Components(spec, weights)
        graph, sizes = spec.graph(split_embeddings), (spec.d_vocab, spec.d_vocab_out, spec.n_ctx)
    else:
        if split_embeddings:
            raise BadSetting(f"{name}: token and position embedding cannot be split for '{model_type}' (hook-based run)")
        cut = HookedModel(module, name)
        graph, sizes = cut.graph, (cut.d_vocab, cut.d_vocab, cut.n_ctx)
    return Model(name, graph, cut, module, own_logits, tokenizer, *sizes, architecture=model_type)


def _from_folder(folder: Path, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # a small file needs none
    try:
        module = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, attn_implementation="eager", use_safetensors=True
        )
    except Exception as error:  # transformers, safetensors and json each raise their own
        raise BadFile(f"cannot load the model in {folder}: {_first_line(error)}") from error
    return module, _tokenizer(folder)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / file).exists() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise BadFile(f"cannot load the tokenizer in {folder}: {_first_line(error)}") from error


def _from_hub(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    hint = "Give a shipped name, a folder with config.json, or a Hugging Face name that is cached or can be downloaded."
    if not known_to_hub(name):
        raise UnknownName("model", name, shipped_models(), hint)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        module = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="eager", use_safetensors=True)
        return module, AutoTokenizer.from_pretrained(name)
    except Exception as error:
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise BadFile(f"{path} is missing: weights are read from safetensors alone")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BadFile(f"{path} is not a whole safetensors file ({_first_line(error)}); was it cut short?") from error


def _check_device(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise BadSetting(f"device '{device}' cannot be used here: {_first_line(error)}") from error
    return device


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
