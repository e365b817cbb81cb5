"""The data of a finished run, for what is measured with its model."""

from __future__ import annotations

from common.progress import say
from mnist_dist.checkpoint.load_model import LoadedModel
from mnist_dist.config.schema import Config
from mnist_dist.data.dataset import Splits, read_splits
from mnist_dist.data.identity import check_split_data
from mnist_dist.data.prepare import provide_files, resolve_root


def read_run_data(loaded: LoadedModel, config: Config, split: str) -> Splits:
    """The splits of a run's data.

    Args:
        config: the run's settings, or those with other limits.
        split: the one that is measured: it has to be that of the run.

    Raises:
        UserError: the data are not there, or others.
    """
    folder = resolve_root(config.data.root, config.data.name)
    files = provide_files(folder, config.data.source, say, config.data.name)
    splits = read_splits(files, config.data, config.run.seed, config.train_limit)
    check_split_data(split, loaded.digests, splits.digests, folder, say)
    return splits
