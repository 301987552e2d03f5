"""Shared fixtures. Two cores: torch must not spin, and one thread a test process is enough."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lightweight():
    """The shipped model that the other tests search in, in float64."""
    import circuitdisc as cd

    return cd.load_model("tpp/lightweight", dtype="float64")
