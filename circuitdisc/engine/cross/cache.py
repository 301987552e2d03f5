"""Activations of one model, kept for the runs of another: in memory or on disk, packed to the tokens that will be patched.

What heads write is kept before W_O (head width instead of residual width) beside the model's W_O, once a layer. On disk every
layer of every chunk is one safetensors file, read when that layer runs. The model itself can then be let go.

Shape letters: n tokens, H heads, G groups of heads that share keys and values, K head width, D residual width, T positions.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitdisc.engine.cross.patch import patched_tokens
from circuitdisc.engine.evaluate import of_logits
from circuitdisc.engine.forward import LayerState, clean_states, logits_at
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadRun
from circuitdisc.metrics import Metric, log_probabilities
from circuitdisc.models.components import Components
from circuitdisc.models.model import Model
from circuitdisc.models.weights import NormWeights
from circuitdisc.tasks.base import Example, collate

STORED = ("output", "value", "query", "key", "pattern", "mlp", "residual")


@dataclass
class Given:
    """Activations of a model on all chunks of the examples, and those of its weights that stand behind them.

    Args:
        name: of the model.
        chunks: first and last example of each chunk.
        kinds: which activations are kept, of `STORED`.
        folder: where they lie on disk; None keeps them in memory.
        metrics: metric -> the model's own value for each example.
        log_probs: for metrics that compare with a full model: by chunk, the log-probabilities at the readings.
    """

    name: str
    chunks: tuple[tuple[int, int], ...]
    kinds: tuple[str, ...]
    folder: Path | None = None
    metrics: dict[str, Float[Tensor, "B"]] = field(default_factory=dict)
    log_probs: dict[int, Float[Tensor, "N V"]] = field(default_factory=dict)
    n_bytes: int = 0
    _tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    def put(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under a name.

        Raises:
            BadRun: the disk is full or cannot be written.
        """
        self.n_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        if self.folder is None:
            # copies: a weight's storage may be a whole file, which would stay in memory with it
            self._tensors[part] = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        path = self.folder / f"{part}.safetensors"
        try:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise BadRun(f"cannot write {path} ({error}): free some space, or name another folder with cache=") from error

    def get(self, part: str, name: str, device: torch.device) -> Tensor | None:
        """A tensor that was kept; None if the model has none of that name."""
        if self.folder is None:
            value = self._tensors.get(part, {}).get(name)
            return None if value is None else value.to(device)
        from safetensors import safe_open

        if not (self.folder / f"{part}.safetensors").exists():
            return None
        with safe_open(self.folder / f"{part}.safetensors", "pt", device=str(device)) as file:
            return file.get_tensor(name).clone() if name in file.keys() else None  # noqa: SIM118 - not a mapping

    def of(self, chunk: int, layer: int, kind: str, device: torch.device) -> Tensor:
        """Activations of one kind at one layer, packed to the tokens that are patched."""
        matrix = self.get(part_name(chunk, layer), kind, device)
        assert matrix is not None, f"{kind} was not kept"
        return matrix

    def W_O(self, layer: int, device: torch.device) -> Float[Tensor, "HK D"]:
        """What turns the weighted values of a layer's heads into what they write; a norm after attention's weights included."""
        return self._matrix(f"write{layer:03d}", "W_O", device)

    def b_O(self, layer: int, device: torch.device) -> Float[Tensor, "D"] | None:
        """The attention output bias of a layer; None for models without."""
        return self.get("biases", f"b_O{layer:03d}", device)

    def _matrix(self, part: str, name: str, device: torch.device) -> Float[Tensor, "m n"]:
        plain, turned = (self.get(part, stored, device) for stored in (name, f"{name}_turned"))
        matrix = turned.T if plain is None and turned is not None else plain
        assert matrix is not None, f"{name} was not kept"
        return matrix

    def readout(self, like: Components) -> Components:
        """Components with this model's final norm and unembedding in place of their own."""
        scale, shift, b_U = (self.get("readout", name, like.device) for name in ("scale", "shift", "b_U"))
        W_U = self._matrix("readout", "W_U", like.device)
        return Components(like.spec, replace(like.weights, norm_final=NormWeights(scale, shift), W_U=W_U, b_U=b_U))


def part_name(chunk: int, layer: int) -> str:
    return f"chunk{chunk:04d}-layer{layer:03d}"


@torch.no_grad()
def keep_activations(
    model: Model,
    examples: Sequence[Example],
    chunks: Sequence[tuple[int, int]],
    kinds: Sequence[str],
    metrics: Sequence[Metric],
    *,
    positions: Sequence[str | int] | None = None,
    readout: bool = True,
    folder: Path | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Given:
    """Run a model on the clean prompts and keep its activations.

    Args:
        chunks: first and last example of each chunk.
        kinds: of `STORED`.
        positions: at which tokens; None for all.
        readout: keep the final norm and the unembedding, too.
        folder: keep them on disk, in this folder.
        on_progress: called with the number of examples after each chunk.

    Raises:
        BadSetting: the model has no fast components.
        UnknownName: an example has no such role.
        BadRun: the folder cannot be written.
    """
    components, graph = components_of(model, "cross-model patching", whole=True), model.graph
    given = Given(model.name, tuple(chunks), tuple(kinds), folder)
    _keep_weights(given, components, readout)
    values: dict[str, list[Tensor]] = {metric.name: [] for metric in metrics}
    for chunk, (first, last) in enumerate(chunks):
        batch = collate(examples[first:last], device=model.device)
        tokens = patched_tokens(batch, positions)
        frame = components.frame(batch.is_token, batch.position_ids)
        final = torch.zeros(0)
        for state in clean_states(components, graph, batch, frame):
            given.put(part_name(chunk, state.layer), _packed(state, kinds, tokens, frame.head_scale.get(state.layer)))
            final = state.after
        if "residual" in kinds:
            given.put(part_name(chunk, graph.n_layers), {"residual": final.flatten(0, 1)[tokens]})
        logits = logits_at(components, final, batch.reads)
        labels = replace(batch.labels, full_logprobs=log_probabilities(logits))
        if any(metric.zero_at_full for metric in metrics):
            given.log_probs[chunk] = log_probabilities(logits).cpu()
        for name, each in of_logits(batch, labels, logits, metrics).items():
            values[name].append(each.double().cpu())
        if on_progress is not None:
            on_progress(batch.n_examples)
    given.metrics = {name: torch.cat(parts) for name, parts in values.items()}
    return given


def _keep_weights(given: Given, components: Components, readout: bool) -> None:
    """W_O of every layer, the attention output biases and, if asked for, the readout."""
    if "output" in given.kinds:
        for layer, block in enumerate(components.weights.layers):
            W_O, norm = block.W_O.reshape(-1, block.W_O.shape[-1]), block.norm_after_attention
            if norm is not None and norm.scale is not None:
                W_O = W_O * norm.scale
            given.put(f"write{layer:03d}", _contiguous("W_O", W_O))
    biases = {f"b_O{layer:03d}": block.b_O for layer, block in enumerate(components.weights.layers) if block.b_O is not None}
    if biases:
        given.put("biases", biases)
    if readout:
        norm, b_U = components.weights.norm_final, components.weights.b_U
        small = {"scale": norm.scale, "shift": norm.shift, "b_U": b_U}
        tensors = {name: tensor for name, tensor in small.items() if tensor is not None}
        given.put("readout", tensors | _contiguous("W_U", components.weights.W_U))


def _contiguous(name: str, matrix: Float[Tensor, "m n"]) -> dict[str, Tensor]:
    """A matrix as it lies in memory, so that products with it are the same numbers: turned if it is stored turned."""
    turned = matrix.T.is_contiguous() and not matrix.is_contiguous()
    return {f"{name}_turned": matrix.T} if turned else {name: matrix.contiguous()}


def _packed(
    state: LayerState, kinds: Sequence[str], tokens: Int[Tensor, "n"], head_scale: Float[Tensor, "B T 1"] | None
) -> dict[str, Tensor]:
    """The activations of one layer that are kept."""
    packed = {"residual": state.x.flatten(0, 1)[tokens]} if "residual" in kinds else {}
    z = state.z if head_scale is None else state.z * head_scale
    of_heads = {"output": z, "value": state.v, "query": state.q, "key": state.k, "pattern": state.pattern}
    packed |= {kind: x.flatten(1, 2)[:, tokens] for kind, x in of_heads.items() if kind in kinds}
    if "mlp" in kinds and state.mlp is not None:
        packed["mlp"] = state.mlp.flatten(0, 1)[tokens]
    return packed
