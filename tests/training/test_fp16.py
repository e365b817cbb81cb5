"""fp16 with torch's gradient scaler: what it skips, and batches whose loss is not finite. On the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from half_precision import use_fp16_on_cpu
from test_nonfinite import NAN_AT, SECOND_NAN_BATCH, STEPS, Run, comparable, train


def train_fp16(arguments: tuple[str, ...], folder: Path, nan_at: int | None, scale: float, *skip: int) -> Run:
    """As `train`, in fp16 with this initial scale of the loss."""
    with pytest.MonkeyPatch.context() as patch:
        use_fp16_on_cpu(patch, scale)
        return train(arguments, folder, nan_at, skip_batches=skip)


@pytest.mark.parametrize("options", [(), ("--train.shards=0", "--optim.clip=0.1", "--optim.ema=0.9")])
def test_a_batch_whose_loss_is_not_finite_is_skipped_and_told_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Also the running statistics stay as they were. The scale is so low that no gradient overflows."""
    arguments = ("--train.nonfinite=skip", "--tracking.log_steps=50", "--train.checkpoint_steps=1", *options)
    run = train_fp16(arguments, tmp_path / "update", NAN_AT, 8.0)
    assert run.warnings == [
        f"the loss was not finite in 1 of the steps from {step} to {step}; these updates were skipped"
        for step in (2, SECOND_NAN_BATCH + 1)
    ]
    assert (run.trainer.progress.scaler_skips, run.trainer.progress.nonfinite_skips) == (2, 0)
    assert all(tensor.isfinite().all() for tensor in run.trainer.state.model.state_dict().values())


def test_a_rollback_skips_the_first_batch_whose_loss_is_not_finite(tmp_path: Path) -> None:
    """It is found at the row after the third step."""
    run = train_fp16(("--train.nonfinite=rollback",), tmp_path, NAN_AT, 8.0)
    assert run.trainer.progress.skip_batches == [1, SECOND_NAN_BATCH]
    assert run.trainer.progress.rollbacks == 2
    assert run.trainer.progress.step == 2 * STEPS


def test_raise_names_the_loss(tmp_path: Path) -> None:
    run = train_fp16(("--train.nonfinite=raise",), tmp_path, NAN_AT, 8.0)
    assert run.error.startswith("the loss was not finite in 1 of the steps from 2 to 3 (epoch 1;")


def test_an_update_whose_gradient_overflows_is_as_if_its_batch_were_not_there(tmp_path: Path) -> None:
    """Weights, running statistics and average stay as they were. That is normal in fp16: nobody is warned."""
    for scale, least, most in ((2.0**19, 1, 2 * STEPS - 1), (2.0**100, 2 * STEPS, 2 * STEPS)):
        run = train_fp16(("--optim.ema=0.9",), tmp_path / str(scale), None, scale)
        skips = run.trainer.progress.scaler_skips
        assert least <= skips <= most
        assert not run.warnings
        assert not run.error
        assert run.trainer.state.ema is not None
        assert int(run.trainer.state.ema.n_averaged) == 2 * STEPS - skips
    untrained = train_fp16(("--optim.ema=0.9",), tmp_path / "untrained", None, 1.0, *range(2 * STEPS))
    assert run.sha256 == untrained.sha256


def test_a_run_whose_every_gradient_overflows_ends(tmp_path: Path) -> None:
    """It would train nothing, and say nothing. It ends at the first row after fifty updates."""
    run = train_fp16(("--train.epochs=20", "--train.nonfinite=skip"), tmp_path, None, 2.0**126)
    assert run.trainer.progress.scaler_skips == run.trainer.progress.step == 51
    assert run.error.startswith(
        "the fp16 gradient overflowed in 51 updates in a row up to step 51, at last with the loss"
    )
    assert not run.warnings


def test_a_run_resumes_with_the_scale_of_its_checkpoint(tmp_path: Path) -> None:
    arguments = ("--train.nonfinite=skip", "--train.checkpoint_steps=1")
    uninterrupted = train_fp16(arguments, tmp_path / "uninterrupted", NAN_AT, 2.0**19)
    train_fp16((*arguments, "--train.max_steps=3"), tmp_path / "resumed", NAN_AT, 2.0**19)
    resumed = train_fp16(arguments, tmp_path / "resumed", NAN_AT, 2.0**19)
    assert resumed.sha256 == uninterrupted.sha256
    assert comparable(resumed.rows)[-1] == comparable(uninterrupted.rows)[-1]
    scaler = resumed.trainer.runtime.mixed_precision.state_dict()
    assert scaler == uninterrupted.trainer.runtime.mixed_precision.state_dict()
    assert scaler["scale"] < 2.0**19
