"""What to write instead of an option, value or file that other trainers have. Errors end with these hints."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from mnist_dist.config.schema import FIELDS

OPTIONS = {
    "print_config": "--print_config",
    "version": "mnist-dist --version",
    "c cfg yaml config_file": "--config=NAME|PATH",
    "debug fast_dev_run v verbose": "--config=debug",
    "dry_run dryrun": "--run.as_processes=N, which checks what N processes would meet",
    "eval evaluate eval_only do_eval validate test": "mnist-dist evaluate RUN",
    "e max_epochs num_epochs n_epochs num_train_epochs": "--train.epochs=N",
    "b bs batch train_batch_size global_batch_size": "--train.batch_size=N",
    "per_device_train_batch_size": "--train.batch_size=N (of all processes together)",
    "test_batch_size val_batch_size per_device_eval_batch_size": "--train.eval_batch_size=N",
    "accumulate_grad_batches gradient_accumulation_steps grad_accum_steps": "--train.accumulate=N",
    "fp16 half": "--train.precision=fp16",
    "bf16 amp mixed_precision use_amp": "--train.precision=bf16",
    "fp32 no_amp": "--train.precision=no",
    "limit_train_batches overfit": "--train.overfit_batches=N",
    "early_stopping early_stopping_patience": "--train.patience=N",
    "max_time time_limit": "--train.max_minutes=N",
    "initial_checkpoint pretrained pretrained_weights finetune fine_tune load_weights": "--model.init_from=RUN",
    "save_steps save_interval checkpoint_interval": "--train.checkpoint_steps=N",
    "eval_interval val_check_interval": "--train.eval_steps=N",
    "save_total_limit save_top_k": "--train.keep=N",
    "torch_compile torchcompile": "--train.compile=default",
    "learning_rate base_lr max_lr": "--optim.lr=RATE",
    "opt optimizer": "--optim.name=NAME",
    "sched scheduler lr_scheduler lr_scheduler_type": "--optim.schedule=NAME",
    "warmup_ratio warmup_steps warmup_epochs": "--optim.warmup=FRACTION",
    "wd": "--optim.weight_decay=X",
    "beta1 beta2 adam_beta1 adam_beta2": "--optim.betas=0.9,0.999",
    "smoothing": "--optim.label_smoothing=X",
    "clip_grad gradient_clip_val max_grad_norm": "--optim.clip=NORM",
    "model_ema model_ema_decay ema_decay": "--optim.ema=DECAY",
    "a arch net network": "--model.name=NAME, or FILE.py:FUNCTION for a network of your own",
    "model_args model_kwargs width dropout drop drop_rate hidden_size": "--model.args.NAME=VALUE",
    "data_dir data_path": "--data.root=FOLDER",
    "dataset dataset_name": "--data.name=NAME, and --data.root=FOLDER",
    "num_classes nb_classes n_classes": "data.name=idx with --data.root=FOLDER (the labels say how many)",
    "aug augment aa auto_augment": "--data.shift, --data.rotate, --data.scale, --data.shear and --data.elastic",
    "max_train_samples": "--data.limit=N",
    "o out output output_dir save_dir log_dir logdir default_root_dir run_name": "--run.dir=FOLDER",
    "overwrite overwrite_output_dir no_resume": "--run.resume=never",
    "checkpoint ckpt_path ckpt resume_from_checkpoint": "--run.resume=PATH",
    "cpu no_cuda no_accel use_cpu no_gpu": "--run.device=cpu",
    "cuda gpu": "--run.device=auto, which takes a GPU if there is one",
    "gpus ngpus devices num_gpus num_processes num_nodes nproc_per_node nnodes world_size": (
        "accelerate launch --num_processes N -m mnist_dist.train"
    ),
    "rank local_rank node_rank master_addr master_port dist_url dist_backend backend": (
        "a launcher, such as accelerate launch or torchrun; it tells each process its rank"
    ),
    "j workers num_workers dataloader_num_workers": "--run.threads=N (the images are in memory: no workers load them)",
    "wandb use_wandb report_to": "--tracking.mode=online",
    "no_wandb wandb_offline": "--tracking.mode=disabled, or offline",
    "wandb_project project_name": "--tracking.project=NAME",
    "log_every_n_steps log_interval logging_steps print_freq": "--tracking.log_steps=N",
}
"""Names of options of argparse programs, Lightning, timm, transformers and PyTorch's examples, and what to use here.

Names that are a setting's own without its section, such as `epochs` and `batch-size`, need no entry."""

HINTS = {name: hint for names, hint in OPTIONS.items() for name in names.split()}

VALUES = {
    "train.precision": {
        "no": "32 fp32 float32 32-true none false full",
        "fp16": "16 float16 half 16-mixed",
        "bf16": "bfloat16 bf16-mixed mixed true",
    },
    "train.compile": {"default": "true yes on inductor", "no": "false off none"},
    "data.name": {
        "fashion": "fashion-mnist fashion_mnist fashionmnist fmnist",
        "emnist-balanced": "emnist balanced",
        "emnist-letters": "letters",
        "emnist-digits": "digits",
        "emnist-byclass": "byclass",
        "emnist-bymerge": "bymerge",
        "kmnist": "kuzushiji kuzushiji-mnist",
        "idx": "custom folder",
    },
    "optim.schedule": {"constant": "none no off", "onecycle": "one_cycle 1cycle"},
    "run.device": {"auto": "gpu accelerator", "cpu": "cpu:0 none"},
    "tracking.mode": {"online": "true on yes wandb", "disabled": "false off no none"},
}
"""Per setting, the values that other programs have for one of its own."""

FOREIGN_FILES = {
    "compute_environment distributed_type num_processes num_machines machine_rank use_cpu main_process_port": (
        "is a file of accelerate's: give it to accelerate launch --config_file"
    ),
    "method parameters metric program": "is a sweep: give it to mnist-dist sweep",
}
"""Keys of YAML files that are not a run's settings, and what to do with such a file."""

LAUNCH_FILES = ("cpu_1", "cpu_2", "fsdp2", "multi_gpu", "multi_node", "multi_node_cpu", "single_gpu")
"""The files in launch/, which are accelerate's. An installed package has no copy of them."""


def hint_for_option(name: str) -> str:
    """`; use X` or `; did you mean X?` for an option or key that is no setting; empty if nothing is like it.

    Args:
        name: with or without its dashes, such as `batch-size` and `-c`.
    """
    plain = name.lstrip("-").lower().replace("-", "_")
    last_part = plain.rpartition(".")[2]  # of optim.learning_rate
    return f"; use {HINTS[last_part]}" if last_part in HINTS else suggest(plain, FIELDS)


def hint_for_argument(argument: str, recipes: Collection[str]) -> str:
    """What an argument without `--` may have been meant as: a recipe, a file, a setting or a short option."""
    name, equals, value = argument.partition("=")
    if name in FIELDS:
        return f"; did you mean --{name}={value or 'VALUE'}?"
    if not equals and (argument in recipes or argument.endswith((".yaml", ".yml"))):
        return f"; did you mean --config={argument}?"
    return hint_for_option(name) or "; settings are given as --section.key=value"


def hint_for_value(key: str, value: str, choices: Iterable[str]) -> str:
    """`; did you mean X?` for a value that is none of a setting's choices."""
    for own, others in VALUES.get(key, {}).items():
        if value.lower() in others.split():
            return f"; use {own}"
    if key == "model.name" and value.endswith(".py"):
        return f"; name its function too, as in {value}:build"
    return suggest(value, choices)


def describe_foreign_file(keys: Collection[str]) -> str:
    """What a YAML file with these keys at its top level is, and where it belongs; empty if it is not known."""
    return next((said for foreign, said in FOREIGN_FILES.items() if not set(keys).isdisjoint(foreign.split())), "")


def hint_for_launch_file(name: str) -> str:
    """Where a file of launch/ belongs, if a name without a folder is that of one, such as `cpu_2.yaml`; else empty."""
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    if stem not in LAUNCH_FILES:
        return ""
    said = describe_foreign_file(["distributed_type"])
    return f"; launch/{stem}.yaml {said} launch/{stem}.yaml"


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that is most similar; empty if none is."""
    known = list(known)
    leaf_matches = [key for key in known if "." in key and key.split(".")[1] == name.split(".")[-1]]
    matches = leaf_matches[:1] or difflib.get_close_matches(name[:80], known, n=1, cutoff=0.7)
    return f"; did you mean {matches[0]}?" if matches else ""
