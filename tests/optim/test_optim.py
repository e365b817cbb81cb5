"""Optimizers: what each updates, and that their state survives a checkpoint bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

from mnist_dist.config.sections import OptimConfig
from mnist_dist.models import create_model
from mnist_dist.optim.eager import eager
from mnist_dist.optim.ema import build_ema
from mnist_dist.optim.muon import MuonAdamW
from mnist_dist.optim.optimizer import build_optimizer, load_optimizer_tensors, optimizer_tensors, set_lr
from mnist_dist.utils.errors import UserError

NAMES = ("sgd", "adam", "adamw", "muon")
KINDS = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "muon": MuonAdamW}
FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(name: str, memory_format: torch.memory_format = torch.channels_last) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = create_model(name)
    return model.to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def set_gradients(model: nn.Module, step: int) -> None:
    """Gradients that depend on the step alone, in the memory format of the parameters, as autograd makes them."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=generator))


def update(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        set_gradients(model, step)
        optimizer.step()


def settings(name: str, **other: Any) -> OptimConfig:
    return OptimConfig(name=name, lr=0.01, **other)  # type: ignore[arg-type]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


# What is built


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [False, True])
def test_settings_reach_the_optimizer(name: str, fused: bool) -> None:
    config = settings(name, momentum=0.7, nesterov=True, betas=(0.8, 0.95), weight_decay=0.03)
    optimizer = build_optimizer(build("convnet"), config, fused=fused)
    assert type(optimizer).__name__ == KINDS[name].__name__
    assert all(group["fused"] is fused for group in optimizer.param_groups)  # where loading state looks
    inner: list[Optimizer] = [optimizer.muon, optimizer.adamw] if isinstance(optimizer, MuonAdamW) else [optimizer]
    for group in (group for each in inner for group in each.param_groups):
        assert "betas" not in group or group["betas"] == (0.8, 0.95)
        assert "momentum" not in group or (group["momentum"], group["nesterov"]) == (0.7, True)
        assert "fused" not in group or group["fused"] is fused
        assert {"betas", "momentum"} & group.keys()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["convnet", "deep_head_fixed", "unshuffle"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name: str, model: str) -> None:
    network = build(model)
    optimizer = build_optimizer(network, settings(name, weight_decay=0.1), fused=False)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped})
    assert {id(p) for p in grouped} == {id(p) for p in network.parameters()}
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] == 0.1}
        assert group["lr"] == 0.01


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fused", [False, True])
def test_weight_decay_shrinks_matrices_and_leaves_biases(name: str, fused: bool) -> None:
    """With gradients of 0: SGD, AdamW and Muon shrink each weight by lr * decay."""
    model = build("basic")
    before = weights(model)
    optimizer = build_optimizer(model, settings(name, momentum=0.0, weight_decay=0.5), fused=fused)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for old, new in zip(before, weights(model), strict=True):
        if old.ndim < 2:
            assert new.equal(old)
        elif name == "adam":  # it normalises the decay's gradient as any other: one step of about lr toward 0
            gradient = 0.5 * old
            assert torch.allclose(new, old - 0.01 * gradient / (gradient.abs() + 1e-8), atol=1e-6)
        else:
            assert torch.allclose(new, old * (1 - 0.01 * 0.5), rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_set_lr_sets_the_rate_of_the_next_update(name: str) -> None:
    model = build("basic")
    before = weights(model)
    optimizer = build_optimizer(model, settings(name, weight_decay=0.1), fused=False)
    set_lr(optimizer, 0.0)
    update(model, optimizer, range(3))
    assert all(old.equal(new) for old, new in zip(before, weights(model), strict=True))
    set_lr(optimizer, 0.1)
    update(model, optimizer, range(3, 4))
    assert not any(old.equal(new) for old, new in zip(before, weights(model), strict=True))


# Muon


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_updates_filters_as_torchs_muon_updates_their_matrices(
    memory_format: torch.memory_format, nesterov: bool
) -> None:
    """All but the last matrix, which AdamW updates, as it does the biases. Filters keep their memory."""
    model = build("deep_head_fixed", memory_format)
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    config = settings("muon", momentum=0.8, nesterov=nesterov, weight_decay=0.1)
    optimizer = build_optimizer(model, config, fused=False)

    names = [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]
    twins = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in model.named_parameters()}
    matrices = {name: nn.Parameter(twins[name].detach().flatten(1)) for name in names[:-1]}
    muon = Muon(
        list(matrices.values()),
        lr=0.01,
        momentum=0.8,
        nesterov=nesterov,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
    )
    plain = [twins[name] for name in twins if name not in names]
    adamw = AdamW(
        [{"params": [twins[names[-1]]], "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], lr=0.01
    )

    for step in range(4):
        set_gradients(model, step)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            twins[name].grad = parameter.grad.clone()
            if name in matrices:
                matrices[name].grad = parameter.grad.flatten(1)
        for each in (optimizer, muon, adamw):
            each.step()

    for name, parameter in model.named_parameters():
        expected = matrices[name].view_as(parameter) if name in matrices else twins[name]
        # Muon's iteration runs in bfloat16: another order of the columns rounds differently.
        assert torch.allclose(parameter, expected, atol=0.02 * 0.01 if name in matrices else 1e-7), name
        assert parameter.is_contiguous(memory_format=memory_format) or parameter.ndim != 4
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory


@pytest.mark.parametrize("memory_format", FORMATS)
def test_muon_accepts_gradients_in_another_memory_format_than_the_filters(memory_format: torch.memory_format) -> None:
    moved = []
    for layout in (memory_format, torch.contiguous_format, torch.channels_last):
        model = build("cnn", memory_format)
        optimizer = build_optimizer(model, settings("muon"), fused=False)
        for step in range(2):
            set_gradients(model, step)
            for parameter in model.parameters():
                if parameter.ndim == 4:
                    assert parameter.grad is not None
                    parameter.grad = parameter.grad.contiguous(memory_format=layout)
            optimizer.step()
        moved.append(weights(model))
    assert all(one.equal(other) for one, other in zip(moved[0], moved[1], strict=True))
    assert all(one.equal(other) for one, other in zip(moved[0], moved[2], strict=True))


def test_muon_leaves_parameters_without_gradient() -> None:
    model = build("basic")
    optimizer = build_optimizer(model, settings("muon", weight_decay=0.1), fused=False)
    before = weights(model)
    optimizer.zero_grad()
    optimizer.step()
    assert all(old.equal(new) for old, new in zip(before, weights(model), strict=True))


# State


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        settings("sgd", momentum=0.0),
        settings("sgd", momentum=0.9, nesterov=True),
        settings("adam"),
        settings("adamw", weight_decay=0.1),
        settings("muon", weight_decay=0.1),
    ],
    ids=["sgd", "momentum", "adam", "adamw", "muon"],
)
@pytest.mark.parametrize("stop", [0, 3])
def test_saved_state_resumes_bit_for_bit(
    config: OptimConfig, fused: bool, memory_format: torch.memory_format, stop: int
) -> None:
    whole = build("convnet", memory_format)
    update(whole, build_optimizer(whole, config, fused=fused), range(6))

    first = build("convnet", memory_format)
    optimizer = build_optimizer(first, config, fused=fused)
    update(first, optimizer, range(stop))
    # A checkpoint stores contiguous copies.
    tensors = {
        name: t.clone(memory_format=torch.contiguous_format) for name, t in optimizer_tensors(optimizer, first).items()
    }
    has_momentum = config.name in ("sgd", "muon") and config.momentum > 0  # which is there from the start
    assert bool(tensors) == (has_momentum or (stop > 0 and config.name != "sgd"))

    second = build("convnet", memory_format)
    second.load_state_dict(first.state_dict())
    resumed = build_optimizer(second, config, fused=fused)
    load_optimizer_tensors(resumed, second, tensors)
    copies = {name: t.clone() for name, t in tensors.items()}
    update(second, resumed, range(stop, 6))
    for (name, expected), found in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert found.equal(expected), name
    assert all(copies[name].equal(t) for name, t in tensors.items())  # they are read, not taken


def test_state_is_named_by_parameter() -> None:
    model = build("basic")
    optimizer = build_optimizer(model, settings("adamw"), fused=False)
    update(model, optimizer, range(1))
    names = {f"{name}/{what}" for name, _ in model.named_parameters() for what in ("step", "exp_avg", "exp_avg_sq")}
    tensors = optimizer_tensors(optimizer, model)
    assert tensors.keys() == names
    assert tensors["head.weight/exp_avg"].shape == (10, 320)


def test_state_of_another_model_is_refused() -> None:
    model = build("basic")
    optimizer = build_optimizer(model, settings("adamw"), fused=False)
    with pytest.raises(UserError, match=r"holds body\.9\.weight/exp_avg, which this model does not have"):
        load_optimizer_tensors(optimizer, model, {"body.9.weight/exp_avg": torch.zeros(1)})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("adamw", {"body.0.weight/exp_avg": torch.zeros(3)}, r"body\.0\.weight/exp_avg is torch.float32 \(3,\), this"),
        (
            "adamw",
            {"body.0.weight/exp_avg": torch.zeros(10, 1, 5, 5).half()},
            r"exp_avg is torch.float16 \(10, 1, 5, 5\)",
        ),
        (
            "adamw",
            {"body.0.weight/step": torch.zeros(2)},
            r"step is torch.float32 \(2,\), this optimizer's torch.float32",
        ),
        ("adamw", {"body.0.weight/step": torch.tensor(1)}, r"step is torch.int64 \(\), this optimizer's torch.float32"),
        (
            "adamw",
            {"body.0.weight/code": torch.zeros(())},
            r"holds body\.0\.weight/code, which this optimizer does not",
        ),
        ("adamw", {"body.0.weight": torch.zeros(())}, r"holds body\.0\.weight, which this model does not have"),
        ("adamw", {"body.0.weight/exp_avg_sq": None}, r"lacks body\.0\.weight/exp_avg_sq"),
        ("sgd", {"body.0.weight/exp_avg": torch.zeros(10, 1, 5, 5)}, r"exp_avg, which this optimizer does not keep"),
        ("sgd", {"head.bias/momentum_buffer": torch.zeros(11)}, r"\(11,\), this optimizer's torch.float32 \(10,\)"),
        (
            "muon",
            {"body.0.weight/momentum_buffer": torch.zeros(10, 1, 5, 5)},
            r"this optimizer's torch.float32 \(10, 25\)",
        ),
        (
            "muon",
            {"head.weight/momentum_buffer": torch.zeros(10, 320)},
            r"momentum_buffer, which this optimizer does not",
        ),
    ],
)
def test_state_that_does_not_fit_is_refused(name: str, change: dict[str, Tensor | None], said: str) -> None:
    """In one line, before a training step fails on it."""
    model = build("basic")
    optimizer = build_optimizer(model, settings(name), fused=False)
    update(model, optimizer, range(1))
    tensors = {
        key: tensor for key, tensor in (optimizer_tensors(optimizer, model) | change).items() if tensor is not None
    }
    with pytest.raises(UserError, match=said) as error:
        load_optimizer_tensors(build_optimizer(model, settings(name), fused=False), model, tensors)
    assert len(str(error.value).splitlines()) == 1


# EMA


def test_no_average_without_a_decay() -> None:
    assert build_ema(build("basic"), 0.0) is None


def test_average_equals_one_computed_by_hand() -> None:
    """The first update takes the weights as they are; each later one keeps `decay` of the average."""
    model, decay = build("basic"), 0.9
    average = build_ema(model, decay)
    assert average is not None
    assert [a.data_ptr() for a in average.module.parameters()] != [p.data_ptr() for p in model.parameters()]
    optimizer = build_optimizer(model, settings("sgd"), fused=False)
    expected: list[Tensor] = []
    for step in range(5):
        update(model, optimizer, range(step, step + 1))
        average.update_parameters(model)
        new = [w.double() for w in weights(model)]
        expected = [decay * e + (1 - decay) * w for e, w in zip(expected, new, strict=True)] if step else new
    assert int(average.n_averaged) == 5
    for found, wanted in zip(average.module.parameters(), expected, strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-6)


def test_average_has_the_models_layout_and_names() -> None:
    model = build("convnet")
    average = build_ema(model, 0.5)
    assert average is not None
    assert average.module.state_dict().keys() == model.state_dict().keys()
    for found, wanted in zip(average.module.parameters(), model.parameters(), strict=True):
        assert found.stride() == wanted.stride()


# Without torch._dynamo


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_an_optimizer_steps_without_importing_dynamo(name: str) -> None:
    """The import would add 1.6 s to each start: more than speed99 trains."""
    program = (
        "import sys, torch; from mnist_dist.config.schema import OptimConfig; "
        "from mnist_dist.optim.optimizer import build_optimizer, set_lr\n"
        "model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))\n"
        f"optimizer = build_optimizer(model, OptimConfig(name={name!r}), fused=True)\n"
        "before = model[0].weight.detach().clone(); model(torch.ones(1, 3)).sum().backward()\n"
        "set_lr(optimizer, 0.1); optimizer.step()\n"
        "assert not model[0].weight.equal(before); print('torch._dynamo' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_eager_optimizers_update_as_torchs_do(kind: type[torch.optim.Optimizer]) -> None:
    def train(made: Callable[..., torch.optim.Optimizer]) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        optimizer = made(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            model.zero_grad()
            model(torch.ones(2, 5)).square().sum().backward()
            optimizer.step()
        return model.weight.detach()

    assert train(eager(kind)).equal(train(kind))
