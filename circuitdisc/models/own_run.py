"""The module that a user has, run as it is and left as it was.

Its logits are what the cut model is compared with. A module may do more than its weights say (hooks, adapters, a forward of
its own), and it may be in the middle of somebody's training: while it runs it is evaluated, without dropout, cache and
gradients; afterwards it trains as before.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@contextmanager
def evaluated(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no cache for a while; every submodule is in the mode it was in afterwards."""
    training = [part for part in module.modules() if part.training]
    config: Any = getattr(module, "config", None)
    cache = getattr(config, "use_cache", None)
    try:
        for part in training:
            part.training = False
        if cache:
            config.use_cache = False
        yield
    finally:
        for part in training:
            part.training = True
        if cache:
            config.use_cache = cache


class OwnRun:
    """(tokens [B, T], attention mask [B, T], position ids [B, T]) -> the module's own logits [B, T, V].

    Args:
        module: the user's.
        run: how it is called; None: as Hugging Face models are.
    """

    def __init__(self, module: nn.Module, run: Run | None = None) -> None:
        self.module = module
        self._run = run or partial(_hugging_face, module)  # no method of its own: a cycle would keep the module in memory
        self._checked: tuple[Any, tuple[Any, ...]] | None = None

    @torch.no_grad()
    def __call__(
        self, tokens: Int[Tensor, "B T"], mask: Int[Tensor, "B T"], positions: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        with evaluated(self.module):
            return self._run(tokens, mask, positions)

    # --- what the module is ------------------------------------------------------------------------------------------

    def extras(self) -> list[str]:
        """What the module does beside its weights, a phrase each: hooks, adapters, a forward of its own."""
        phrases = ["hooks on all modules"] if _global_hooks() else []
        for name, part in self.module.named_modules():
            where = name or "the model itself"
            if type(part).__module__.startswith("transformer_lens"):  # of the bridge, whose own hooks change nothing
                phrases += [f"a forward hook on {where}"] if getattr(part, "fwd_hooks", None) else []
                continue
            if part._forward_hooks or part._forward_pre_hooks:
                phrases.append(f"a forward hook on {where}")
            if "forward" in vars(part):
                phrases.append(f"a replaced forward of {where}")
            if is_adapter_layer(part):
                phrases.append(f"an adapter on {where}")
            if is_parametrized(part):
                phrases.append(f"a parametrization of {where}")
        return phrases

    def checked(self, backend: object) -> bool:
        """Whether `backend` was seen to be this module, and neither has changed since."""
        return self._checked is not None and self._checked[0] is backend and self._checked[1] == self._state(backend)

    def was_checked(self, backend: object) -> bool:
        """Whether `backend` was seen to be this module at some time."""
        return self._checked is not None and self._checked[0] is backend

    def __getstate__(self) -> dict[str, Any]:
        """Without what was checked, which holds for this process's objects alone."""
        return {**vars(self), "_checked": None}

    def set_checked(self, backend: object) -> None:
        """Record that `backend` is this module, as it is now."""
        self._checked = (backend, self._state(backend))

    def _state(self, backend: object) -> tuple[Any, ...]:
        """Changes whenever the module may compute something else; takes about a millisecond for 300 submodules.

        A tensor whose storage the cut model shares cannot drift apart from it; of the others the sum counts, too.
        """
        shared = _storages(getattr(backend, "weights", None))
        parts = [_part_state(part) for part in self.module.modules()]
        tensors = [
            _tensor_state(tensor, tensor.untyped_storage().data_ptr() in shared)
            for group in (self.module.parameters(), self.module.buffers())
            for tensor in group
        ]
        return tuple(_global_hooks()), tuple(parts), tuple(tensors)


def own_run(module: nn.Module) -> OwnRun:
    """A module's own run, in the way that its kind is called."""
    return OwnRun(module, partial(_bridge, module) if is_bridge(module) else None)


def is_bridge(module: object) -> bool:
    """Whether this is TransformerLens's wrapper around a Hugging Face model."""
    return type(module).__module__.startswith("transformer_lens") and hasattr(module, "original_model")


def _bridge(module: nn.Module, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    return module(tokens, attention_mask=mask.long(), position_ids=positions)


def _hugging_face(module: nn.Module, tokens: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
    return module(input_ids=tokens, attention_mask=mask.long(), position_ids=positions).logits


def is_adapter_layer(part: nn.Module) -> bool:
    """Whether `peft` has put a layer of its own here."""
    peft = sys.modules.get("peft")  # imported already if it has
    if peft is None:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _global_hooks() -> list[int]:
    from torch.nn.modules import module

    return [*module._global_forward_hooks, *module._global_forward_pre_hooks]


def _part_state(part: nn.Module) -> tuple[Any, ...]:
    adapter: tuple[Any, ...] = ()
    if is_adapter_layer(part):
        names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
        adapter = tuple(str(getattr(part, name, None)) for name in names)
    return id(part), *part._forward_hooks, *part._forward_pre_hooks, id(vars(part).get("forward")), adapter


@torch.no_grad()
def _tensor_state(tensor: Tensor, shared: bool) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    wide = torch.float32 if tensor.device.type == "mps" else torch.float64
    value = None if shared or not tensor.is_floating_point() else float(tensor.sum(dtype=wide))
    return tensor.data_ptr(), version, tensor.dtype, value


def _storages(weights: Any) -> set[int]:
    """Where the tensors in nested dataclasses and tuples of weights are stored."""
    if hasattr(weights, "to_local"):  # a share of a split weight: a copy
        return set()
    if isinstance(weights, Tensor):
        return {weights.untyped_storage().data_ptr()}
    if is_dataclass(weights):
        return set().union(*(_storages(getattr(weights, field.name)) for field in fields(weights)))
    return set().union(*map(_storages, weights)) if isinstance(weights, tuple) else set()
