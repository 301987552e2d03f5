"""`cd.run_with_hooks` and `cd.run_with_cache`: the one forward pass for users, at the points of `forward.py`.

    def silence(layer, result):                      # result: [H, B, T, D]
        if layer == 3:
            result = result.clone()
            result[1] = 0
        return result

    logits = cd.run_with_hooks(model, "The capital of France is", {"result": silence})
    logits, cache = cd.run_with_cache(model, tokens, ["pattern", "resid_post"])
    cache["pattern"][3]                              # [H, B, T, T]

Gradients flow to whatever the hooks are made of.

Shape letters: B prompts, T positions, V vocabulary.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitdisc.engine.forward import POINTS, Hook, Hooks, forward, joined
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadSetting, BadTask, UnknownName
from circuitdisc.models.model import Model

Prompts = Int[Tensor, "B T"] | str | Sequence[str] | Sequence[Sequence[int]]


def run_with_hooks(model: Model, prompts: Prompts, hooks: Mapping[str, Hook]) -> Float[Tensor, "B T V"]:
    """Logits of a run of the whole model under hooks.

    Args:
        prompts: token ids [B, T], lists of ids, or text for the model's tokenizer; shorter prompts are padded on the right, and
            what stands at padding means nothing.
        hooks: point -> function of the layer's number and the value there, which returns the value to go on with. The points
            are those of `engine/forward.py`.

    Raises:
        UnknownName: there is no such point.
        BadSetting: the model has no fast components, or a hook returns no tensor of the value's shape.
        BadTask: there are no prompts, text without a tokenizer, or ids that the model does not have.

    Scales of norms that couple heads are frozen at the run without hooks, so that heads stay separate.
    """
    for point in hooks:
        if point not in POINTS:
            raise UnknownName("hook point", point, POINTS)
    components, graph = components_of(model, "run_with_hooks"), model.graph
    tokens, is_token = _tokens(model, prompts)
    position_ids = (is_token.long().cumsum(1) - 1).clamp(min=0)
    frame = components.frame(is_token, position_ids)
    x = components.embed(tokens, position_ids, split=False)[0]
    if components.freezes_scales:
        with torch.no_grad():
            forward(components, graph, frame, x, fix_scale=True)
    final = forward(components, graph, frame, x, {point: _checked(point, hook) for point, hook in hooks.items()})
    return components.unembed(final.flatten(0, 1)[None])[0].unflatten(0, tokens.shape)


@torch.no_grad()
def run_with_cache(
    model: Model, prompts: Prompts, points: Sequence[str] = POINTS, hooks: Mapping[str, Hook] | None = None
) -> tuple[Float[Tensor, "B T V"], dict[str, list[Tensor]]]:
    """Logits of a run, and what stood at some points.

    Args:
        points: which of the points are kept.
        hooks: as for `run_with_hooks`; what is kept is what they give.

    Returns:
        logits; point -> the value at each layer, in the shapes of `engine/forward.py`.

    Raises:
        UnknownName, BadSetting, BadTask: as `run_with_hooks`.
    """
    cache: dict[str, list[Tensor]] = {point: [] for point in points}

    def keep(point: str) -> Hook:
        def kept(layer: int, value: Tensor) -> Tensor:
            cache[point].append(value)
            return value

        return kept

    looking: Hooks = {point: keep(point) for point in points}
    return run_with_hooks(model, prompts, joined(hooks or {}, looking)), cache


def _checked(point: str, hook: Hook) -> Hook:
    """The hook, if what it returns can be gone on with."""

    def checked(layer: int, value: Tensor) -> Tensor:
        given = hook(layer, value)
        if not isinstance(given, Tensor) or given.shape != value.shape:
            what = f"a tensor of shape {list(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise BadSetting(
                f"the hook at '{point}' gave {what} at layer {layer}, where the value has shape {list(value.shape)}: return "
                "the value to go on with"
            )
        return given

    return checked


def _tokens(model: Model, prompts: Prompts) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token ids, padded on the right, and where they are tokens."""
    rows = [prompts] if isinstance(prompts, str) else prompts
    if len(rows) and isinstance(rows[0], str):
        if model.tokenizer is None:
            raise BadTask(f"{model.name} has no tokenizer: give token ids")
        rows = [model.tokenizer(text)["input_ids"] for text in rows]
    try:
        ids = [[int(token) for token in row] for row in rows]
    except (TypeError, ValueError) as error:
        raise BadTask("prompts must be text, lists of token ids, or a tensor of ids [B, T]") from error
    longest = max((len(row) for row in ids), default=0)
    if not ids or not min(map(len, ids)):
        raise BadTask("there is nothing to run: give at least one prompt of at least one token")
    if longest > model.n_ctx:
        raise BadTask(f"a prompt has {longest} tokens, and {model.name} reads at most {model.n_ctx}: shorten it")
    strange = next((token for row in ids for token in row if not 0 <= token < model.d_vocab), None)
    if strange is not None:
        raise BadTask(f"{model.name} has no token id {strange}: it has {model.d_vocab:,} tokens")
    tokens = torch.zeros(len(ids), longest, dtype=torch.long, device=model.device)
    is_token = torch.zeros_like(tokens, dtype=torch.bool)
    for row, some in enumerate(ids):
        tokens[row, : len(some)] = torch.tensor(some, device=model.device)
        is_token[row, : len(some)] = True
    return tokens, is_token
