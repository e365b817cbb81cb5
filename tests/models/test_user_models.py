"""Models of the user's own: found, built with arguments, and tried without changing them; mistakes cost one line."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mnist_dist.models import create_model, find_builder, list_models
from mnist_dist.models.check import check_model
from mnist_dist.models.classifier import probabilities
from mnist_dist.models.feature_maps import feature_maps
from mnist_dist.models.summary import summarize
from mnist_dist.utils.errors import UserError

NETS = '''from __future__ import annotations
import torch
from torch import nn
from blocks import Block


class Net(nn.Module):
    """A network."""

    def __init__(self, width: int = 8, sizes: tuple[int, ...] = (), rate: float = 0.0, kind=None):
        super().__init__()
        self.body = Block(width)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, 10)
        self.seen = 0
        self.given = width, sizes, rate, kind

    def forward(self, images):
        self.seen += 1
        return self.head(self.dropout(self.norm(self.body(images))))


class Unused(Net):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)


class Fails(Net):
    def forward(self, images):
        return self.head(images.flatten(1))


class FailsInEval(Net):
    def forward(self, images):
        if not self.training:
            raise KeyError("eval")
        return super().forward(images)


class FailsWithout(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(784, 10)

    def forward(self, images):
        return self.head(images.view(len(images), -1))


class Tuple(Net):
    def forward(self, images):
        return super().forward(images), 1


class Integers(Net):
    def forward(self, images):
        return super().forward(images).long()


class Cut(Net):
    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


class Double(Net):
    def __init__(self):
        super().__init__()
        self.double()


class Uncopied(Net):
    def __deepcopy__(self, memo):
        raise TypeError("not me")


def frozen():
    return Net().requires_grad_(False)


def classes(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))


def anything(**options):
    assert options == {"x": 1}
    return classes(10)


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10))


def raises():
    raise ValueError("two\\nlines")


def leaves():
    raise SystemExit(3)


def nothing():
    pass


needed = lambda width: Net(width)
number = 3
'''
BLOCKS = "from torch import nn\ndef Block(width): return nn.Sequential(nn.Flatten(), nn.Linear(784, width))\n"


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two files of the user's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    return tmp_path


def tried(name: str, num_classes: int | None = 10, batch_sizes: tuple[int, ...] = (), **args: Any) -> list[str]:
    builder = find_builder(name)
    return check_model(builder, builder.build(10, args), num_classes, batch_sizes)


def error_of(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        tried(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def line_of(text: str) -> int:
    return NETS[: NETS.index(text)].count("\n") + 1


def test_a_model_is_built_with_arguments_of_the_types_of_its_annotations() -> None:
    builder = find_builder("nets.py:Net")
    assert builder.build(10, {}).given == (8, (), 0.0, None)
    model = builder.build(10, {"width": 4, "sizes": (1, 2), "rate": 1, "kind": (1, "a")})
    assert repr(model.given) == "(4, (1, 2), 1.0, [1, 'a'])"
    assert builder.describe() == "A network."
    assert builder.describe_parameters() == "width=8, sizes=(), rate=0.0, kind=None"
    assert create_model("nets.py:classes", 47)(torch.zeros(2, 1, 28, 28)).shape == (2, 47)
    assert create_model("nets.py:classes", 47, {"num_classes": 5})(torch.zeros(2, 1, 28, 28)).shape == (2, 5)
    assert tried("nets.py:anything", x=1) == []
    assert tried("blocks:Block", num_classes=None, width=3) == []
    assert sys.path.count(str(Path.cwd())) == 0


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (
            "nets.py:Net",
            {"widht": 4},
            "model.args.widht: is no argument of this model; did you mean width?; nets.py:N",
        ),
        (
            "nets.py:Net",
            {"width": "a"},
            'model.args.width="a": input should be a valid integer; nets.py:Net takes wid',
        ),
        ("nets.py:Net", {"width": 4.5}, "model.args.width=4.5: input should be a valid integer"),
        ("nets.py:Net", {"width": True}, "model.args.width=true: input should be a valid integer"),
        ("nets.py:Net", {"sizes": (1, "a")}, 'model.args.sizes=[1, "a"]: input should be a valid integer'),
        (
            "nets.py:needed",
            {},
            "model.args.width: is missing; give --model.args.width=VALUE; nets.py:needed",
        ),
        (
            "compact",
            {"width": 0},
            "model.args.width=0: input should be greater than or equal to 1; compact takes",
        ),
        ("compact", {"dropout": 1.0}, "model.args.dropout=1.0: input should be less than 1"),
        (
            "cnn",
            {"depth": 3},
            "model.args.depth: is no argument of this model; cnn takes num_classes=10, width=16, ",
        ),
        ("compact", {"width": 10**9}, "model.name=compact: "),
    ],
)
def test_wrong_arguments_are_answered_with_the_right_ones(name: str, args: dict[str, Any], said: str) -> None:
    assert error_of(name, **args).startswith(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "nets.py:Fails",
            f"nets.py:{line_of('return self.head(images.flatten(1))')}: RuntimeError: ",
        ),
        ("nets.py:FailsInEval", f"in eval mode: nets.py:{line_of('raise KeyError')}: KeyError: 'eval'"),
        ("nets.py:raises", f"nets.py:{line_of('raise ValueError')}: ValueError: two lines"),
        ("nets.py:leaves", f"nets.py:{line_of('raise SystemExit')}: SystemExit: 3"),
        ("nets.py:Uncopied", f"when it is copied: nets.py:{line_of('raise TypeError')}: TypeError: not me"),
        ("nets.py:nothing", "returned NoneType, not a torch.nn.Module"),
        ("nets.py:number", "is int, not a function or a class"),
        (
            "nets.py:Tuple",
            "its output is tuple; for 2 images float (B, 1, 28, 28), must be float (2, 10): a log",
        ),
        ("nets.py:Integers", "its output is int64 (2, 10); "),
        ("nets.py:Cut", "its output depends on no parameter that requires a gradient"),
        ("nets.py:frozen", "has no parameter that requires a gradient, so there is nothing to train"),
        ("nets.py:Double", "parameter body.1.weight is torch.float64, not torch.float32"),
        ("blocks:absent", "blocks does not define absent"),
        ("no_such_module:build", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_model_that_cannot_be_trained_costs_one_line(name: str, said: str) -> None:
    found = error_of(name)
    assert found.startswith(f"model.name={name}: {said}")


def test_the_number_of_classes_must_fit() -> None:
    assert "its output is float32 (2, 10); for 2 images float (B, 1, 28, 28), must be float (2, 7)" in error_of(
        "nets.py:Net", num_classes=7
    )


@pytest.mark.parametrize(("name", "size"), [("nets.py:FailsWithout", 0), ("nets.py:Net", 1)])
def test_the_share_of_a_last_batch_is_tried(name: str, size: int) -> None:
    assert tried(name) == []
    said = error_of(name, batch_sizes=(size,))
    assert said.startswith(
        f"model.name={name}: with {size} images, this process's share of an epoch's last batch (data.dro"
    )


def test_an_import_that_fails_is_one_line_with_the_users_line(work: Path) -> None:
    (work / "blocks.py").write_text("import torch\n\nimport gone\n")
    assert error_of("nets.py:Net") == "model.name=nets.py:Net: blocks.py:3: ModuleNotFoundError: No module named 'gone'"
    (work / "blocks.py").write_text("def Block(:\n")
    assert error_of("nets.py:Net").startswith("model.name=nets.py:Net: blocks.py:1: SyntaxError: ")


def test_to_try_a_model_changes_nothing() -> None:
    builder = find_builder("nets.py:Net")
    model = builder.build(10, {})
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert check_model(builder, model, 10) == []
    assert torch.get_rng_state().equal(random)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert model.seen == 0
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_parameters_without_a_gradient_are_named() -> None:
    assert tried("nets.py:Unused") == ["spare.weight", "spare.bias"]


def test_lazy_modules_are_initialised_by_the_seed() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        states.append(create_model("nets.py:lazy").state_dict())
    assert all(tensor.equal(states[1][name]) for name, tensor in states[0].items())
    assert states[0]["1.num_batches_tracked"] == 0
    assert tried("nets.py:lazy") == []


def test_the_files_of_its_folder_belong_to_it_and_are_read_anew(work: Path) -> None:
    first = find_builder("nets.py:Net").digests
    assert first.keys() == {"nets.py", "blocks.py"}
    (work / "blocks.py").write_text(BLOCKS + "import torch.nn as more\n")
    second = find_builder("nets.py:Net").digests
    assert second["nets.py"] == first["nets.py"]
    assert second["blocks.py"] != first["blocks.py"]
    assert find_builder("compact").digests == {}


@pytest.mark.parametrize("name", list_models())
def test_width_and_dropout_of_registered_models(name: str) -> None:
    torch.manual_seed(0)
    default, plain = create_model(name), create_model(name, 10, {"width": 4, "dropout": 0.0})
    dropping = create_model(name, 10, {"width": 4, "dropout": 0.5})
    assert sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in default.parameters())
    assert dropping.state_dict().keys() == plain.state_dict().keys() == default.state_dict().keys()
    images = torch.randn(8, 1, 28, 28)
    dropping.load_state_dict(plain.state_dict())
    assert dropping.eval()(images).equal(plain.eval()(images))
    assert not dropping.train()(images).equal(dropping(images))
    assert tried(name, width=3, dropout=0.1) == []


def test_any_module_has_probabilities_maps_and_a_summary() -> None:
    class Odd(nn.Module):
        """Two layers that return or take what most do not."""

        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.LSTM(28, 6, batch_first=True)
            self.conv = nn.Conv2d(1, 2, 3)
            self.head = nn.Linear(6, 10)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            for image in images:
                self.conv(image)
            return self.head(self.rows(images[:, 0])[0][:, -1])

    model = Odd().eval()
    logits = model(torch.randn(3, 1, 28, 28))
    assert torch.allclose(probabilities(model, logits.bfloat16()).sum(1), torch.ones(3), atol=1e-5)
    assert feature_maps(model, torch.zeros(1, 28, 28)) == []
    layers = summarize(model).layers
    assert [(layer.name, layer.shape) for layer in layers if layer.name != "conv"] == [
        ("rows", (28, 6)),
        ("head", (10,)),
    ]
