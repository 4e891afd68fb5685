"""Run many small jobs over processes."""

import multiprocessing
import typing as tp
from concurrent.futures import ProcessPoolExecutor

T = tp.TypeVar('T')
R = tp.TypeVar('R')


def run_jobs(function: tp.Callable[[T], R], items: tp.Sequence[T], workers: int) -> tp.Iterator[R]:
    """Yield `function(item)` for each item, in order; with one worker, or little to do, in this process.

    `function` and the items must be picklable: processes are spawned, since forking a process that has threads is
    unsafe, and so the caller's main module must be importable without side effects, as for any use of multiprocessing.
    """
    if workers <= 1 or len(items) <= 8:
        yield from map(function, items)
        return
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
        try:
            yield from pool.map(function, items, chunksize=max(1, min(8, len(items) // (4 * workers))))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
