"""What no two runs share: what clocks and the system's memory say."""

ROW_CLOCKS = frozenset(
    {
        *("time", "epoch.seconds", "images_per_second", "step_seconds", "flops_per_second", "mfu"),
        *("step_seconds.least", "step_seconds.most", "step_seconds.slowest_rank", "memory.peak_bytes"),
    }
)
"""Keys of rows of metrics."""

SUMMARY_CLOCKS = frozenset(
    {
        *("train.seconds", "train.images_per_second", "train.step_seconds", "train.flops_per_second"),
        "memory.peak_bytes",
    }
)
"""Keys of a summary."""
