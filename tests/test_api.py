"""mnist_dist from Python: `from mnist_dist import Config, train, evaluate, load_model`."""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from harness import run_ranks
from programs import write_digits

import mnist_dist
from mnist_dist import Config, Stopped, UserError, evaluate, train
from mnist_dist.train import main
from mnist_dist.utils.errors import EXIT_DONE

SETTINGS = {
    "data.root": "digits",
    "data.val_size": 100,
    "train.batch_size": 50,
    "train.epochs": 1,
    "model.name": "basic",
    "run.device": "cpu",
    "run.threads": 1,
    "run.quiet": True,
    "tracking.mode": "disabled",
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "python.md"
EXAMPLES = ("mnist_dist", "mnist_dist.api", "mnist_dist.config.schema", "mnist_dist.train", "mnist_dist.training.run")
EXAMPLES += ("mnist_dist.checkpoint.trained_model", "mnist_dist.utils.errors")
ORDERS = """
import sys
for order in (
    "from mnist_dist import train",
    "import mnist_dist; mnist_dist.train",
    "import mnist_dist.train",
    "from mnist_dist.train import main; from mnist_dist import train",
    "from mnist_dist import train; import mnist_dist.train; from mnist_dist.train import main",
    "import mnist_dist; mnist_dist.Config; import mnist_dist.train as train; train.main",
):
    for name in [name for name in sys.modules if name.split(".")[0] == "mnist_dist"]:
        del sys.modules[name]
    exec(order)
    import mnist_dist
    assert mnist_dist.train is sys.modules["mnist_dist.train"] is mnist_dist.__getattr__("train"), order
    assert callable(mnist_dist.train) and mnist_dist.train.main, order
print("torch" in sys.modules)
"""


def commands(settings: dict[str, Any], **more: Any) -> list[str]:
    """The settings as a command line."""
    texts = {key: str(value).lower() if isinstance(value, bool) else value for key, value in settings.items()}
    return [f"--{key}={value}" for key, value in {**texts, **more}.items()]


def test_importing_the_package_imports_nothing_else() -> None:
    program = "import sys; before = set(sys.modules); import mnist_dist; mnist_dist.__version__, dir(mnist_dist)\n"
    program += "print(sorted({'torch', 'pydantic', 'psutil'} & (set(sys.modules) - before)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def test_train_is_a_module_and_a_function_in_every_order_of_imports() -> None:
    done = subprocess.run([sys.executable, "-c", ORDERS], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_names() -> None:
    assert set(mnist_dist.__all__) == {*mnist_dist.MODULES, "train"}
    assert all(getattr(mnist_dist, name).__doc__ for name in mnist_dist.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = mnist_dist.trian  # type: ignore[attr-defined]


def train_by_command_and_by_call(folder: Path) -> tuple[list[str], list[float], bool]:
    """Three runs in each process of a launcher: a command, a call, an evaluation. Digests, accuracies, and whether the
    call gives what is in summary.json.
    """
    os.chdir(folder)
    assert main(commands(SETTINGS, **{"run.dir": "command"})) == EXIT_DONE
    run = train(Config.from_recipe((), SETTINGS | {"run.dir": "call"}))
    command = json.loads(Path("command/summary.json").read_text())
    same = run.summary == json.loads((run.folder / "summary.json").read_text())
    metrics = evaluate(run, "val")
    digests = [command["weights_sha256"], run.summary["weights_sha256"]]
    return digests, [metrics.accuracy, run.summary["val.accuracy"]], same


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_call_gives_the_bits_of_the_command(world_size: int, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    write_digits(tmp_path / "digits", train=300, test=50)
    for digests, accuracies, same in run_ranks(world_size, train_by_command_and_by_call, tmp_path):
        assert digests[0] == digests[1]
        assert accuracies[0] == accuracies[1]
        assert same


def stop_and_go_on(folder: Path) -> tuple[str, int, str, list[str]]:
    """Stop a run by a signal; go on as the message says. The message, its resumed_from, an error's cause and frames."""
    import signal

    from mnist_dist.console import console

    os.chdir(folder)
    config = Config.from_recipe((), SETTINGS | {"run.resume": "never", "train.epochs": 2})

    class Interrupt(console.Console):
        """Sends SIGINT after three steps."""

        def progress(self, step: int, epoch: int) -> None:
            if step == 3:
                signal.raise_signal(signal.SIGINT)

    console.open_console = lambda is_main, quiet: Interrupt()
    with pytest.raises(Stopped) as stopped:
        train(config)
    console.open_console = lambda is_main, quiet: console.Console()
    call = str(stopped.value).partition("to go on: ")[2]
    run = eval(call, {"train": train, "Config": Config})
    with pytest.raises(UserError) as refused:
        train(Config.from_recipe((), SETTINGS | {"data.root": "nowhere"}))
    frames = [entry.path.name for entry in refused.traceback if hasattr(entry.path, "name")]
    return str(stopped.value), run.summary["train.steps"], run.summary["resumed_from"], frames


def test_a_stopped_run_says_how_to_go_on_and_errors_hide_the_inside(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    write_digits(tmp_path / "digits", train=300, test=50)
    [(message, steps, resumed_from, frames)] = run_ranks(1, stop_and_go_on, tmp_path)
    assert message.startswith("at step 3, with a checkpoint; to go on: train(Config.from_recipe('runs/default-")
    assert (steps, resumed_from.rpartition("/")[2]) == (8, "step-00000003")
    assert frames == ["test_api.py", "train.py", "exit.py"]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"run.seed": 3}, TypeError, r"expected a Config, as Config.from_recipe\(...\) gives, not \{'run.se"),
        (Config().model_copy(update={"run": None}), UserError, r"^run \(argument\): must be a section$"),
        (Config.from_recipe((), {"train.shards": 3, "train.batch_size": 9}), UserError, "3 .argument.: cannot be div"),
        (Config.from_recipe((), {"tracking.mode": "online"}), UserError, "WANDB_API_KEY"),
    ],
)  # fmt: skip
def test_refused_before_torch_is_needed(
    config: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    if "be div" in message:
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(error, match=message):
        train(config)
    assert list(tmp_path.iterdir()) == []


def run_examples(folder: Path) -> list[tuple[str, int, int]]:
    """Run the blocks of docs/python.md in one namespace, then the examples in docstrings.

    Returns:
        Each module, how many examples it has, and how many failed.
    """
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    overrides = {"model.name": "basic", "data.val_size": 100, "run.dir": "runs/digits", "run.quiet": True}
    train(Config.from_recipe("debug", overrides))
    namespace: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), flags=re.DOTALL):
        if "notebook_launcher" not in block:  # tests/launch has those
            exec(block, namespace)
    results = [doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS) for name in EXAMPLES]
    return [(name, found.attempted, found.failed) for name, found in zip(EXAMPLES, results, strict=True)]


def test_the_examples_in_the_document_and_in_docstrings(tmp_path: Path) -> None:
    (tmp_path / "mnist_dist").mkdir()
    write_digits(tmp_path / "mnist_dist", train=2500, test=1000)
    [results] = run_ranks(1, run_examples, tmp_path)
    assert [failed for _, _, failed in results] == [0] * len(EXAMPLES)
    assert all(attempted >= 2 for _, attempted, _ in results)


@pytest.mark.parametrize("name", ["Config", "Run", "TrainedModel", "UserError", "evaluate", "load_model", "train"])
def test_each_name_has_an_example(name: str) -> None:
    public = getattr(mnist_dist, name)
    assert ">>> " in (mnist_dist.train.train.__doc__ if name == "train" else public.__doc__)
