"""ThreadPool.map: each item once, results in order, errors raised once all threads have stopped."""

from __future__ import annotations

import threading

import pytest

from mnist_dist.distributed.thread_pool import ThreadPool


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_are_in_order_and_each_item_is_computed_once(num_threads: int) -> None:
    seen: list[int] = []

    def square(item: int) -> int:
        seen.append(item)
        return item * item

    with ThreadPool(num_threads) as thread_pool:
        for size in (0, 1, 2, 7, 50):
            seen.clear()
            assert thread_pool.map(square, range(size)) == [n * n for n in range(size)]
            assert sorted(seen) == list(range(size))


def test_items_are_computed_by_all_threads_at_once_and_the_caller_is_one_of_them() -> None:
    barrier = threading.Barrier(3, timeout=30)  # which one thread after the other could not pass

    def wait_for_all(item: int) -> threading.Thread:
        barrier.wait()
        return threading.current_thread()

    with ThreadPool(3) as thread_pool:
        threads = thread_pool.map(wait_for_all, range(3))
    assert len(set(threads)) == 3
    assert threading.current_thread() in threads
    assert not any(thread.is_alive() for thread in threads if thread is not threading.current_thread())


@pytest.mark.parametrize("by_caller", [True, False])
def test_an_error_is_raised_once_the_other_thread_has_stopped(by_caller: bool) -> None:
    caller = threading.current_thread()
    failed, stopped = threading.Event(), threading.Event()
    barrier = threading.Barrier(2, timeout=30)

    def work(item: int) -> None:
        barrier.wait()
        if (threading.current_thread() is caller) == by_caller:
            failed.set()
            raise ValueError("one failed")
        assert failed.wait(30)
        stopped.set()

    with ThreadPool(2) as thread_pool:
        with pytest.raises(ValueError, match="one failed"):
            thread_pool.map(work, range(2))
        assert stopped.is_set()


def test_after_an_error_no_further_item_is_started() -> None:
    started: list[int] = []

    def work(item: int) -> None:
        started.append(item)
        raise ValueError

    with ThreadPool(1) as thread_pool, pytest.raises(ValueError):  # noqa: PT011
        thread_pool.map(work, range(10))
    assert started == [0]
