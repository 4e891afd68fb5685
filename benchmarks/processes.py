"""How long training waits for a checkpoint, and what DDP and FSDP2 cost on this machine, as ratios within one run.

    python benchmarks/processes.py                      # a minute on 2 cores
    python benchmarks/processes.py --millions 160       # a larger state for the checkpoint

The checkpoint: model, average and the two moments of Adam, written to a temporary folder; `stall` is the time until the
training goes on, without and with a thread that writes. The updates: a small transformer on 2 processes of the CPU
(gloo), each `distrib` against DDP called by hand in the same processes, rounds alternating, medians.
"""
import argparse
import copy
import os
import socket
import statistics
import subprocess as sp
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft import distrib, optim  # noqa: E402
from audiocraft.utils.checkpoint_writer import CheckpointWriter  # noqa: E402


def stall(millions: float, asynchronous: bool, saves: int = 3) -> float:
    """Median seconds that `save` takes for a state of 4 float32 tensors per parameter, apart from the first one."""
    size = int(millions * 1e6) // 8
    weights = {str(i): torch.zeros(size) for i in range(8)}
    state = {name: {i: torch.zeros(size) for i in range(8)} for name in ('exp_avg', 'exp_avg_sq')}
    times = []
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(Path(folder), asynchronous=asynchronous, keep_last=1)
        for update in range(saves + 1):
            begin = time.perf_counter()
            writer.save(update, models={'model': weights, 'ema': copy.copy(weights)}, state=state, config='',
                        rank_states={})
            times.append(time.perf_counter() - begin)
            writer.wait()
    return statistics.median(times[1:])


class Network(nn.Module):
    """Some transformer layers."""

    def __init__(self, dim: int = 128, depth: int = 4):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0., batch_first=True)
                                    for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def updates(kind: str, count: int) -> tp.Callable[[], float]:
    """A function that does some updates and returns the seconds of one."""
    torch.manual_seed(0)
    model: tp.Any = Network()
    if kind == 'by hand':
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    else:
        distrib.parallelize(model, kind)
    optimizer = optim.build_optimizer(model, {'lr': 1e-3, 'optimizer': {'_target_': 'torch.optim.AdamW'}})
    updater = None if kind == 'by hand' else optim.Updater(model.parameters(), optimizer, max_norm=1.)
    x = torch.randn(4, 32, 128)

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            loss = model(x).square().mean()
            if updater is not None:
                updater(loss)
                continue
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - begin) / count
    return measure


def worker(rounds: int, count: int) -> None:
    """One of the processes; the first one prints."""
    torch.set_num_threads(1)
    distrib.init('gloo')
    kinds = {kind: updates(kind, count) for kind in ('by hand', 'none', 'ddp', 'fsdp')}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds + 1):
        for kind, measure in kinds.items():
            distrib.barrier()
            seconds = measure()
            if turn:
                times[kind].append(seconds)
    if distrib.is_rank_zero():
        base = statistics.median(times['by hand'])
        print(f'one update on 2 processes, DDP by hand: {1000 * base:.1f} ms')
        for kind in ('none', 'ddp', 'fsdp'):
            print(f'distrib={kind}: ratio {statistics.median(times[kind]) / base:.2f}', flush=True)
    distrib.finish()


def start_workers(args: list[str]) -> None:
    """Run `worker` in two processes."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    env = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    command = [sys.executable, __file__, *args, '--worker']
    processes = [sp.Popen(command, env={**env, 'RANK': rank, 'LOCAL_RANK': rank}) for rank in '01']
    if any([process.wait() for process in processes]):
        sys.exit('a worker failed')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--millions', type=float, default=40., help='parameters of the checkpoint, in millions')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of updates')
    parser.add_argument('--updates', type=int, default=10, help='updates of one round')
    parser.add_argument('--worker', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.rounds, args.updates)
        return
    waits = {name: stall(args.millions, name == 'asynchronous') for name in ('synchronous', 'asynchronous')}
    print(f'checkpoint of {16 * args.millions:.0f} MB: training waits {waits["synchronous"]:.3f} s without, '
          f'{waits["asynchronous"]:.3f} s with a thread that writes: ratio '
          f'{waits["synchronous"] / waits["asynchronous"]:.1f}')
    start_workers(sys.argv[1:])


if __name__ == '__main__':
    main()
