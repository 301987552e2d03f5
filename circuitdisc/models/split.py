"""Fast components of a model that is split over the processes of a group (tensor parallelism), by heads and MLP columns.

A process owns some heads of every layer (their W_Q, W_K, W_V and W_O), some columns of every MLP, and some tokens of the
embedding and of the unembedding, as DTensors. All processes run the same program on the same activations. What crosses:

    queries, keys, values     gathered, K numbers a head and token; patterns and z are then the same everywhere
    what all heads write      each process's share, summed: D numbers a token, once a layer
    what each head writes     W_O of the heads asked for is gathered: K D numbers a head, however many tokens there are
    MLP                       each process's share, summed: D numbers a token
    logits                    gathered over the vocabulary, or the answers' columns alone

Backward passes cross in the same places. Keys and values that do not divide over the processes are copied to all of them.

Shape letters: G groups of heads that share keys and values, H heads, K head width, D residual width, M MLP width, V vocabulary.
"""

import warnings
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from circuitdisc.errors import BadModel, BadRun, CircuitdiscWarning
from circuitdisc.graph import QKV
from circuitdisc.models.backward import PLAIN, BackwardRule
from circuitdisc.models.components import Components
from circuitdisc.models.families.family import Family
from circuitdisc.models.families.reader import read_module
from circuitdisc.models.streamed import lent
from circuitdisc.models.weights import LayerWeights, ModelSpec, NormWeights, Weights

KEYS_VALUES = {"W_K": 0, "W_V": 0, "b_K": 0, "b_V": 0}
SPLIT = {
    "W_Q": 0, "b_Q": 0, "W_O": 0, "W_in": 1, "W_gate": 1, "b_in": 0, "b_gate": 0, "W_out": 0, "W_E": 0, "W_U": 1, "b_U": 0,
    **KEYS_VALUES,
}  # fmt: skip
"""The axis along which each weight is split. All others are small, and everywhere."""
OWN_PRECISION = ("inverse_frequencies", "key_bias")


def check_splits(spec: ModelSpec, weights: Weights, size: int, name: str) -> None:
    """The model can be split over so many processes.

    Raises:
        BadModel: its heads do not divide, or its MLPs are mixtures of experts.
    """
    if any(block.experts is not None for block in weights.layers):
        raise BadModel(
            f"{name} has mixtures of experts, whose own modules compute them: they cannot be split over processes. Leave "
            "parallel.tensor out and spread its layers, parallel.device_map=auto"
        )
    if spec.n_heads % size:
        raise BadModel(
            f"{name} has {spec.n_heads} heads a layer, which do not divide over parallel.tensor={size} processes: "
            f"take one of {', '.join(str(n) for n in range(1, spec.n_heads + 1) if spec.n_heads % n == 0)}"
        )
    axes = {weights.W_E.shape[0], weights.W_U.shape[1], *(block.d_mlp for block in weights.layers)} - {0}
    if any(-(-n // size) * (size - 1) >= n for n in axes):
        raise BadModel(f"{name} is too narrow for parallel.tensor={size}: some process would have no tokens or neurons")
    if copies_keys(spec, size):
        warnings.warn(
            f"{name}: the keys and values of its {spec.n_kv_heads} groups of heads do not divide over {size} processes; "
            "every process has all of them, and reads all of them",
            CircuitdiscWarning,
        )


def copies_keys(spec: ModelSpec, size: int) -> bool:
    """Whether every process has all keys and values, since they do not divide."""
    return spec.n_kv_heads % size > 0


def own_share(part: Any, spec: ModelSpec, mesh: DeviceMesh, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Weights (of a model, a layer or a norm) of which this process has its share alone, copied out of the whole ones.

    Args:
        dtype, device: of the copies.
    """

    def taken(name: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(taken(name, entry) for entry in value)
        if is_dataclass(value):
            return own_share(value, spec, mesh, dtype, device)
        if not isinstance(value, Tensor) or isinstance(value, DTensor):
            return value
        if name not in SPLIT:
            return value.to(device, None if name in OWN_PRECISION else dtype, copy=True)
        whole = name in KEYS_VALUES and copies_keys(spec, mesh.size())
        axis, n = SPLIT[name], value.shape[SPLIT[name]]
        start, stop = (0, n) if whole else _bounds(n, mesh)
        share = value.narrow(axis, start, stop - start).to(device, dtype, copy=True)
        stride = torch.empty(value.shape, device="meta").stride()
        placement = Replicate() if whole else Shard(axis)
        return DTensor.from_local(share, mesh, [placement], run_check=False, shape=value.shape, stride=stride)

    return type(part)(**{field.name: taken(field.name, getattr(part, field.name)) for field in fields(part)})


def _bounds(n: int, mesh: DeviceMesh) -> tuple[int, int]:
    """Where this process's share begins and ends, as DTensor splits an axis of length n."""
    size, rank = -(-n // mesh.size()), mesh.get_local_rank()
    return min(rank * size, n), min((rank + 1) * size, n)


def split_module(
    module: Any, family: Family, name: str, mesh: DeviceMesh, dtype: torch.dtype, device: str
) -> "SplitComponents":
    """The split components of a module whose weights stay in their files (`load_pretrained(..., mapped=True)`).

    Of every matrix this process's share alone is read; where what is written is scaled (Granite), a layer's at a time.

    Raises:
        BadModel: it cannot be cut, or not split.
    """
    config = module.config.get_text_config()
    scaled = family.scales(config).residual != 1.0
    unscaled = replace(family, scales=lambda config: replace(family.scales(config), residual=1.0))
    spec, views = read_module(module, unscaled)  # in the files' precision; every parameter is seen to have its place
    check_splits(spec, views, mesh.size(), name)
    lend = partial(lent, dtype=dtype, at_most=None if scaled else 1)
    return SplitComponents(*read_module(module, family, lend, lambda part: own_share(part, spec, mesh, dtype, device)), mesh)


def split_model(components: Components, name: str, mesh: DeviceMesh) -> "SplitComponents":
    """Components that are whole in memory, split.

    Raises:
        BadModel: they cannot be.
    """
    spec, weights = components.spec, components.weights
    check_splits(spec, weights, mesh.size(), name)
    return SplitComponents(spec, own_share(weights, spec, mesh, components.dtype, components.device), mesh)


class SplitComponents(Components):
    """The components of one model, each process with its own share of the weights.

    Args:
        weights: by `own_share`.
        mesh: the processes that the model is split over.
    """

    how = "is split over several processes"

    def __init__(self, spec: ModelSpec, weights: Weights, mesh: DeviceMesh) -> None:
        super().__init__(spec, weights)
        self.mesh, self.n_processes = mesh, mesh.size()
        first = mesh.get_local_rank() == 0
        own: Weights = _local(weights)
        # a share has no norm of what is written, and the output bias is one process's alone
        layers = tuple(replace(b, norm_after_mlp=None, b_out=b.b_out if first else None) for b in own.layers)
        self.own = Components(spec, replace(own, layers=layers))
        self._heads = _bounds(spec.n_heads, mesh)
        self._copies = copies_keys(spec, mesh.size())
        self._groups = (0, spec.n_kv_heads) if self._copies else _bounds(spec.n_kv_heads, mesh)

    # --- between processes -------------------------------------------------------------------------------------------

    def _entering(self, x: Tensor) -> Tensor:
        """What every process has and reads with its own weights: its gradients are summed."""
        if not (x.requires_grad and torch.is_grad_enabled()):
            return x
        return DTensor.from_local(x, self.mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])

    def summed(self, shares: Tensor) -> Tensor:
        """The sum of all processes' shares; every process then goes on with the same."""
        return self._whole(shares, Partial(), shares.shape)

    def agreed(self, values: Tensor) -> Tensor:
        """The first process's values."""
        return self.summed(values if self.mesh.get_local_rank() == 0 else torch.zeros_like(values))

    def _gathered(self, share: Tensor, axis: int, n: int) -> Tensor:
        """All processes' shares side by side, n in all."""
        axis = axis % share.dim()
        return self._whole(share.contiguous(), Shard(axis), torch.Size((*share.shape[:axis], n, *share.shape[axis + 1 :])))

    def _whole(self, share: Tensor, placement: Placement, shape: torch.Size) -> Tensor:
        stride = torch.empty(shape, device="meta").stride()
        whole = DTensor.from_local(share, self.mesh, [placement], run_check=False, shape=shape, stride=stride)
        return whole.full_tensor(grad_placements=[Replicate()])

    def _placed(self, share: Tensor, places: list[int], n: int) -> Tensor:
        """n rows, of which each process has those at its places."""
        rows = share.new_zeros(n, *share.shape[1:])
        return self.summed(rows.index_copy(0, torch.tensor(places, device=share.device, dtype=torch.long), share))

    # --- attention ---------------------------------------------------------------------------------------------------

    @property
    def own_heads(self) -> range:
        return range(*self._heads)

    def reading(self, layer: int) -> tuple[tuple[Tensor, Tensor | None], ...]:
        q, *keys_values = self.own.reading(layer)
        if not self._copies:
            return q, *keys_values
        rows = [head // self.heads_per_group for head in self.own_heads]  # of each head its own copy
        return q, *((weight[rows], None if bias is None else bias[rows]) for weight, bias in keys_values)

    def writing(self, layer: int, heads: Sequence[int] | slice) -> Float[Tensor, "n K D"]:
        every = range(self.spec.n_heads)
        heads = list(every[heads] if isinstance(heads, slice) else heads)
        W_O: Any = self.weights.layers[layer].W_O
        if heads == list(every):
            return self._gathered(W_O.to_local(), 0, len(every))
        places = [place for place, head in enumerate(heads) if head in self.own_heads]
        own = self.own.weights.layers[layer].W_O[[heads[place] - self._heads[0] for place in places]]
        return self._placed(own, places, len(heads))

    def _projected(self, layer: int, qkv: QKV, rows: list[int], x: Tensor, like: Tensor | None = None) -> Tensor:
        if qkv != "q" and self._copies:
            return self.own._projected(layer, qkv, rows, x, like)
        first, stop = self._heads if qkv == "q" else self._groups
        places = [place for place, row in enumerate(rows) if first <= row < stop]

        def mine(x: Tensor) -> Tensor:
            return x if x.shape[0] == 1 < len(rows) else x[places]

        x, like = mine(self._entering(x)), None if like is None else mine(like)
        own = self.own._projected(layer, qkv, [rows[place] - first for place in places], x, like)
        return self._placed(own, places, len(rows))

    def projected(self, layer: int, qkv: QKV, normed: Float[Tensor, "... D"]) -> Float[Tensor, "G ... K"]:
        if qkv != "q" and self._copies:
            return self.own.projected(layer, qkv, normed)
        n = self.spec.n_heads if qkv == "q" else self.spec.n_kv_heads
        return self._gathered(self.own.projected(layer, qkv, self._entering(normed)), 0, n)

    def projected_back(self, layer: int, into: Sequence[Float[Tensor, "H ... K"]]) -> Float[Tensor, "... D"]:
        return self.summed(super().projected_back(layer, [gradient[slice(*self._heads)] for gradient in into]))

    def heads_sum(self, layer: int, z: Float[Tensor, "H C B T K"]) -> Float[Tensor, "C B T D"]:
        return self.summed(self.own.heads_sum(layer, self._entering(z)[slice(*self._heads)]))

    def heads_back(self, layer: int, into: Float[Tensor, "C B T D"]) -> Float[Tensor, "H C B T K"]:
        return self._gathered(self.own.heads_back(layer, into), 0, self.spec.n_heads)

    # --- MLP, embedding, unembedding -----------------------------------------------------------------------------------

    def mlp(
        self,
        layer: int,
        x: Float[Tensor, "... D"],
        like: Float[Tensor, "... D"] | None = None,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "... D"]:
        return self._written(layer, self.own.hidden(layer, self._entering(x), like, rule), rule)

    def hidden(
        self,
        layer: int,
        x: Float[Tensor, "... D"],
        like: Float[Tensor, "... D"] | None = None,
        rule: BackwardRule = PLAIN,
    ) -> Float[Tensor, "... M"]:
        own = self.own.hidden(layer, self._entering(x), like, rule)
        return self._gathered(own, -1, self.weights.layers[layer].d_mlp)

    def mlp_output(self, layer: int, hidden: Float[Tensor, "... M"], rule: BackwardRule = PLAIN) -> Float[Tensor, "... D"]:
        columns = _bounds(self.weights.layers[layer].d_mlp, self.mesh)
        return self._written(layer, self._entering(hidden)[..., slice(*columns)], rule)

    def _written(self, layer: int, own: Float[Tensor, "... m"], rule: BackwardRule) -> Float[Tensor, "... D"]:
        out, norm = self.summed(self.own.mlp_output(layer, own)), self.weights.layers[layer].norm_after_mlp
        return out if norm is None else self.norm(out, norm, rule.divisor_of(out))

    def _embedded(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        rows, inside = self._inside(tokens, self.spec.d_vocab)
        self._check_together(tokens)
        return self.summed(self.own._embedded(rows).masked_fill(~inside[..., None], 0.0))

    def logits(self, normed: Float[Tensor, "C N D"], columns: Int[Tensor, "N W"] | None = None) -> Float[Tensor, "C N W"]:
        normed = self._entering(normed)
        if columns is None:
            return self._gathered(self.own.logits(normed), -1, self.spec.d_vocab_out)
        rows, inside = self._inside(columns, self.spec.d_vocab_out)
        return self.summed(self.own.logits(normed, rows).masked_fill(~inside, 0.0))

    def _logits_between(self, normed: Float[Tensor, "C N D"], first: int, stop: int) -> Float[Tensor, "C N W"]:
        start, end = _bounds(self.spec.d_vocab_out, self.mesh)
        block = normed.new_zeros(*normed.shape[:-1], stop - first)
        if (low := max(first, start)) < (high := min(stop, end)):
            block[..., low - first : high - first] = self.own._logits_between(normed, low - start, high - start)
        return self.summed(block)

    def _check_together(self, tokens: Int[Tensor, "B T"]) -> None:
        """All processes run the same prompts, or what they sum would mean nothing.

        Raises:
            BadRun: they do not.
        """
        from torch import distributed

        flat = tokens.flatten()
        own = (flat * torch.arange(1, len(flat) + 1, device=flat.device)).sum()
        extremes = torch.stack([own, -own])
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=self.mesh.get_group())
        if int(extremes[0]) != int(own) or int(extremes[1]) != -int(own):
            raise BadRun("the processes of a split model have come apart: they run other prompts each. Please report it")

    def _inside(self, tokens: Int[Tensor, "..."], n: int) -> tuple[Tensor, Tensor]:
        """Tokens as numbered in this process's share, and which of them are in it; others are some token of it."""
        start, stop = _bounds(n, self.mesh)
        return (tokens - start).clamp(0, max(0, stop - start - 1)), (tokens >= start) & (tokens < stop)


def _local(part: Any) -> Any:
    """Weights as this process has them, as plain tensors."""
    if isinstance(part, DTensor):
        return part.to_local()
    if isinstance(part, tuple):
        return tuple(map(_local, part))
    if isinstance(part, Weights | LayerWeights | NormWeights):
        return type(part)(**{field.name: _local(getattr(part, field.name)) for field in fields(part)})
    return part


def planned_bytes(spec: ModelSpec, weights: Weights, size: int) -> int:
    """Bytes of the weights that a process of so many has at most, from their shapes."""

    def count(name: str, part: Any) -> int:
        if isinstance(part, Tensor):
            axis = None if name in KEYS_VALUES and copies_keys(spec, size) else SPLIT.get(name)
            n = part.numel() if axis is None else part.numel() // part.shape[axis] * -(-part.shape[axis] // size)
            return n * part.element_size()
        if isinstance(part, tuple):
            return sum(count(name, entry) for entry in part)
        return sum(count(field, value) for field, value in vars(part).items()) if is_dataclass(part) else 0

    return count("", weights)


def own_bytes(components: Components) -> int:
    """Bytes of the weights that this process has."""

    def count(part: Any) -> int:
        if isinstance(part, Tensor):
            return part.numel() * part.element_size()
        if isinstance(part, tuple):
            return sum(map(count, part))
        return sum(count(value) for value in vars(part).values()) if is_dataclass(part) else 0

    return count(_local(components.weights))
