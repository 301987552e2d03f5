"""The fallback: any other architecture of the TransformerLens bridge, run whole, with hooks at senders and receivers.

Slower than `Components` (every run is a run of the whole model), but it needs no knowledge of the architecture beyond the
bridge's hooks: `hook_q_input`, `hook_k_input`, `hook_v_input`, `hook_mlp_in` (receivers), `attn.hook_result`, `hook_mlp_out`
(senders) and the last `hook_resid_post` (the final residual).

Shape letters: B examples, T positions, D residual width, H heads, S senders.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitdisc.errors import BadModel
from circuitdisc.graph import ComputationGraph
from circuitdisc.models.backend import Capability
from circuitdisc.models.wording import first_line

Receive = Callable[[list[int], Float[Tensor, "n B T D"], Float[Tensor, "S B T D"]], Float[Tensor, "n B T D"]]


WRAPPING_TOLERANCE = 1e-3  # the bridge may compute attention in another order or precision


@torch.no_grad()
def _probe(hf_model: Any) -> Float[Tensor, "1 T V"]:
    """Logits of a few tokens."""
    device = next(hf_model.parameters()).device
    tokens = torch.arange(5, device=device)[None] % hf_model.config.vocab_size
    return hf_model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def ungroup_queries(hf_model: nn.Module) -> None:
    """Turn grouped-query attention into full attention, in place: each query head gets a copy of its group's k and v.

    The function computed is the same; every query head then has a k and a v input of its own, as the graph has it.
    """
    module: Any
    for module in hf_model.modules():
        groups = getattr(module, "num_key_value_groups", 1)
        if groups == 1 or not isinstance(getattr(module, "k_proj", None), nn.Linear):
            continue
        for name in ("k_proj", "v_proj"):
            setattr(module, name, _repeat_heads(getattr(module, name), groups, int(module.head_dim)))
        module.num_key_value_groups = 1
    config: Any = hf_model.config
    if getattr(config, "num_key_value_heads", None):
        config.num_key_value_heads = config.num_attention_heads


def _repeat_heads(linear: nn.Linear, times: int, d_head: int) -> nn.Linear:
    def repeated(weight: Tensor) -> Tensor:
        heads = weight.detach().reshape(-1, d_head, *weight.shape[1:])
        return heads.repeat_interleave(times, dim=0).reshape(-1, *weight.shape[1:])

    wide = nn.Linear(
        linear.in_features, linear.out_features * times, linear.bias is not None, linear.weight.device, linear.weight.dtype
    )
    wide.weight = nn.Parameter(repeated(linear.weight), requires_grad=False)
    if linear.bias is not None:
        wide.bias = nn.Parameter(repeated(linear.bias), requires_grad=False)
    return wide


class HookedModel:
    """A bridged model whose receivers can be overwritten and whose senders can be read, in one whole-model run.

    Args:
        hf_model: a loaded Hugging Face causal language model; it is changed in place (the bridge wraps its modules).
        name: for messages.

    Raises:
        BadModel: the bridge does not know the architecture, or cannot split its attention by head and input.
    """

    capabilities: frozenset[Capability] = frozenset()
    how = "runs through hooks"
    causal = False  # it may be: nobody looked
    heads_per_group = 1  # `ungroup_queries`

    def __init__(self, hf_model: Any, name: str) -> None:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        self.architecture = type(hf_model).__name__
        hf_model.set_attn_implementation("eager")
        hf_model.config.use_cache = False
        hf_model.eval()
        before = _probe(hf_model)
        ungroup_queries(hf_model)
        try:
            self.bridge = build_bridge_from_module(
                hf_model, self.architecture, hf_config=hf_model.config, tokenizer=None, model_name=name
            )
            self.bridge.set_use_split_qkv_input(True)
            self.bridge.set_use_attn_result(True)
            self.bridge.set_use_hook_mlp_in(True)
        except Exception as error:  # the bridge raises many kinds, all meaning that this architecture cannot be cut
            raise BadModel(
                f"{name}: the architecture {self.architecture} cannot be cut at heads and inputs "
                f"(TransformerLens: {type(error).__name__}: {first_line(error)})"
            ) from error
        config = self.bridge.cfg
        parallel = bool(getattr(config, "parallel_attn_mlp", False))
        self.graph = ComputationGraph(
            int(config.n_layers), int(config.n_heads), has_mlp=True, parallel=parallel, d_model=int(config.d_model)
        )
        parameter = next(hf_model.parameters())
        self.dtype, self.device = parameter.dtype, parameter.device
        self.d_model, self.d_head = int(config.d_model), int(config.d_head)
        self.d_vocab, self.n_ctx = int(config.d_vocab), int(config.n_ctx)
        self._config = hf_model.config
        self._check_hooks(name)
        self._check_unchanged(before, _probe(hf_model), name)

    def _check_unchanged(self, before: Tensor, after: Tensor, name: str) -> None:
        """Wrapping changes the model in place; it must still compute what it computed."""
        difference = float((before - after).abs().max() / before.abs().max().clamp(min=1e-6))
        if not difference <= WRAPPING_TOLERANCE:
            raise BadModel(
                f"{name}: wrapping the architecture {self.architecture} for hooks changes its logits "
                f"(relative difference {difference:.1e}), so that its circuits would be those of another model"
            )

    def _check_hooks(self, name: str) -> None:
        points = self.bridge.hook_dict
        wanted = [hook for layer in range(self.graph.n_layers) for hook in self._layer_hooks(layer)]
        missing = [hook for hook in wanted if hook not in points]
        if missing:
            raise BadModel(
                f"{name}: the architecture {self.architecture} has no hook {missing[0]} in TransformerLens, "
                "so its edges cannot be cut"
            )

    @staticmethod
    def _layer_hooks(layer: int) -> list[str]:
        block = f"blocks.{layer}."
        inputs = [f"{block}attn.hook_{qkv}_input" for qkv in "qkv"]
        return [*inputs, f"{block}hook_mlp_in", f"{block}attn.hook_result", f"{block}hook_mlp_out"]

    def constant_before(self, layer: int, mlp: bool = False) -> None:
        """Biases are not told apart from the rest of the residual."""

    def unembed(self, x: Float[Tensor, "C N V"], columns: Int[Tensor, "N W"] | None = None) -> Float[Tensor, "C N W"]:
        """Some columns of the logits, in which runs end here."""
        return x if columns is None else x.gather(-1, columns.expand(x.shape[0], -1, -1))

    def logit_blocks(self, x: Float[Tensor, "C N V"], width: int) -> Iterator[Float[Tensor, "C N W"]]:
        """The logits, in which runs end here, `width` columns at a time."""
        return iter(x.split(width, dim=-1))

    def configuration(self) -> dict[str, Any]:
        """Hugging Face's configuration."""
        return self._config.to_dict() if hasattr(self._config, "to_dict") else {}

    @torch.no_grad()
    def run(
        self,
        tokens: Int[Tensor, "B T"],
        attention_mask: Int[Tensor, "B T"],
        position_ids: Int[Tensor, "B T"],
        receive: Receive | None = None,
    ) -> tuple[Float[Tensor, "S B T D"], Float[Tensor, "B T D"], Float[Tensor, "B T V"]]:
        """Run the whole model.

        Args:
            receive: called at every group of receivers with their indices, what each would read, and the senders so far
                (later ones are still 0); returns what they read instead. None: nothing is overwritten.

        Returns:
            The senders' outputs, the final residual and the logits.
        """
        graph = self.graph
        senders: dict[int, Tensor] = {}

        def so_far(like: Tensor) -> Tensor:
            zero = torch.zeros_like(like)
            return torch.stack(
                [senders[index].to(like.device) if index in senders else zero for index in range(graph.n_senders)]
            )

        def record_embedding(x: Tensor, hook: Any) -> None:
            senders[0] = x

        def record_heads(result: Tensor, hook: Any, layer: int) -> None:
            for head in range(graph.n_heads):
                senders[graph.sender_index[f"a{layer}.h{head}"]] = result[:, :, head]

        def record_mlp(x: Tensor, hook: Any, layer: int) -> None:
            senders[graph.sender_index[f"m{layer}"]] = x

        def replace_heads(x: Tensor, hook: Any, layer: int, qkv: str) -> Tensor | None:
            if receive is None:
                return None
            rows = [graph.receiver_index[f"a{layer}.h{head}<{qkv}>"] for head in range(graph.n_heads)]
            home = x.to(self.device)  # layers may be on other devices (`models/spread.py`)
            return receive(rows, home.permute(2, 0, 1, 3), so_far(home[:, :, 0])).permute(1, 2, 0, 3).to(x.device)

        def replace_one(x: Tensor, hook: Any, name: str) -> Tensor | None:
            if receive is None:
                return None
            home = x.to(self.device)
            return receive([graph.receiver_index[name]], home[None], so_far(home))[0].to(x.device)

        final: dict[str, Tensor] = {}

        def replace_final(x: Tensor, hook: Any) -> Tensor:
            replaced = replace_one(x, hook, "logits")
            final["residual"] = x if replaced is None else replaced
            return final["residual"]

        hooks: list[Any] = [("blocks.0.hook_resid_pre", record_embedding)]
        for layer in range(graph.n_layers):
            *inputs, mlp_in, result, mlp_out = self._layer_hooks(layer)
            hooks += [(point, partial(replace_heads, layer=layer, qkv=qkv)) for point, qkv in zip(inputs, "qkv", strict=True)]
            hooks += [
                (mlp_in, partial(replace_one, name=f"m{layer}")),
                (result, partial(record_heads, layer=layer)),
                (mlp_out, partial(record_mlp, layer=layer)),
            ]
        hooks.append((f"blocks.{graph.n_layers - 1}.hook_resid_post", replace_final))
        logits = self.bridge.run_with_hooks(tokens, fwd_hooks=hooks, attention_mask=attention_mask, position_ids=position_ids)
        return so_far(senders[0].to(self.device)), final["residual"].to(self.device), logits.to(self.device)
