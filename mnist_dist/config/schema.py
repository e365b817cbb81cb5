"""The configuration of a run: its sections together, and what follows from several settings.

`loader` reads YAML files and the command line into it. Each section, with all its settings, is in `sections`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, PrivateAttr
from pydantic.fields import FieldInfo

from mnist_dist.config.frozen_model import FrozenModel, Source
from mnist_dist.config.sections import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrackingConfig,
    TrainConfig,
)

AUTO_SHARDS = 4
"""Number of fixed shards that train.shards=-1 stands for, where it turns them on."""


class Config(FrozenModel):
    """Configuration of a mnist_dist run.

    The settings of `--help`, by section; frozen.

    >>> config = Config.from_recipe("speed99", {"run.seed": 3})
    >>> config.run.seed, config.optim.lr
    (3, 0.02)
    """

    run: RunConfig = Field(default_factory=RunConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    _source: Source = PrivateAttr(default_factory=Source)

    @classmethod
    def from_recipe(
        cls, recipe: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (), overrides: Mapping[str, Any] = {}
    ) -> Config:
        """The configuration of a recipe, with some settings changed.

        Args:
            recipe: what `--config` takes: the name of a shipped recipe, or the path of a YAML file, such as the
                config.yaml of a run; or several, of which later ones win. None: the defaults.
            overrides: setting, such as `optim.lr`, to its value, or to its text as on the command line.

        Raises:
            UserError: one line that names the setting, its origin (`argument` for an override) and what would work.

        >>> config = Config.from_recipe(["debug", "seeds/convnet"], {"optim.lr": 0.1, "train.epochs": 2})
        >>> config.model.name
        'convnet'
        >>> Config.from_recipe("debug", {"optim.lrr": 0.1})
        Traceback (most recent call last):
        mnist_dist.utils.errors.UserError: optim.lrr (argument): unknown setting; did you mean optim.lr?
        """
        from mnist_dist.config.arguments import load_recipe

        return load_recipe(recipe, overrides)

    @property
    def source(self) -> Source:
        """Where the settings were given."""
        return self._source

    def shards(self, world_size: int, on_cpu: bool) -> int:
        """Number of fixed shards, 0 for off, on this many processes and this kind of device: train.shards=-1 resolved.

        On a CPU four shards are also faster than the whole batch; on a GPU they are not. Compressed gradients exclude
        shards, because what is rounded depends on the number of processes; a compiled model computes whole batches.
        """
        train = self.train
        if train.shards >= 0 or train.compile != "no" or train.compress != "no":
            return max(train.shards, 0)
        divides = AUTO_SHARDS % world_size == 0 and train.batch_size % (AUTO_SHARDS * train.accumulate) == 0
        return AUTO_SHARDS if on_cpu and divides else 0

    @property
    def train_limit(self) -> int:
        """Number of training images to use; 0: all."""
        return self.data.limit or self.train.overfit_batches * self.train.batch_size

    def augments(self, epoch: int) -> bool:
        """Whether the images of an epoch, counted from 0, are augmented as the section `data` says."""
        return not self.train.overfit_batches and epoch < self.train.epochs - self.data.no_aug_epochs

    @property
    def is_test_kept_back(self) -> bool:
        """Whether nothing is evaluated before the end: an honest run keeps the test set back, and has no other one."""
        return self.train.protocol == "honest" and not self.data.val_size

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections as dictionaries of plain values, as JSON and YAML have them: tuples become lists."""
        return self.model_dump(mode="json")


SECTIONS: dict[str, type[FrozenModel]] = {name: type(section) for name, section in Config()}
FIELDS: dict[str, FieldInfo] = {
    f"{section}.{name}": field for section, kind in SECTIONS.items() for name, field in kind.model_fields.items()
}


def flat(config: Config) -> dict[str, Any]:
    """The configuration as one dictionary with keys such as `optim.lr` and `model.args.width`."""
    return flatten(config.to_dict())


def flatten(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Sections of settings as one dictionary; an empty mapping is left out."""
    found: dict[str, Any] = {}
    for section, values in sections.items():
        for key, value in values.items():
            entries = value.items() if isinstance(value, Mapping) else None
            found |= {f"{section}.{key}": value} if entries is None else {f"{section}.{key}.{k}": v for k, v in entries}
    return found
