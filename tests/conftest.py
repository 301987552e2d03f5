"""Shared fixtures. Two cores: torch must not spin, and one thread a test process is enough."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)

# The modules that take longest, as `pytest --durations=0` adds them up; `scripts/test fast` leaves them out.
LONG = {
    "test_acdc", "test_algorithms", "test_baselines", "test_bound", "test_cli", "test_cmap", "test_discovery_benchmark",
    "test_drift", "test_exact_bisect", "test_finetune", "test_finetune_resume", "test_folders", "test_joint", "test_judge",
    "test_judgement_resume", "test_malformed", "test_masks", "test_metric_objects", "test_overlap", "test_part_scores",
    "test_path_points", "test_schemas", "test_scores_file", "test_shipped_multitask", "test_task_answers", "test_task_registry",
    "test_tasks", "test_transfer", "test_transfer_resume",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in LONG:
            item.add_marker("long")


@pytest.fixture(scope="session")
def lightweight():
    """The shipped model that the other tests search in, in float64."""
    import circuitdisc as cd

    return cd.load_model("tpp/lightweight", dtype="float64")
