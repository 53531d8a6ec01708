"""Work over chunks of files: in threads where reading waits, otherwise in the calling thread."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

BLOCK = 64  # chunks between two looks at whether threads would help
LARGE_FILE = 64 * 2**10  # bytes; hashing that much at a time leaves the interpreter to other threads


def default_threads() -> int:
    """Return a number of threads that keeps a disk or a network store busy."""
    return min(32, 4 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 8)


def map_in_order(
    work: Callable[[Chunk], Result], chunks: Iterable[Chunk], n_threads: int, mean_bytes: Callable[[Chunk], float]
) -> Iterator[Result]:
    """Yield `work(chunk)` for each chunk, in order.

    Small files from a warm disk cache are read fastest by one thread: several would only hand the interpreter's lock
    around (measured: 7.6 µs a file alone, 12 µs with two). So each block of chunks begins with one that is timed; the
    rest goes to threads if that one waited for the disk, or if its files are large.
    """
    if n_threads <= 1:
        yield from map(work, chunks)
        return
    chunks = iter(chunks)
    with ThreadPoolExecutor(n_threads) as pool:
        while (first := next(chunks, None)) is not None:
            wall, busy = time.perf_counter(), time.thread_time()
            result = work(first)
            wall, busy = time.perf_counter() - wall, time.thread_time() - busy
            yield result
            block = islice(chunks, BLOCK)
            if busy < 0.6 * wall or mean_bytes(first) > LARGE_FILE:
                yield from _in_pool(pool, work, block, 2 * n_threads)
            else:
                yield from map(work, block)


def _in_pool(
    pool: ThreadPoolExecutor, work: Callable[[Chunk], Result], chunks: Iterable[Chunk], n_ahead: int
) -> Iterator[Result]:
    waiting: deque[Future[Result]] = deque()
    for chunk in chunks:
        waiting.append(pool.submit(work, chunk))
        if len(waiting) > n_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def cut(items: Sequence[Chunk], sizes: Sequence[int], max_items: int, max_bytes: int) -> Iterator[Sequence[Chunk]]:
    """Cut a sequence into runs of at most `max_items` and `max_bytes`."""
    begin = total = 0
    for index, size in enumerate(sizes):
        if index > begin and (index - begin >= max_items or total + size > max_bytes):
            yield items[begin:index]
            begin, total = index, 0
        total += size
    if begin < len(items):
        yield items[begin:]
