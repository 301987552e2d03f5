"""`cd.load_model` takes a model in memory, whatever it came in, and leaves it as it was; models pickle."""

import pickle
from typing import Any

import pytest
import torch
from examples import random_task
from models import hugging_face, toy
from test_module_in_memory import adapted, state, use
from tiny import word_tokenizer
from torch import nn

import circuitdisc as cd
from circuitdisc.errors import BadModel, BadSetting, UnknownName
from circuitdisc.models import Model

TOKENS = torch.arange(6)[None]


def own_logits(model: Model) -> torch.Tensor:
    return model.own_logits(TOKENS, torch.ones_like(TOKENS), TOKENS)


def bridged(family: str) -> Any:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    module = hugging_face(family)
    bridge = build_bridge_from_module(module, type(module).__name__, hf_config=module.config, tokenizer=None, model_name="mine")
    bridge.tokenizer = word_tokenizer()
    return bridge


class LanguageModel:
    """As nnsight has it: the module inside, reached by name, and a tokenizer."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self.tokenizer = module, word_tokenizer()


LanguageModel.__module__ = "nnsight.modeling.language"


def bridge_state(bridge: Any) -> Any:
    """Hooks, mode, gradients, configuration, weights and where they are stored."""
    parts = [(name, part.training, list(part._forward_hooks)) for name, part in bridge.named_modules()]
    weights = [(name, id(weight), weight.data_ptr(), weight._version) for name, weight in bridge.named_parameters()]
    gradients = [weight.requires_grad for weight in bridge.parameters()]
    settings = {name: str(value) for name, value in vars(bridge.cfg).items()}
    return parts, weights, gradients, bridge.original_model.config.to_dict(), settings


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "qwen3"])
def test_a_bridge_is_taken_as_it_is_and_left_as_it_was(family: str) -> None:
    bridge = bridged(family)
    before, logits = bridge_state(bridge), bridge(TOKENS).detach()
    model = cd.load_model(bridge, name="mine")
    assert model.name == "mine"
    assert model.tokenizer is not None
    torch.testing.assert_close(own_logits(model), hugging_face(family)(TOKENS).logits.detach())
    truth, task = cd.load_model(hugging_face(family)), random_task(model)
    algorithm = "eap" if model.can("gradients") else "random"
    ours, theirs = (
        cd.discover(one, task, algorithm, edges=20, ablation="resample", allow_chance=True) for one in (model, truth)
    )
    assert ours.circuit == theirs.circuit
    assert bridge_state(bridge) == before
    assert torch.equal(bridge(TOKENS), logits)


def test_what_a_bridge_does_beside_its_weights_is_refused() -> None:
    bridge = bridged("llama")
    bridge.add_hook("blocks.0.hook_mlp_out", lambda x, hook: x * 2)
    with pytest.raises(BadModel, match=r"does more than its weights: a forward hook on blocks\.0\S+mlp"):
        cd.load_model(bridge)
    bridge.reset_hooks()
    model = cd.load_model(bridge)
    with torch.no_grad():
        bridge.original_model.model.norm.weight.mul_(2.0)
    with pytest.raises(BadModel, match="the computation graph is not the model"):
        use(model)


@pytest.mark.filterwarnings("ignore::circuitdisc.errors.CircuitdiscWarning")
def test_a_bridge_with_folded_norms_is_refused() -> None:
    bridge = bridged("gpt2")
    bridge.enable_compatibility_mode()
    with pytest.raises(BadModel, match="The bridge computes something else than the model that it wraps"):
        cd.load_model(bridge)


def test_an_nnsight_model() -> None:
    module = hugging_face("llama")
    before = state(module)
    model = cd.load_model(LanguageModel(module))
    assert model.tokenizer is not None
    torch.testing.assert_close(own_logits(model), module(TOKENS).logits.detach())
    assert state(module) == before
    with pytest.raises(BadModel, match=r"not in memory .*: make it with dispatch=True"):
        cd.load_model(LanguageModel(module.to("meta")))
    with pytest.raises(BadModel, match="holds no module"):
        cd.load_model(LanguageModel(None))  # pyright: ignore[reportArgumentType] - what is refused


def test_weights_that_are_not_in_memory_are_refused() -> None:
    """A wrong number would come of weights that are not there: said before anything is run."""
    module = hugging_face("llama")
    module.model.layers[1].mlp.to("meta")
    with pytest.raises(BadModel, match=r"not in memory \(they are on torch's meta device\): load it whole"):
        cd.load_model(module)


def test_hooks_of_a_user_are_seen_on_a_module_that_accelerate_placed() -> None:
    module = hugging_face("llama")
    part = module.model.layers[0].mlp
    part._hf_hook = object()  # as accelerate marks the parts that it placed
    part.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(BadModel, match=r"does more than its weights: a forward hook on model\.layers\.0\.mlp"):
        cd.load_model(module)


@pytest.mark.parametrize("kind", ["hugging face", "toy", "peft", "bridge"])
def test_a_model_in_memory_in_another_precision(kind: str) -> None:
    make = {"hugging face": lambda: hugging_face("llama"), "toy": lambda: toy("no_norm"), "peft": adapted}
    given = make[kind]() if kind in make else bridged("llama")
    weights = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    other = "float32" if kind == "peft" else "float64"
    model = cd.load_model(given, dtype=other, device="cpu", name="mine")
    assert (str(model.dtype), model.name) == (f"torch.{other}", "mine")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in given.state_dict().items())
    torch.testing.assert_close(own_logits(model), own_logits(cd.load_model(given)).to(model.dtype), rtol=1e-4, atol=1e-5)
    with pytest.raises(UnknownName, match="unknown dtype 'float23'"):
        cd.load_model(given, dtype="float23")
    with pytest.raises(BadSetting, match=r"not a device|cannot be used here"):
        cd.load_model(given, device="nowhere")


def test_names_and_models_that_are_loaded_already() -> None:
    model = cd.load_model(toy("no_norm"))
    assert model.name == "local"
    with pytest.raises(BadModel, match="loaded already"):
        cd.load_model(model)
    tokenizer = word_tokenizer()
    renamed = cd.load_model("toys/induction", tokenizer, name="mine")
    assert (renamed.name, renamed.tokenizer) == ("mine", tokenizer)
    assert cd.load_model(name="toys/induction").name == "toys/induction"


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "toy", "peft"])
def test_models_pickle(kind: str) -> None:
    model = cd.load_model({"toy": lambda: toy("no_norm"), "peft": adapted}.get(kind, lambda: hugging_face(kind))())
    data = pickle.dumps(model)
    again = pickle.loads(data)
    assert torch.equal(own_logits(again), own_logits(model))
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.module.parameters())
    assert len(data) < 1.5 * size + 200_000  # module and components go on sharing their weights
    task = random_task(model)
    ours, theirs = (cd.discover(one, task, "eap", edges=20, ablation="zero", allow_chance=True) for one in (model, again))
    assert ours.circuit == theirs.circuit


def test_models_that_do_not_pickle_say_why() -> None:
    for model in (cd.load_model(hugging_face("llama"), components="hooks"), cd.load_model(bridged("llama"))):
        with pytest.raises(BadModel, match=r"cannot be pickled .* Load the model in each worker"):
            pickle.dumps(model)
