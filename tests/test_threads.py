"""The thread pool as Python programs meet it; tests/cpp/test_threads.cpp has the rest."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
from mahal import _core

TASKS = 20000


def test_default_is_set_and_checked():
    before = _core.default_threads()
    try:
        _core.set_default_threads(3)
        assert _core.default_threads() == 3
        for bad in (0, -1, 1025):
            with pytest.raises(ValueError, match=f"whole number from 1 to 1024, got {bad}"):
                _core.set_default_threads(bad)
        assert _core.default_threads() == 3
    finally:
        _core.set_default_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_task_is_done_once(threads):
    counts = _core._count_tasks(threads, TASKS)
    assert len(counts) == threads
    assert sum(counts) == TASKS


def test_python_threads_share_the_pool():
    with ThreadPoolExecutor(6) as executor:
        results = list(executor.map(lambda n: sum(_core._count_tasks(1 + n % 4, TASKS)), range(60)))
    assert results == [TASKS] * 60


def _in_child(threads):
    return sum(_core._count_tasks(threads, TASKS))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_children_have_a_pool_of_their_own(method):
    assert sum(_core._count_tasks(4, TASKS)) == TASKS  # so that there are workers to lose
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(_in_child, [1, 2, 3, 4]).get(timeout=120)
    assert results == [TASKS] * 4
