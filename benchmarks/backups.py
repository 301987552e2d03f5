"""How often `circuitdisc backups` finds a backup that was planted, and how often it names one where there is none.

    python benchmarks/backups.py [--seeds 20]      # writes benchmarks/results/BACKUPS.md

Models are made by hand: attention alone, no norm, 3 layers of 4 heads in a random basis. A head copies the subject of the
prompt to the answer and marks that it wrote; all others copy it, too, a little, with gains of either sign that differ by token.
Beside them stands a head in a later layer:

    backup      copies the subject where no mark is
    (none)      is one more that only copies
    coin        looks at the mark as the backup does, and then helps on half of the tokens as much as it harms on the others
    serial      copies the subject where the mark is: it needs the first head
    negative    copies it with a negative sign where the mark is: without it the first head's effect grows, yet it is no backup
"""

import argparse
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import machine, markdown
from scipy import stats

import circuitdisc as cd
from circuitdisc.certainty.backups import above_zero
from circuitdisc.models import Model, ToyConfig, ToyTransformer, cut_toy
from circuitdisc.scoring.exact_tests import holm
from circuitdisc.stats import partition
from circuitdisc.tasks.base import Example, Task

RESULTS = Path(__file__).parent / "results" / "BACKUPS.md"
Kind = Literal["backup", "none", "coin", "serial", "negative"]
KINDS: tuple[Kind, ...] = ("backup", "none", "coin", "serial", "negative")
SIZES, SHAPES = (30, 60, 200), ("normal", "exponential, to the right", "exponential, to the left", "+1 or -1")
LAYERS, HEADS, TOKENS, K = 3, 4, 8, 10
START, END, FILL = TOKENS, TOKENS + 1, TOKENS + 2
SUBJECT, NULL, MARK = 2 * TOKENS, 2 * TOKENS + 1, 2 * TOKENS + 2  # dimensions behind those of tokens and of answers
SHARP = 100.0  # of scores, before they are divided by the square root of K


def planted(seed: int, kind: Kind) -> tuple[Model, Task, str, str, list[str]]:
    """A model, its task, the head that marks, the head beside it, and all others that copy."""
    generator = np.random.default_rng(seed)
    sizes: dict[str, Any] = {"n_layers": LAYERS, "n_heads": HEADS, "d_model": MARK + 1, "d_head": K, "d_vocab": FILL + 1}
    config = ToyConfig(**sizes, n_ctx=8, attn_only=True, positional_embedding_type="none")
    toy = ToyTransformer(config).double()
    weights = {name: torch.zeros_like(value) for name, value in toy.named_parameters()}
    basis = torch.tensor(np.linalg.qr(generator.normal(size=(MARK + 1, MARK + 1)))[0])
    tokens = torch.arange(TOKENS)
    weights["embed.W_E"][tokens, tokens] = 1
    weights["embed.W_E"][:TOKENS, SUBJECT] = 1
    weights["embed.W_E"][START, NULL] = 1
    weights["unembed.W_U"][TOKENS + tokens, tokens] = 1
    first = int(generator.integers(LAYERS - 1)), int(generator.integers(HEADS))
    later = int(generator.integers(first[0] + 1, LAYERS)), int(generator.integers(HEADS))
    gains = np.exp(generator.normal(0, 0.3, size=(LAYERS, HEADS, TOKENS))) * generator.uniform(-0.3, 0.6, (LAYERS, HEADS, 1))
    gains[first], gains[later] = (np.exp(generator.normal(0, 0.3, TOKENS)) * generator.uniform(1, 2) for _ in range(2))
    if kind == "none":
        gains[later] *= 0.3
    if kind == "coin":
        gains[later] = gains[later].mean() * generator.permutation([1, -1] * (TOKENS // 2))
    if kind == "negative":
        gains[later] *= -0.5
    for layer in range(LAYERS):
        block = {name: weights[f"blocks.{layer}.attn.{name}"] for name in ("W_Q", "b_Q", "W_K", "W_V", "W_O")}
        for head in range(HEADS):
            block["b_Q"][head, 0] = SHARP
            block["W_K"][head, SUBJECT, 0] = 1
            block["W_V"][head, tokens, tokens] = 1
            block["W_O"][head, tokens, TOKENS + tokens] = torch.tensor(gains[layer, head])
        if layer == first[0]:
            block["W_V"][first[1], SUBJECT, TOKENS] = 1
            block["W_O"][first[1], TOKENS, MARK] = 1
        if layer == later[0] and kind != "none":
            sign = 1 if kind in ("serial", "negative") else -1
            block["b_Q"][later[1], 0] = SHARP if sign < 0 else 0
            block["b_Q"][later[1], 1] = SHARP / 2
            block["W_Q"][later[1], MARK, 0] = sign * SHARP
            block["W_K"][later[1], NULL, 1] = 1
        for name in ("W_Q", "W_K", "W_V"):
            block[name].copy_(basis @ block[name])
        block["W_O"].copy_(block["W_O"] @ basis.T)
    weights["embed.W_E"].copy_(weights["embed.W_E"] @ basis.T)
    weights["unembed.W_U"].copy_(basis @ weights["unembed.W_U"])
    toy.load_state_dict(weights)
    names = [f"a{layer}.h{head}" for layer in range(LAYERS) for head in range(HEADS)]
    marks, beside = f"a{first[0]}.h{first[1]}", f"a{later[0]}.h{later[1]}"
    task = Task("planted", examples(generator, 30), examples(generator, 60))
    return cut_toy(toy, name=kind), task, marks, beside, [name for name in names if name not in (marks, beside)]


def examples(generator: np.random.Generator, n: int) -> tuple[Example, ...]:
    """Prompts of a start, a subject at any place, fillers and an end."""
    made = []
    for _ in range(n):
        subject, other = generator.choice(TOKENS, 2, replace=False).tolist()
        place = int(generator.integers(1, 5))
        clean, corrupted = ([START, FILL, FILL, FILL, FILL, END] for _ in range(2))
        clean[place], corrupted[place] = subject, other
        made.append(Example(tuple(clean), tuple(corrupted), (5,), ((subject,),), ((other,),)))
    return tuple(made)


def judged(seed: int, kind: Kind, inside: bool) -> tuple[bool, int, Any]:
    """Whether the planted pair (or the backup of all heads of the circuit) is named, how many others are, and the result."""
    model, task, marks, beside, others = planted(seed, kind)
    heads = [marks, *others[:3], *([beside] if inside else [])]
    circuit = cd.Circuit.from_heads(model.graph, heads)
    result = cd.backups(model, task, circuit, ablation="zero", seed=seed)
    pairs = {frozenset((pair.part, *pair.others)) for pair in result.backed_up}
    wanted = frozenset((marks, beside) if inside else (beside, *result.parts))
    return wanted in pairs, len(pairs - {wanted}), result


def named_at_the_bar(n: int, shape: str, draws: int) -> str:
    """How often ten pairs whose growth is exactly at the bar have any that is named; their other tests are passed."""
    generator, hits = np.random.default_rng(0), 0
    sign = -1 if "left" in shape else 1
    for _ in range(draws):
        if shape.startswith("exponential"):
            values = sign * (generator.exponential(size=(10, n)) - 1)
        else:
            values = generator.normal(size=(10, n)) if shape == "normal" else generator.choice([-1.0, 1.0], size=(10, n))
        hits += holm(np.array([above_zero(row, partition(n)) for row in values])).min() < 0.05
    return share(hits, draws)


def share(n: int, of: int) -> str:
    """`20 of 20 [.832, 1]`, the exact interval of Clopper and Pearson."""
    ends = stats.binomtest(n, of).proportion_ci(0.95, "exact")
    return f"{n} of {of} [{ends.low:.3f}, {ends.high:.3f}]"


def rows(n_seeds: int) -> list[list[str]]:
    """A line for each kind of model and place of the later head."""
    lines = []
    for kind in KINDS:
        for inside in (True, False):
            results = [judged(seed, kind, inside) for seed in range(n_seeds)]
            growth = np.mean([result.pairs[0].growth for *_, result in results])
            forwards = np.mean([result.forwards["pairs"] + result.forwards["judgement"] for *_, result in results])
            named, others = sum(own for own, *_ in results), sum(n > 0 for _, n, _ in results)
            where = "in the circuit" if inside else "outside it"
            lines.append([kind, where, share(named, n_seeds), share(others, n_seeds), f"{growth:z.2f}", f"{forwards:,.0f}"])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    headers = ["later head", "where", "named as backup", "models with another pair named", "largest growth, mean", "forwards"]
    text = [
        "# Backups that were planted, and models without one",
        "",
        f"{args.seeds} models of each kind (`benchmarks/backups.py` says how they are made), 30 search and 60 held-out",
        "examples, zero ablation, logit_diff, defaults of `circuitdisc backups`: probability of naming any pair at most 5 %.",
        f"{machine()}",
        "",
        *markdown(headers, rows(args.seeds)),
        "",
        "Shares with exact 95 % intervals. Forwards: plain forward passes of a prompt; one pass over all examples is 90. In",
        "all kinds but `backup` a pair that is named is a false one.",
        "",
        "## Ten pairs exactly at the bar",
        "",
        "The growth of each has the mean at the bar, and the two other tests are passed: the hardest case in which no pair",
        "may be named. Shares of 1,000 draws with any pair named.",
        "",
        *markdown(
            ["growth over examples", *(f"n = {n}" for n in SIZES)],
            [[shape, *(named_at_the_bar(n, shape, 1000) for n in SIZES)] for shape in SHAPES],
        ),
    ]
    RESULTS.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text))


if __name__ == "__main__":
    main()
