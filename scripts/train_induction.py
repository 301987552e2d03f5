"""Train the shipped induction toy: two attention-only layers that continue ... A B ... A with B.

    python scripts/train_induction.py            # a few minutes on one core; the same weights every time

Sequences are a random prefix and a random block said twice, of random lengths, so that no fixed distance gives the answer away
and the model has to find the earlier A: a head of layer 0 copies each token's predecessor, a head of layer 1 looks it up
(Elhage et al. 2021; Olsson et al. 2022). The loss is on the tokens of the second block that are predictable.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from circuitdisc.models.toy import ToyConfig, ToyTransformer

OUT = Path(__file__).parent.parent / "circuitdisc" / "shipped" / "toys" / "induction"
CONFIG = ToyConfig(
    n_layers=2, n_heads=2, d_model=64, d_head=32, d_vocab=50, n_ctx=48, attn_only=True, normalization_type="LN"
)  # fmt: skip


def repeated_blocks(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token ids [n, T] with a block said twice, and a mask [n, T - 1] of the positions whose next token is predictable."""
    length = CONFIG.n_ctx
    tokens = torch.randint(0, CONFIG.d_vocab, (n, length), generator=generator)
    predictable = torch.zeros(n, length - 1, dtype=torch.bool)
    for row in range(n):
        size = int(torch.randint(6, length // 2 + 1, (1,), generator=generator))
        start = int(torch.randint(0, length - 2 * size + 1, (1,), generator=generator))
        block = torch.randperm(CONFIG.d_vocab, generator=generator)[:size]
        tokens[row, start : start + 2 * size] = block.repeat(2)
        predictable[row, start + size : start + 2 * size - 1] = True
    return tokens, predictable


def accuracy(model: ToyTransformer, n: int, generator: torch.Generator) -> float:
    """Share of predictable tokens that the model predicts."""
    tokens, predictable = repeated_blocks(n, generator)
    with torch.no_grad():
        hits = model(tokens)[:, :-1].argmax(-1) == tokens[:, 1:]
    return float(hits[predictable].float().mean())


def train(steps: int, seed: int) -> ToyTransformer:
    """AdamW, batch 64, warm-up then linear decay."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = ToyTransformer(CONFIG, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 200) * (1 - step / steps))
    with tqdm(range(steps), desc="induction", unit="step") as bar:
        for step in bar:
            tokens, predictable = repeated_blocks(64, generator)
            logits = model(tokens)[:, :-1][predictable]
            loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][predictable])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = train(args.steps, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().contiguous() for name, value in model.named_parameters()}, args.out / "model.safetensors")
    config = {**asdict(CONFIG), "note": f"trained by scripts/train_induction.py --steps {args.steps} --seed {args.seed}"}
    (args.out / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    print(f"accuracy on new sequences: {accuracy(model, 500, torch.Generator().manual_seed(args.seed + 1)):.4f}")


if __name__ == "__main__":
    main()
