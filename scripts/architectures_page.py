"""Write docs/architectures.md by running every architecture: random weights of the real configuration, made small.

python scripts/architectures_page.py                     # a minute
python scripts/architectures_page.py --real FOLDER ...   # real weights, too (Hugging Face folders)
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
sys.path.insert(0, str(ROOT / "tests"))

HEAD = """# Architectures

What runs, and how exactly, written by running it (`python scripts/architectures_page.py`): a small model of each
architecture with random weights, in float64. Three ways to run a model, tried in this order (`model.components=fast` or
`hooks` asks for one):

1. **declared**: a family in `circuitdisc/models/families/` says where the weights are and which switches are set. Runs
   node by node.
2. **guessed**: no family declares the architecture, its module has the usual shape of a decoder, and the model so read
   gives the module's own logits, in the self-check and again on the longest prompts of each call. Runs node by node,
   too.
3. **hooks**: TransformerLens's bridge splits it. Every run is a run of the whole model.

Everything else is refused with the reason. Differences are relative to the largest logit: of the full circuit against
Hugging Face's own logits, and of the logits with one edge cut, the largest of {edges} random edges, against a literal
forward pass of Hugging Face's module with hooks at that edge's receiver (`tests/literal.py`). Where they are 1e-7, the
family's own code computes norms, softmaxes or rotary angles in float32. A mixture of experts is one sender: its router
reads what its experts read, so that the whole block is a function of its own input.

Norms after attention, and norms of queries and keys that go across heads (OLMo), couple the heads of a layer. The one
number a position by which they divide is held at its value in the full model's run, so that a head's output depends on
its own inputs alone; the full circuit is still exactly the model.

Prompts end where an architecture begins to change: rotary positions of the kind `longrope` (Phi-4-mini) are those of
short prompts, and Ministral 3's scaling of queries at later positions is not there before its first length.

"""


def row_of(title: str, module: Any, n_edges: int) -> list[str]:
    """One line of the table."""
    from literal import compared, ungrouped  # pyright: ignore[reportMissingImports] - of the tests

    from circuitdisc.engine.selfcheck import check_model, is_the_module
    from circuitdisc.errors import BadModel
    from circuitdisc.models import cut_hugging_face

    kind = f"`{module.config.model_type}`"
    try:
        model = cut_hugging_face(module, accepts=is_the_module)
        checked = max(check_model(model).values())
    except BadModel as error:
        why = str(error).partition(": ")[2].partition(". ")[0]
        return [title, kind, "refused: " + (why if len(why) < 160 else why[:159] + "…"), "", "", ""]
    if not model.can("partial runs"):
        return [title, kind, "hooks", f"{checked:.0e}", "", ""]
    state = "guessed" if model.guessed else "declared"
    try:
        found = compared(ungrouped(module), n_edges)
    except (RuntimeError, BadModel):  # keys and values that do not come apart
        return [title, kind, state, f"{checked:.0e}", "", ""]
    return [title, kind, state, f"{checked:.0e}", f"{found['full']:.0e}", f"{found['edges']:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=20)
    parser.add_argument("--real", nargs="*", default=[], help="Hugging Face folders")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    from models import UNDECLARED, hugging_face  # pyright: ignore[reportMissingImports] - of the tests
    from transformers.utils import logging

    from circuitdisc.models.families import all_families

    logging.set_verbosity_error()
    titles = {kind: title for family in all_families() for kind, title in family.titles.items()}
    titles |= {"falcon_alibi": "Falcon, linear positions", "falcon_groups": "Falcon, groups of keys"}
    rows = [row_of(title, hugging_face(kind).double(), args.edges) for kind, title in titles.items()]
    for kind in UNDECLARED:
        module = hugging_face(kind).double().requires_grad_(False)
        rows.append(row_of(type(module).__name__.removesuffix("ForCausalLM"), module, args.edges))
    order = ["declared", "guessed", "hooks"]
    rows.sort(key=lambda row: order.index(row[2]) if row[2] in order else len(order))
    lines = [HEAD.format(edges=args.edges).rstrip(), "", *table(rows)]
    if args.real:
        from transformers import AutoModelForCausalLM

        real = []
        for folder in args.real:
            module = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").double().eval()
            real.append(row_of(Path(folder).name, module.requires_grad_(False), args.edges))
        lines += ["", "With real weights (float64):", "", *table(real)]
    PAGE.write_text("\n".join(lines) + "\n")
    print(PAGE)


def table(rows: list[list[str]]) -> list[str]:
    """In Markdown."""
    header = ["architecture", "`model_type`", "runs", "self-check", "full circuit", "single edges"]
    return ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]


if __name__ == "__main__":
    main()
