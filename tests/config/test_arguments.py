"""Configurations from Python: `Config.from_recipe`, and one that a program built without checks."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnist_dist.config.arguments import check_config
from mnist_dist.config.loader import load
from mnist_dist.config.schema import Config
from mnist_dist.config.sections import RunConfig
from mnist_dist.utils.errors import UserError


def test_values_are_those_of_the_command_line() -> None:
    overrides = {"run.seed": np.int64(3), "optim.lr": 1e-3, "optim.betas": (0.5, 0.6), "run.quiet": True}
    config = Config.from_recipe(["debug", "seeds/convnet"], overrides | {"run.dir": Path("a"), "train.epochs": "2"})
    options = ["--run.seed=3", "--optim.lr=0.001", "--optim.betas=0.5,0.6", "--run.quiet=true"]
    loaded = load(["--config=debug", "--config=seeds/convnet", *options, "--run.dir=a", "--train.epochs=2"])
    assert config == loaded.config
    assert config.source.recipes == loaded.recipes == ("debug", "convnet")
    assert config.source.origins["run.seed"] == "argument"
    assert config.source.origins["model.name"].endswith("seeds/convnet.yaml:7")


def test_a_configuration_can_be_sent_to_another_process() -> None:
    config = Config.from_recipe("speed99", {"run.seed": 3})
    received = pickle.loads(pickle.dumps(config))
    assert received == config
    assert received.source.origins == config.source.origins
    assert hash(received) == hash(config)


def test_without_a_recipe_it_is_the_default() -> None:
    assert Config.from_recipe() == Config()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"run.seed": "x"}, "run.seed=x (argument): must be a whole number in plain digits"),
        ({"run.seed": 3.0}, "run.seed=3.0 (argument): must be a whole number in plain digits"),
        ({"run.seed": True}, "run.seed=true (argument): must be a whole number in plain digits"),
        ({"run.seed": -1}, "run.seed=-1 (argument): must be at least 0 and below 2147483648"),
        ({"run.seed": None}, "run.seed=None (argument): must be a number, true or false, a text or a list"),
        ({"run.seed": {"a": 1}}, "run.seed={'a': 1} (argument): must be a number, true or false, a text or a list"),
        ({"optim.betas": [0.1, [2]]}, "optim.betas=[0.1, [2]] (argument): must be a number, true or false, a text"),
        ({"optim.lr": float("nan")}, "optim.lr=nan (argument): must be a number, as in 0.1 or 1e-3"),
        ({"run.dir": "a\nb"}, "run.dir=a\\nb (argument): must be a text without line breaks"),
        ({"seed": 3}, "seed (argument): unknown setting; did you mean run.seed?"),
        ({3: 3}, "3 (argument): unknown setting"),
        ({"run": 3}, "run (argument): is a section"),
        (
            {"train.batch_size": 7, "train.shards": 2},
            "train.batch_size=7 (argument): cannot be divided by train.shards=2 (argument)",
        ),
    ],
)
def test_one_line_names_setting_and_origin(overrides: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Config.from_recipe("debug", overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_copy_that_pydantic_did_not_check_is_checked() -> None:
    config = Config(run=RunConfig(seed=3))
    loaded = check_config(config, 1, None)
    assert (loaded.config, loaded.recipes) == (config, ())
    assert loaded.config.source.origins == {"run.seed": "argument"}
    for seed, message in (("x", "must be a whole number in plain digits"), (-1, "must be at least 0")):
        wrong = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed})})
        with pytest.raises(UserError, match=rf"^run\.seed \(argument\): {message}"):
            check_config(wrong, 1, None)
