"""Several processes in a test, forked, since importing torch again takes longer than all the rest."""

import multiprocessing
import os
import queue
import socket
import traceback
import typing as tp

import torch

from audiocraft import distrib


def _run(function: tp.Callable, rank: int, world_size: int, port: int, results: tp.Any, args: tuple) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    torch.set_num_threads(1)
    answer: tuple[int, tp.Any, str | None]
    try:
        distrib.init('gloo', timeout=100)
        answer = (rank, function(*args), None)
    except BaseException as error:
        answer = (rank, None, f'{type(error).__name__}: {error}\n{traceback.format_exc()}')
    results.put(answer)
    results.close()
    results.join_thread()
    distrib.end_without_goodbye(0 if answer[2] is None else 1)


def run_ranks(function: tp.Callable[..., tp.Any], world_size: int, *args: tp.Any,
              fails: bool = False, answers: int | None = None) -> list[tp.Any]:
    """What `function(*args)` returns on each of some processes, in the order of their numbers.

    What it returns must be plain: tensors as lists. With `fails`, the errors that it raised, as text; with `answers=0`
    nothing, when all have ended by themselves.
    """
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('fork')
    results = context.Queue()
    processes = [context.Process(target=_run, args=(function, rank, world_size, port, results, args))
                 for rank in range(world_size)]
    for process in processes:
        process.start()
    found: dict[int, tuple[tp.Any, str | None]] = {}
    try:
        for _ in range(world_size if answers is None else answers):
            rank, value, problem = results.get(timeout=150)
            assert fails or problem is None, f'process {rank}: {problem}'
            found[rank] = (value, problem)
        for process in processes:
            process.join(timeout=60)
    except queue.Empty:
        raise AssertionError(f'only the processes {sorted(found)} have come to an end') from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [found[rank][1 if fails else 0] for rank in sorted(found)]
