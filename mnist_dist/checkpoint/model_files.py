"""Source files of a model of the user's own: copied into the run directory, and compared with a checkpoint's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from mnist_dist.checkpoint.run_paths import MODEL
from mnist_dist.config.model_file import MAX_CODE_BYTES
from mnist_dist.models.user_code import digests_of
from mnist_dist.utils.errors import TrainingError, UserError
from mnist_dist.utils.files import atomic_write, read_bounded


def write_model_files(run: Path, files: Mapping[str, bytes]) -> None:
    """Copy the source files to `model/` in a run's folder, each atomically.

    Args:
        files: content by relative path.

    Raises:
        TrainingError: the disk is full or the folder is gone.
    """
    for name, content in files.items():
        path = run / MODEL / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write_bytes(content)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror})", everywhere=True) from error


def check_model_files(run: Path, digests: Mapping[str, str]) -> None:
    """Check that the copies in a run's folder are those that a checkpoint was trained with.

    Args:
        digests: of the checkpoint.

    Raises:
        UserError: one is missing, is a link, or has another content.
    """
    advice = "give the model's code by --model FILE.py:FUNCTION"
    for name, digest in digests.items():
        path, relative = run / MODEL / name, PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise UserError(f"{run}: names a file outside of the run, {name!r:.80}; {advice}")
        try:
            content = read_bounded(path, MAX_CODE_BYTES)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {getattr(error, 'strerror', None) or error}; {advice}") from None
        if digests_of({name: content}) != {name: digest}:
            raise UserError(f"{path}: is not the file that the checkpoint was trained with; {advice}")


def check_resumable_code(before: Mapping[str, str], now: Mapping[str, str], checkpoint: Path) -> None:
    """Refuse to resume with other code of the model than the checkpoint was trained with.

    Args:
        before: digests of the checkpoint.
        now: digests of this run.
        checkpoint: its folder.

    Raises:
        UserError: names the file, and where the one of the checkpoint is.
    """
    other = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if other:
        copy = checkpoint.parents[1] / MODEL / other[0]
        raise UserError(
            f"{checkpoint}: was trained with another {other[0]} (SHA-256 {before.get(other[0], 'none'):.12} instead of "
            f"{now.get(other[0], 'none'):.12}); go on with that one, {copy}, or start anew in another --run.dir"
        )
