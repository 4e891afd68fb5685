"""What a solver costs per update: the loop of `solver=mmaudio/...` against a bare loop of the same work, in one run.

    python benchmarks/solver.py                                   # under a minute, on one thread
    python benchmarks/solver.py model=mmaudio/small_16k device=cuda --batch_size 16   # another model, another device

The bare loop is what one would write by hand: the same model, data, optimizer, draws, clipping and schedule, and
nothing else. The solver adds what the framework is for: checks for values that are not finite, draws and positions
that can be found again, metrics, log lines, stop flags. Rounds of both alternate, with a second bare loop beside, which
tells how much of a difference is chance; medians over rounds count. The overhead hardly depends on the model: the one
here is tiny, so that it shows, and the ratio of one of real size is next to 1.
"""
import argparse
import copy
import itertools
import logging
import statistics
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft import optim, train  # noqa: E402
from audiocraft.data.loaders import build_loader  # noqa: E402
from audiocraft.data.store_writer import StoreWriter  # noqa: E402
from audiocraft.utils.logging import setup_logging  # noqa: E402

SHAPES = {'mean': (125, 16), 'std': (125, 16), 'clip_features': (32, 256), 'sync_features': (96, 512),
          'text_features': (16, 64)}  # an item of the example data
TINY = ['model.hidden_dim=32', 'model.num_heads=2', 'model.depth=2', 'model.fused_depth=1']
SETTINGS = ['solver=mmaudio/debug', 'optim/ema=none', 'evaluate.every=0', 'generate.every=0', 'optim.epochs=100000']


def make_store(path: Path, items: int = 128) -> Path:
    """Write a store of random items."""
    ids = [f'{i:08d}' for i in range(items)]
    facts = {'sample_rate': 16_000, 'frame_rate': 31.25, 'duration': 4.}
    writer = StoreWriter(path, keys={key: (shape, 'float32') for key, shape in SHAPES.items()}, ids=ids, facts=facts)
    for id in ids:
        writer.add(id, {'caption': 'a sound'}, {key: torch.rand(shape) for key, shape in SHAPES.items()})
    writer.finish()
    return path


class Bare:
    """The same training by hand."""

    def __init__(self, solver: tp.Any):
        self.cfg, self.device = solver.cfg, solver.device
        self.model = copy.deepcopy(solver.model).train()
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, solver.total_updates)
        self.batches = build_loader(self.cfg.dset.train, self.cfg.dataset, stage='train', seed=0).iterate(0)
        self.autocast, self.max_norm = self.cfg.autocast, self.cfg.optim.max_norm
        self.probability = self.cfg.null_condition.probability

    def dropped(self, x: torch.Tensor, empty: torch.Tensor, drop: torch.Tensor) -> torch.Tensor:
        """Conditions, some of them replaced by the learned null."""
        return torch.where(drop[:, None, None], empty.to(x.dtype), x)

    def update(self) -> None:
        """One update."""
        batch, model = next(self.batches).to(self.device, non_blocking=True), self.model
        mean, std, clip, sync, text = (batch.tensors[key] for key in SHAPES)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            x1 = model.normalize(mean + std * torch.randn_like(mean))
            t = torch.randn(len(batch), device=self.device).sigmoid()
            x0 = torch.randn_like(x1)
            no_video, no_text = torch.rand(2, len(batch), device=self.device) < self.probability
            clip = self.dropped(clip, model.empty_clip_feat, no_video)
            sync = self.dropped(sync, model.empty_sync_feat, no_video)
            text = self.dropped(text, model.empty_string_feat, no_text)
            xt = torch.lerp(x0, x1, t[:, None, None])
            loss = (model(xt, clip, sync, text, t) - (x1 - x0)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
        self.optimizer.step()
        self.schedule.step()

    def run(self, updates: int) -> None:
        """So many updates."""
        for _ in range(updates):
            self.update()


class Ours:
    """The train stage of the solver; what ends an epoch (valid, checkpoint) is not in it."""

    def __init__(self, solver: tp.Any):
        self.solver = solver
        solver._open_reporter()  # as `run` does: log lines go to metrics.jsonl, too

    def run(self, updates: int) -> None:
        """One epoch of `optim.updates_per_epoch` updates."""
        self.solver.run_stage('train', self.solver.train)

    def reset(self) -> None:
        """Begin the next epoch."""
        self.solver.commit(save_checkpoint=False)
        self.solver.history.clear()


def seconds(function: tp.Callable[[int], None], updates: int) -> float:
    """Seconds per update."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(updates)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / updates


def measure(solver: tp.Any, updates: int, limit: float, rounds: int) -> list[tuple[float, float, float]]:
    """Seconds per update of the bare loop, the solver and another bare loop, round by round."""
    first, ours, second = Bare(solver), Ours(solver), Bare(solver)
    results = []
    end = time.perf_counter() + limit
    for number in itertools.count():
        # Each goes first and last equally often: what a machine does over time hits all alike.
        order = [(0, first.run), (1, ours.run), (2, second.run)][::1 if number % 2 else -1]
        measured = dict((index, seconds(run, updates)) for index, run in order)
        ours.reset()
        if number > 0:  # the first round warms up
            results.append((measured[0], measured[1], measured[2]))
        if len(results) >= rounds or (len(results) >= 3 and time.perf_counter() > end):
            return results
    raise AssertionError


def report(results: list[tuple[float, float, float]], updates: int) -> str:
    """A table, and the overhead with its noise."""
    medians = [statistics.median(column) for column in zip(*results)]
    over = statistics.median(ours - (a + b) / 2 for a, ours, b in results)
    chance = statistics.median(abs(a - b) for a, _, b in results)
    bare = (medians[0] + medians[2]) / 2
    rows = [f'{name:24}{value * 1e6:>10.0f} us per update' for name, value in
            zip(['bare loop', 'solver', 'bare loop, once more'], medians)]
    return '\n'.join([*rows, f'overhead of the solver: {over * 1e6:.0f} us per update, ratio {1 + over / bare:.4f} '
                      f'(medians of {len(results)} rounds of {updates} updates; two bare loops differ by '
                      f'{chance * 1e6:.0f} us)'])


def make_xp(folder: Path, batch_size: int, updates: int, overrides: tp.Sequence[str]) -> tp.Any:
    """An XP in `folder`, on random data, with a log file."""
    store = make_store(folder / 'store')
    stores = [f'dset.{stage}.stores=["{store}"]' for stage in ('train', 'valid', 'evaluate', 'generate')]
    train.main.dora.dir = folder / 'outputs'
    model = [] if any(override.startswith('model') for override in overrides) else TINY
    xp = train.main.get_xp([*SETTINGS, *stores, *model, 'device=cpu', 'num_threads=1', *overrides,
                            f'dataset.batch_size={batch_size}', f'optim.updates_per_epoch={updates}'])
    train.main.init_xp(xp)
    train.init_system(xp.cfg)
    setup_logging(xp.folder, 'solver.log.0', 'INFO')
    for handler in logging.getLogger().handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)  # the lines go to the file only
    return xp


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='as for a training')
    parser.add_argument('--batch_size', type=int, default=4)
    parser.add_argument('--updates', type=int, default=10, help='updates of a round')
    parser.add_argument('--rounds', type=int, default=100, help='at most that many rounds')
    parser.add_argument('--seconds', type=float, default=35., help='begin no round after that')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        xp = make_xp(Path(folder), args.batch_size, args.updates, args.overrides)
        with xp.enter():
            solver = train.get_solver(xp.cfg)
            count = sum(parameter.numel() for parameter in solver.model.parameters())
            print(f'{type(solver.model).__name__} of {count / 1e6:.2f} M parameters on {solver.device}, '
                  f'{args.batch_size} items per update, {torch.get_num_threads()} thread(s)', flush=True)
            print(report(measure(solver, args.updates, args.seconds, args.rounds), args.updates))


if __name__ == '__main__':
    main()
