"""OPT: layer norms, ReLU, learned positions that are stored two rows further on."""

from typing import Any

from circuitdisc.models.families.family import Family, WeightMap


def _refused(config: Any) -> str:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return "this OPT norms the residual stream itself, after attention and MLP (OPT-350m does): its senders do not add up"
    if config.word_embed_proj_dim != config.hidden_size:
        return "an OPT whose embeddings are narrower than its residual stream is not supported"
    return ""


FAMILY = Family(
    {"opt": "OPT"},
    WeightMap(
        body="model.decoder",
        positions="embed_positions",
        positions_from=2,
        norm_final="final_layer_norm",
        rotary="",
        o="self_attn.out_proj",
        norm_q="",
        norm_k="",
        norm_attention="self_attn_layer_norm",
        norm_mlp="final_layer_norm",
        w_in="fc1",
        w_gate="",
        w_out="fc2",
    ),
    norm="layer",
    refused=_refused,
)
