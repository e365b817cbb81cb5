"""Thread pool that includes the calling thread.

The caller of a plain ThreadPoolExecutor only waits. Here it works too, so that n cores are used by n threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class ThreadPool:
    """Pool of `num_threads` threads, one of which is the caller's. Each new thread runs one intra-op thread of torch.

    As a context manager, it ends its threads at exit.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.executor = ThreadPoolExecutor(max(num_threads - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Apply a function to each item; results in the order of the items.

        If it raises, no further item is started, and the exception is raised here once all threads have stopped.
        """
        pending = list(enumerate(items))[::-1]
        results: dict[int, R] = {}

        def work() -> None:
            while pending:
                try:
                    index, item = pending.pop()
                except IndexError:  # another thread took the last item in between
                    return
                results[index] = function(item)

        futures = [self.executor.submit(work) for _ in range(min(self.num_threads, len(pending)) - 1)]
        try:
            work()
        finally:
            pending.clear()
            wait(futures)
        for future in futures:
            future.result()
        return [results[index] for index in range(len(results))]
