"""accelerate's trackers by name. They are called on a thread of `tracking`, which may not import accelerate."""

from __future__ import annotations

from typing import Any


def start_tracker(name: str, /, *args: Any, **options: Any) -> Any:
    """accelerate's tracker of this name, such as `tensorboard`, started.

    The other arguments are those of its class in `accelerate.tracking`. Its package is imported here.

    Raises:
        whatever the package raises.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    tracker = LOGGER_TYPE_TO_CLASS[name](*args, **options)
    tracker.start()
    return tracker
