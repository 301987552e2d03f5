"""A module in memory is measured as it is, or refused; and it is left as it was."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from examples import random_examples, random_task
from models import hugging_face, toy
from torch import nn
from torch.nn.utils import parametrize

import circuitdisc as cd
from circuitdisc.ablation import Ablation
from circuitdisc.engine import selfcheck
from circuitdisc.engine.patching import Patching
from circuitdisc.engine.requirements import components_of
from circuitdisc.errors import BadModel
from circuitdisc.models import Model, cut_hugging_face, cut_toy
from circuitdisc.tasks import Task


def use(model: Model) -> None:
    """The least that any public call does."""
    Patching(model, Ablation("zero"), random_examples(model, 4))


def adapted(family: str = "llama", **settings: Any) -> Any:
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    model = peft.get_peft_model(hugging_face(family), peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.double().eval()


def logit_difference(module: Any, model: Model, task: Task) -> float:
    """The truth: plain transformers, example by example."""
    total = 0.0
    for example in task.heldout:
        with torch.no_grad():
            logits = module(torch.tensor([example.clean])).logits[0]
        pairs = zip(example.positions, example.answers, example.wrong, strict=True)
        values = [logits[at, list(right)].mean() - logits[at, list(wrong)].mean() for at, right, wrong in pairs]
        total += float(torch.stack(values).mean())
    return total / len(task.heldout)


def single_answers(model: Model) -> Task:
    from dataclasses import replace

    task = random_task(model)
    plain = [[replace(one, answers=tuple((a[0],) for a in one.answers)) for one in part] for part in (task.train, task.heldout)]
    return replace(task, train=tuple(plain[0]), heldout=tuple(plain[1]))


# --- more than its weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PeftModel", "its base", "DoRA", "hooks"])
def test_an_adapted_model_is_measured_as_adapted(kind: str) -> None:
    module = adapted(use_dora=kind == "DoRA")
    given = module.get_base_model() if kind == "its base" else module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = cut_hugging_face(given, name="adapted", components="hooks" if kind == "hooks" else "auto")
    task = single_answers(model)
    discovery = cd.discover(model, task, "random", edges=40, ablation="zero", allow_chance=True)
    full = cd.curve(model, task, discovery).full
    truth = logit_difference(module, model, task)
    assert abs(truth - logit_difference(hugging_face("llama").double(), model, task)) > 1e-2
    assert float(getattr(full, "value", full)) == pytest.approx(truth, abs=1e-6)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_adapter_that_is_switched_off_is_not_merged() -> None:
    module = adapted()
    with module.disable_adapter():
        model = cut_hugging_face(module, name="off")
        use(model)
        expected = hugging_face("llama").double().state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.module.state_dict().items())
    with pytest.raises(BadModel, match="an adapter on"):
        use(model)  # switched on again: no longer what was wrapped


def test_an_adapter_that_is_trained_on_is_seen() -> None:
    module = adapted()
    model = cut_hugging_face(module, name="trained")
    use(model)
    with torch.no_grad():
        next(parameter for name, parameter in module.named_parameters() if "lora_B" in name).add_(1.0)
    with pytest.raises(BadModel, match="the computation graph is not the model"):
        use(model)


def test_prompts_that_peft_has_trained_are_refused() -> None:
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(BadModel, match="adds trained vectors to the prompt"):
        cut_hugging_face(peft.get_peft_model(hugging_face("llama"), config), name="prompts")


class _Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def steer(module: Any) -> Callable[[], Any]:
    return module.model.layers[1].mlp.register_forward_hook(lambda part, inputs, output: output + 0.5).remove


def steer_before(module: Any) -> Callable[[], Any]:
    return module.model.layers[0].register_forward_pre_hook(lambda part, inputs: (inputs[0] * 2, *inputs[1:])).remove


def replace_forward(module: Any) -> Callable[[], Any]:
    mlp, own = module.model.layers[1].mlp, module.model.layers[1].mlp.forward
    mlp.forward = lambda x: own(x) * 3
    return lambda: delattr(mlp, "forward")


@pytest.mark.parametrize("change", [steer, steer_before, replace_forward])
@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_that_change_the_model_are_refused_and_may_be_taken_off(change: Callable[[Any], Any], when: str) -> None:
    module = hugging_face("llama")
    undo = change(module) if when == "before" else None
    model = cut_hugging_face(module, name="hooked")
    if undo is None:
        use(model)
        undo = change(module)
    task = random_task(model)
    calls = (
        lambda: cd.discover(model, task, "eap", edges=10, ablation="resample", allow_chance=True),
        lambda: cd.score(model, task, cd.Circuit.full(model.graph), ablation="zero", n_random=1),
        lambda: components_of(model, "any tool"),
    )
    for call in calls:
        with pytest.raises(
            BadModel, match=r"does more than its weights: a (forward hook on|replaced forward of) model\.layers"
        ):
            call()
    undo()
    use(model)


def test_a_hook_that_only_looks_is_no_fault() -> None:
    module = hugging_face("llama")
    seen = []
    module.model.layers[0].register_forward_hook(lambda part, inputs, output: seen.append(1))
    use(cut_hugging_face(module, name="watched"))
    assert seen


def test_a_hook_that_acts_on_some_prompts_alone_is_seen_on_the_examples_of_the_call() -> None:
    module = hugging_face("llama")

    def hook(part: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1 if output.shape[1] > 7 else output  # longer than the self-check's own prompts

    module.model.layers[0].mlp.register_forward_hook(hook)
    model = cut_hugging_face(module, name="some")
    assert selfcheck.check_model(model)
    long = [one for one in random_examples(model, 40) if len(one) > 7]
    with pytest.raises(BadModel, match=r"a forward hook on model\.layers\.0\.mlp"):
        Patching(model, Ablation("zero"), long[:2])


def test_parametrized_weights_are_measured_and_their_changes_seen() -> None:
    module = hugging_face("llama")
    parametrize.register_parametrization(module.model.layers[1].mlp.up_proj, "weight", _Doubled())
    model = cut_hugging_face(module, name="parametrized")
    use(model)
    tokens = torch.arange(6)[None]
    plain = hugging_face("llama")
    plain.model.layers[1].mlp.up_proj.weight.data *= 2
    torch.testing.assert_close(model.own_logits(tokens, torch.ones_like(tokens), tokens), plain(tokens).logits)
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.parametrizations.weight.original.mul_(3.0)
    with pytest.raises(BadModel, match="parametrization"):
        use(model)


def test_quantised_layers_and_whole_numbers_are_refused() -> None:
    module = hugging_face("llama")
    module.model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.ones(48, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(BadModel, match=r"without plain floating-point weights \(model.layers.0.mlp.up_proj.weight\)"):
        cut_hugging_face(module, name="int8")
    if "qnnpack" in torch.backends.quantized.supported_engines or "fbgemm" in torch.backends.quantized.supported_engines:
        dynamic = torch.ao.quantization.quantize_dynamic(hugging_face("llama"), {nn.Linear}, dtype=torch.qint8)
        with pytest.raises(BadModel, match=r"without plain floating-point weights"):
            cut_hugging_face(dynamic, name="dynamic")


def test_weights_that_are_no_numbers_are_called_so() -> None:
    module = hugging_face("llama")
    model = cut_hugging_face(module, name="nan")
    use(model)
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    with pytest.raises(BadModel, match=r"NaN in the weights model\.layers\.1\.mlp\.up_proj\.weight"):
        use(model)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_are_looked_through(wrap: Callable[[Any], Any]) -> None:
    use(cut_hugging_face(wrap(hugging_face("gpt2")), name="wrapped"))


@pytest.mark.parametrize("thing", ["gpt2", nn.Linear(2, 2), None, "body"])
def test_what_is_no_language_model_is_refused(thing: Any) -> None:
    module = hugging_face("gpt2").transformer if thing == "body" else thing
    with pytest.raises(BadModel, match=r"Hugging Face causal language model|is not a model"):
        cut_hugging_face(module, name="thing")


# --- left as it was -------------------------------------------------------------------------------------------------------


def in_training(family: str) -> Any:
    module = hugging_face(family)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    module.train()
    module.get_submodule("transformer.h.0" if family == "gpt2" else "model.layers.0").eval()  # some parts are not in training
    next(module.parameters()).requires_grad_(False)
    module.set_attn_implementation("sdpa")
    return module


def state(module: Any) -> Any:
    return (
        [(name, part.training) for name, part in module.named_modules()],
        [(name, id(weight), weight.requires_grad, weight.grad is None) for name, weight in module.named_parameters()],
        (module.config.use_cache, module.config._attn_implementation),
        [type(part) for part in module.modules()],
        module.config.to_dict(),
    )


@pytest.mark.parametrize("components", ["fast", "hooks"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_callers_module_is_as_it_was(family: str, components: str) -> None:
    module = in_training(family)
    before, weights = state(module), copy.deepcopy(module.state_dict())
    evaluated = copy.deepcopy(module).eval()
    model = cut_hugging_face(module, name=family, components=components)
    task = random_task(model)
    algorithm = "eap_ig" if components == "fast" else "random"
    discovery = cd.discover(model, task, algorithm, edges=10, ablation="resample", allow_chance=True)
    cd.score(model, task, discovery.circuit, n_random=1)
    assert state(module) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in module.state_dict().items())
    tokens = torch.arange(6)[None]
    own = model.own_logits(tokens, torch.ones_like(tokens), tokens)
    torch.testing.assert_close(own, evaluated(tokens).logits)  # without dropout
    assert not own.requires_grad
    module(tokens).logits.sum().backward()  # and it still trains
    assert sum(weight.grad is not None for weight in module.parameters()) > 5


def test_a_module_that_trains_on_is_followed() -> None:
    """Weights are shared: what the components run is what the module has become; a copy, as for hooks, is refused."""
    module = hugging_face("llama")
    shared, copied = (cut_hugging_face(module, name=how, components=how) for how in ("fast", "hooks"))
    use(shared)
    use(copied)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    module(torch.arange(6)[None]).logits.sum().backward()
    optimizer.step()
    use(shared)
    with pytest.raises(BadModel, match="changed after it was wrapped: wrap it again"):
        use(copied)


def test_weights_that_a_family_copies_are_compared_by_value() -> None:
    """Gemma's norms store their scale minus one, so that the components hold a copy, which `.data` can leave behind."""
    module = hugging_face("gemma2")
    model = cut_hugging_face(module, name="gemma2")
    use(model)
    module.model.norm.weight.data.mul_(2.0)  # no version counter sees this
    with pytest.raises(BadModel, match="changed after it was wrapped"):
        use(model)


def test_a_toy_is_left_as_it_was() -> None:
    module = toy("no_norm")
    model = cut_toy(module)
    use(model)
    assert all(weight.requires_grad for weight in module.parameters())


def test_a_model_is_checked_once_until_its_module_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    own = selfcheck.check_model
    monkeypatch.setattr(selfcheck, "check_model", lambda model: calls.append(model.name) or own(model))
    for components in ("fast", "hooks"):
        module = hugging_face("gpt2")
        model = cut_hugging_face(module, name=components, components=components)
        for _ in range(3):
            use(model)
        assert calls == [components]
        with torch.no_grad():
            module.transformer.wte.weight.mul_(1.0)  # written to, though with the same values
        use(model)
        assert calls == [components] * 2
        calls.clear()
