"""Shared fixtures. Two cores: torch must not spin, and one thread a test process is enough."""

import os
from contextlib import ExitStack, closing

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# `scripts/test fast` loads it; a test that wants more examples than others asks for a multiple of the profile's
hypothesis.settings.register_profile("fast", max_examples=25)

# The modules that take longest, as `pytest --durations=0` adds them up; `scripts/test fast` leaves them out.
LONG = {
    "test_acdc", "test_algorithms", "test_baselines", "test_bound", "test_cells", "test_cli", "test_cmap", "test_cmap_command",
    "test_cmap_memory", "test_cmap_scores", "test_discovery_benchmark", "test_drift", "test_exact_bisect", "test_finetune",
    "test_finetune_resume", "test_folders", "test_joint", "test_judge", "test_judgement_resume", "test_malformed",
    "test_masks", "test_metric_objects", "test_overlap", "test_part_scores", "test_path_points", "test_schemas",
    "test_scores_file", "test_shares", "test_shipped_multitask", "test_task_answers", "test_task_numbers", "test_task_registry",
    "test_tasks", "test_transfer",
    "test_transfer_resume", "test_judging_cost", "test_optimal", "test_compiled", "test_compare", "test_judgement_page",
    "test_verdicts_tools", "test_module_in_memory", "test_information_flow", "test_localised", "test_path_patching",
    "test_docs", "test_notebooks",
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


@pytest.fixture
def open_journal():
    """Opens a journal, which is closed after the test."""
    from circuitdisc.runs import Journal

    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(Journal(path)))


@pytest.fixture(scope="module")
def llama_in_float64():
    """Llama's own code takes norms and softmaxes in float32; here it is held to float64, as our run of it is."""
    from transformers.models.llama import modeling_llama

    def norm(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    def attention(module, query, key, value, attention_mask, scaling, **_):
        key, value = (modeling_llama.repeat_kv(x, module.num_key_value_groups) for x in (key, value))
        pattern = (query @ key.transpose(2, 3) * scaling + attention_mask).softmax(-1)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
        patch.setattr(modeling_llama, "eager_attention_forward", attention)
        yield
