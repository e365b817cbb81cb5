"""Keys of measured times and memory, which differ between two runs that are otherwise equal."""

MEASURED_ROW_KEYS = frozenset(
    {
        *("time", "epoch.seconds", "images_per_second", "step_seconds", "flops_per_second", "mfu"),
        *("step_seconds.least", "step_seconds.most", "step_seconds.slowest_rank", "memory.peak_bytes"),
        *("step_seconds.ratio", "step_seconds.stragglers"),
    }
)
"""In rows of metrics.jsonl."""

MEASURED_SUMMARY_KEYS = frozenset(
    {
        *("train.seconds", "train.images_per_second", "train.step_seconds", "train.flops_per_second"),
        "memory.peak_bytes",
    }
)
"""In summary.json."""
