"""A process of a split model: what it finds in each folder, written by the first one. Started by test_split.py."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from examples import random_task

import circuitdisc as cd
from circuitdisc.errors import BadRun
from circuitdisc.identity import hash_model
from circuitdisc.models import Model
from circuitdisc.models.split import own_bytes

TOKENS = [[5, 6, 7, 8, 9], [1, 2, 3, 4, 5]]


def figures(model: Model) -> dict:
    """What is compared between a split model and the whole one."""
    task = random_task(model, 3)
    given: dict[str, Any] = {"progress": False, "allow_chance": True}
    eap_ig = cd.discover(model, task, "eap_ig", steps=2, **given)
    acdc = cd.discover(model, task, "acdc", threshold=0.02, ablation="resample", **given)
    masks = cd.discover(model, task, "edge_pruning", steps=1, **given)
    scores = cd.score(model, task, acdc.circuit, n_random=1, progress=False)
    gim = cd.discover(model, task, "eap", rule="gim", **given)
    assert gim.edge_scores is not None
    assert eap_ig.edge_scores is not None
    assert masks.edge_scores is not None
    return {
        "identity": hash_model(model),
        "logits": cd.run_with_cache(model, TOKENS, [])[0].tolist(),
        "neurons": cd.run_with_cache(model, TOKENS, ["mlp_post"])[1]["mlp_post"][1].tolist(),
        "eap_ig": eap_ig.edge_scores[model.graph.edge_mask].tolist(),
        "gim": gim.edge_scores[model.graph.edge_mask].tolist(),
        "masks": masks.edge_scores[model.graph.edge_mask].tolist(),
        "acdc": acdc.circuit.mask.tolist(),
        "decisions": [line["kept"] for line in acdc.trace if "kept" in line],
        "score": scores.to_dict(),
    }


def main(rank: int, n: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)
    found = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        model = cd.load_model(path, dtype="float64", parallel={"tensor": n})
        found[path.name] = {**figures(model), "bytes": own_bytes(model.components), "others": int(model.n_processes)}
        try:
            cd.run_with_cache(model, [[5, 6, 7, 8 + rank]], [])
        except BadRun as error:
            found[path.name]["apart"] = str(error)
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # without torch's goodbyes, which wait for each other
