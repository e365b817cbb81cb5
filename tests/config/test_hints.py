"""What users of other trainers type costs one line that says what to type here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mnist_dist.__main__ import COMMANDS
from mnist_dist.config.hints import HINTS, OPTIONS, VALUES
from mnist_dist.config.loader import load
from mnist_dist.config.schema import FIELDS
from mnist_dist.config.values import field_schema
from mnist_dist.utils.errors import UserError

LAUNCH_FILES = sorted((Path(__file__).parents[2] / "launch").glob("*.yaml"))
EXAMPLES = {"N": "1", "RATE": "0.1", "X": "0.1", "FRACTION": "0.1", "NORM": "1", "DECAY": "0.9", "FOLDER": "a"}


def error_of(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        load(arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        ("--lr 0.1", "did you mean optim.lr?"),
        ("-lr 0.1", "did you mean optim.lr?"),
        ("--epochs 3", "did you mean train.epochs?"),
        ("--seed=1", "did you mean run.seed?"),
        ("--batch-size 64", "did you mean train.batch_size?"),
        ("--train.batch-size=64", "did you mean train.batch_size?"),
        ("--weight-decay 0", "did you mean optim.weight_decay?"),
        ("--resume last.ckpt", "did you mean run.resume?"),
        ("--train.lr=1", "did you mean optim.lr?"),
        ("--optim.learning_rate=1", "use --optim.lr=RATE"),
        ("--local-rank=0", "use a launcher, such as accelerate launch or torchrun; it tells each process its rank"),
        ("epochs=3", "did you mean train.epochs?"),
        ("--print-config", "use --print_config"),
        ("-c my.yaml", "use --config=NAME|PATH"),
        ("--fp16", "use --train.precision=fp16"),
        ("--bf16", "use --train.precision=bf16"),
        ("--train.precision=fp32", "use no"),
        ("--train.precision=32", "use no"),
        ("--train.precision=16-mixed", "use fp16"),
        ("--train.compile=true", "use default"),
        ("--cpu", "use --run.device=cpu"),
        ("--no-cuda", "use --run.device=cpu"),
        ("--gpus 2", "use accelerate launch --num_processes N -m mnist_dist.train"),
        ("--wandb", "use --tracking.mode=online"),
        ("--no-wandb", "use --tracking.mode=disabled, or offline"),
        ("--output_dir x", "use --run.dir=FOLDER"),
        ("--workers=4", "use --run.threads=N (the images are in memory: no workers load them)"),
        ("--gradient_accumulation_steps 2", "use --train.accumulate=N"),
        ("--fast-dev-run", "use --config=debug"),
        ("--model cnn", "give one of its settings, as in --model.name=..."),
        ("--data ./data", "give one of its settings, as in --data.root=..."),
        ("--tracking.mode=none", "use disabled"),
        ("debug", "did you mean --config=debug?"),
        ("my.yaml", "did you mean --config=my.yaml?"),
        ("--config debug.yaml", "did you mean --config=debug?"),
        ("--config=configs/seeds/cnn.yaml", "did you mean --config=seeds/cnn?"),
    ],
)
def test_options_of_other_trainers_name_the_setting(
    arguments: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(*arguments.split()).endswith(f"; {end}")


def test_every_hint_is_valid() -> None:
    options = " ".join(OPTIONS.values())
    assert set(re.findall(r"mnist-dist (\w+)", options)) <= set(COMMANDS)
    own_names = {key.partition(".")[2] for key in FIELDS}
    assert not own_names.intersection(HINTS), "a setting's own name is suggested without an entry"
    for option in re.findall(r"--\w+\.\w+=[\w,.-]*\w", options):
        key, _, value = option.partition("=")
        if value != "NAME":
            load([f"{key}={EXAMPLES.get(value, value)}"])
        assert key.removeprefix("--") in FIELDS
    for key, choices in VALUES.items():
        assert set(choices) <= set(field_schema(key)["enum"])


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.stem)
def test_files_for_the_launcher_are_told_from_settings(path: Path) -> None:
    assert error_of("--config", str(path)) == (
        f"--config={path}: is a file of accelerate's: give it to accelerate launch --config_file {path}"
    )
    where = (
        f"launch/{path.name} is a file of accelerate's: give it to accelerate launch --config_file launch/{path.name}"
    )
    assert error_of("--config", path.name) == f"--config={path.name}: no such file; {where}"
    assert error_of("--config", path.stem).startswith(f"--config={path.stem}: neither a recipe nor a file; {where}; ")


def test_a_sweep_is_told_from_settings() -> None:
    path = LAUNCH_FILES[0].parents[1] / "configs/sweeps/optimizer.yaml"
    assert error_of("--config", str(path)) == f"--config={path}: is a sweep: give it to mnist-dist sweep {path}"
