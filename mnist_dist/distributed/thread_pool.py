"""Threads that work through a list together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class ThreadPool:
    """A number of threads, the caller's being one of them. Each takes whole items, and a kernel in it has no other one.

    Use it as a context manager: leaving it ends the threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool = ThreadPoolExecutor(max(count - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The function's result for each item, in their order. What it raises is raised here, once all threads rest."""
        todo = list(enumerate(items))[::-1]
        results: dict[int, R] = {}

        def work() -> None:
            while todo:
                try:
                    index, item = todo.pop()
                except IndexError:  # another thread was quicker to take the last one
                    return
                results[index] = function(item)

        helpers = [self.pool.submit(work) for _ in range(min(self.count, len(todo)) - 1)]
        try:
            work()
        finally:
            todo.clear()
            wait(helpers)
        for helper in helpers:
            helper.result()
        return [results[index] for index in range(len(results))]
