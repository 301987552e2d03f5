"""Hands a GPT-2 and prompts over to AutoCircuit, runs it in an environment of its own and reads back what it measured.

    python -m benchmarks.peers.export --check    # a 4-layer toy there and back; compares the logits

Everything here runs in our environment; `autocircuit_acdc.py` runs in the other.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from .environment import make_environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / "autocircuit_acdc.py"
Mode = Literal["whole", "per-edge", "eap", "eap-ig"]
# glibc keeps freed memory. AutoCircuit allocates gigabytes for each edge, and to fault them in anew each time can take longer
# than to compute with them.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}


def export_gpt2(model: GPT2LMHeadModel, folder: str | Path) -> None:
    """Write `weights.safetensors` and `config.json`: a GPT-2 as a HookedTransformer names it, nothing folded or centred."""
    config = model.config
    if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
        raise ValueError("a GPT-2 with the usual scale of attention scores is needed")
    n_heads, d_model = config.n_head, config.n_embd
    d_head = d_model // n_heads
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    weights: dict[str, Tensor] = {
        "embed.W_E": state["transformer.wte.weight"],
        "pos_embed.W_pos": state["transformer.wpe.weight"],
        "ln_final.w": state["transformer.ln_f.weight"],
        "ln_final.b": state["transformer.ln_f.bias"],
        "unembed.W_U": state["lm_head.weight"].T,
        "unembed.b_U": torch.zeros(config.vocab_size),
    }
    for layer in range(config.n_layer):
        theirs, ours = f"transformer.h.{layer}.", f"blocks.{layer}."
        for norm in ("1", "2"):
            weights[f"{ours}ln{norm}.w"] = state[f"{theirs}ln_{norm}.weight"]
            weights[f"{ours}ln{norm}.b"] = state[f"{theirs}ln_{norm}.bias"]
        stacked = state[f"{theirs}attn.c_attn.weight"].split(d_model, dim=1)  # [D, 3 D], columns by head
        biases = state[f"{theirs}attn.c_attn.bias"].split(d_model)
        for letter, weight, bias in zip("QKV", stacked, biases, strict=True):
            weights[f"{ours}attn.W_{letter}"] = weight.reshape(d_model, n_heads, d_head).transpose(0, 1)
            weights[f"{ours}attn.b_{letter}"] = bias.reshape(n_heads, d_head)
        weights[f"{ours}attn.W_O"] = state[f"{theirs}attn.c_proj.weight"].reshape(n_heads, d_head, d_model)
        weights[f"{ours}attn.b_O"] = state[f"{theirs}attn.c_proj.bias"]
        for end, name in (("in", "c_fc"), ("out", "c_proj")):
            weights[f"{ours}mlp.W_{end}"] = state[f"{theirs}mlp.{name}.weight"]
            weights[f"{ours}mlp.b_{end}"] = state[f"{theirs}mlp.{name}.bias"]
    switches = {
        "n_layers": config.n_layer,
        "n_heads": n_heads,
        "d_model": d_model,
        "d_head": d_head,
        "d_mlp": config.n_inner or 4 * d_model,
        "d_vocab": config.vocab_size,
        "n_ctx": config.n_positions,
        "act_fn": config.activation_function,
        "normalization_type": "LN",
        "eps": config.layer_norm_epsilon,
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses tensors that share memory, as tied embeddings do
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, Path(folder) / "weights.safetensors")
    (Path(folder) / "config.json").write_text(json.dumps(switches, indent=1) + "\n", encoding="utf-8")


def export_prompts(folder: str | Path, clean: Tensor, corrupted: Tensor, answers: Tensor, wrong: Tensor) -> None:
    """Write `prompts.json`.

    Args:
        clean, corrupted: token ids, prompts x tokens, without padding; both of the same shape.
        answers, wrong: one token id for each prompt.
    """
    if clean.ndim != 2 or clean.shape != corrupted.shape or not len(clean) == len(answers) == len(wrong):
        raise ValueError("clean and corrupted prompts of one shape are needed, with an answer and a wrong answer each")
    prompts = {"clean": clean, "corrupted": corrupted, "answers": answers, "wrong": wrong}
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: ids.tolist() for name, ids in prompts.items()})
    (Path(folder) / "prompts.json").write_text(text + "\n", encoding="utf-8")


def run_peer(
    mode: Mode,
    folder: str | Path,
    *,
    order: Sequence[str] | None = None,
    keep_memory: bool | None = None,
    timeout: float | None = None,
    **options: Any,
) -> dict[str, Any] | None:
    """Run AutoCircuit on an exported folder, in a process of its own.

    Args:
        mode: `whole`: its ACDC to the end; `per-edge`: a few edges and what all would take; `eap`, `eap-ig`: attribution.
        folder: as `export_gpt2` and `export_prompts` wrote it.
        order: `whole`: all edges by name (`m2->a7.h0<v>`), in the order to visit within a layer. Without it, AutoCircuit takes
            the order of a Python set, another one in every process.
        keep_memory: let the process keep the memory it frees (glibc), which speeds AutoCircuit up much. None: for ACDC, but not
            for attribution, whose peak memory is measured.
        timeout: seconds.
        options: of `autocircuit_acdc.py`, such as `threads=2`, `threshold=5e-4`, `metric="kl_div"`, `edges=6`, `steps=5`.

    Returns:
        What it measured, or None where its environment cannot be made (which is then printed).

    Raises:
        RuntimeError: the run failed.
    """
    python = make_environment(ROOT)
    if python is None:
        return None
    folder = Path(folder).resolve()
    result = folder / f"autocircuit_{mode}.json"
    result.unlink(missing_ok=True)
    command = [str(python), str(SCRIPT), str(folder), "--mode", mode, "--out", str(result)]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if order is not None:
        (folder / "order.json").write_text(json.dumps(list(order)), encoding="utf-8")
        command += ["--order", str(folder / "order.json")]
    settings = {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    if mode in ("whole", "per-edge") if keep_memory is None else keep_memory:
        settings |= KEEP_MEMORY
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ran = subprocess.run(command, env=inherited | settings, capture_output=True, text=True, timeout=timeout, check=False)
    if ran.returncode != 0:
        raise RuntimeError(f"AutoCircuit failed in mode {mode}:\n{ran.stderr[-3000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def logits_difference(model: GPT2LMHeadModel, folder: str | Path) -> float:
    """After `run_peer`: the largest difference between the two environments' logits, first prompt, last position."""
    prompts = json.loads((Path(folder) / "prompts.json").read_text(encoding="utf-8"))
    theirs = load_file(Path(folder) / "autocircuit_logits.safetensors")["logits"]
    with torch.inference_mode():
        ours = model.eval()(torch.tensor(prompts["clean"][:1])).logits[0, -1]
    return (ours - theirs).abs().max().item()


def random_prompts(n_prompts: int, n_tokens: int, position: int, d_vocab: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random clean and corrupted prompts that differ in the token at `position`; answers and wrong answers, random too."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(d_vocab, (n_prompts, n_tokens), generator=generator)
    answers, shift = (torch.randint(low, d_vocab, (n_prompts,), generator=generator) for low in (0, 1))
    corrupted = clean.clone()
    corrupted[:, position] = (clean[:, position] + shift) % d_vocab
    return clean, corrupted, answers, (answers + shift) % d_vocab


def random_gpt2(config: GPT2Config, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(config).eval()


def check() -> bool:
    """A 4-layer toy to AutoCircuit and back."""
    config = GPT2Config(
        n_layer=4, n_head=4, n_embd=64, vocab_size=500, n_positions=32, initializer_range=0.2, bos_token_id=0, eos_token_id=0
    )
    model = random_gpt2(config)
    with tempfile.TemporaryDirectory() as folder:
        export_gpt2(model, folder)
        export_prompts(folder, *random_prompts(32, 16, position=10, d_vocab=config.vocab_size))
        found = run_peer("whole", folder, threshold=5e-4)
        if found is None:
            return False
        difference = logits_difference(model, folder)
    print(
        f"logits differ by {difference:.1e}; {found['edges_tested']} of {found['n_edges']} edges tested, {found['edges_kept']} "
        f"kept, in {found['seconds']:.1f} s, the time of {found['forwards']:,.0f} plain forwards"
    )
    return difference < 1e-4


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", required=True, help="run the 4-layer toy")
    parser.parse_args()
    sys.exit(0 if check() else 1)
