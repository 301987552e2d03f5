"""Train the in-context linear regression toy that ships as `toys/linear_regression`.

    python scripts/train_linear_regression.py        # two minutes on one core; the same weights every time

A prompt is 40 points (x, y) with y = w . x for a w of its own, then a point whose y is asked for and stands as 0. Toys read
token ids, so that numbers are quantised: a token stands for one of 256 fixed x (4 numbers, white) and one of 33 values of y.
The embedding is that table, the unembedding reads the residual's last entry; both are fixed. One layer of two softmax heads
without biases, norm, MLP or positions is trained on the squared error. Weight decay takes what no prompt uses to 0.

Source: von Oswald et al. 2023 (https://arxiv.org/abs/2212.07677) and Zhang et al. 2024 (https://arxiv.org/abs/2306.09927) for
linear attention; He et al. 2025 (https://arxiv.org/abs/2503.12734) for softmax heads.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from circuitdisc.models.toy import ToyConfig, ToyTransformer

OUT = Path(__file__).parent.parent / "circuitdisc" / "shipped" / "toys" / "linear_regression"
INPUTS, POINTS, CODEBOOK = 4, 40, 256
LEVELS = torch.linspace(-3.2, 3.2, 33)
CONFIG = ToyConfig(
    n_layers=1,
    n_heads=2,
    d_model=INPUTS + 1,
    d_head=INPUTS + 1,
    d_vocab=CODEBOOK * len(LEVELS),
    n_ctx=POINTS + 1,
    attn_only=True,
    d_vocab_out=1,
    positional_embedding_type="none",
)


class Prompts(NamedTuple):
    """Token ids [B, T]; the points' x [B, T, 4] and y [B, T], as the tokens say them; the y asked for, not quantised [B]."""

    tokens: Tensor
    x: Tensor
    y: Tensor
    target: Tensor


def codebook() -> Tensor:
    """The x that tokens stand for, with mean 0 and covariance 1. [256, 4]"""
    x = torch.randn(CODEBOOK, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    return (x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / CODEBOOK)).T).float()


def draw(n: int, table: Tensor, generator: torch.Generator) -> Prompts:
    """Prompts with a weight vector each; no x occurs twice in one."""
    which = torch.rand(n, CODEBOOK, generator=generator).argsort(-1)[:, : POINTS + 1]
    x = table[which]
    y = (x @ torch.randn(n, INPUTS, 1, generator=generator) / INPUTS**0.5)[..., 0]
    level = (y[..., None] - LEVELS).abs().argmin(-1)
    level[:, -1] = len(LEVELS) // 2
    return Prompts(which * len(LEVELS) + level, x, LEVELS[level], y[:, -1])


def untrained(seed: int) -> ToyTransformer:
    """The toy with its table in place; only the four attention matrices take part in training."""
    model = ToyTransformer(CONFIG, seed)
    values = LEVELS.repeat(CODEBOOK)[:, None]
    rows = torch.cat([codebook().repeat_interleave(len(LEVELS), 0), values], dim=1)
    with torch.no_grad():
        model.get_parameter("embed.W_E").copy_(rows)
        model.get_parameter("unembed.W_U").copy_(torch.eye(INPUTS + 1)[:, -1:])
    for name, value in model.named_parameters():
        value.requires_grad_(".W_" in name and "blocks" in name)
    return model


def train(steps: int, seed: int) -> ToyTransformer:
    """AdamW on the squared error of the point asked for, batch 256, linear decay."""
    model, table, generator = untrained(seed), codebook(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with tqdm(range(steps), desc="linear regression", unit="step") as bar:
        for step in bar:
            prompts = draw(256, table, generator)
            loss = (model(prompts.tokens)[:, -1, 0] - prompts.target).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model


def errors(model: ToyTransformer, seed: int, n: int = 4000) -> dict[str, float]:
    """Mean squared error on new prompts: the toy's, and those of three rules (a step of gradient descent at its best rate)."""
    prompts = draw(n, codebook(), torch.Generator().manual_seed(seed))
    x, y, asked = prompts.x[:, :-1], prompts.y[:, :-1], prompts.x[:, -1]
    step = torch.einsum("btd,bt,bd->b", x, y, asked)
    squares = torch.linalg.lstsq(x, y[..., None]).solution[..., 0]
    with torch.no_grad():
        said = model(prompts.tokens)[:, -1, 0]
    rules = {
        "toy": said,
        "zero": torch.zeros_like(said),
        "gradient step": step * (step @ prompts.target) / (step @ step),
        "least squares": (squares * asked).sum(-1),
    }
    return {name: float((rule - prompts.target).pow(2).mean()) for name, rule in rules.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = train(args.steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = {name: value.detach().contiguous() for name, value in model.named_parameters() if ".b_" not in name}
    save_file(kept, args.out / "model.safetensors")
    (args.out / "model.safetensors").chmod(0o644)
    figures = {name: round(error, 4) for name, error in errors(model, args.seed + 1).items()}
    note = f"trained by scripts/train_linear_regression.py --steps {args.steps} --seed {args.seed}"
    config = {**asdict(CONFIG), "note": note, "squared_error": figures}
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(figures)


if __name__ == "__main__":
    main()
