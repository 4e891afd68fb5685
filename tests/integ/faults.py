"""A training of 30 updates with everything that a checkpoint must hold, and faults at exact places of it.

`Project(folder).run('case', fault='SIGKILL@save:17')` trains by the user's command, in processes of its own, which
import their solver from here. A fault is `WHAT@WHERE`, on rank R `WHAT@WHERE/R`; several are separated by commas.
`WHERE` is the number of updates that are done when the fault comes (`8-`: from then on), or `save:N`, the Nth act of
saving. `WHAT` is the name of a signal, which the process sends to itself, or a method of `Faults`.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess as sp
import sys
import time
import typing as tp
from dataclasses import dataclass
from pathlib import Path

import torch

from audiocraft import distrib, optim
from audiocraft.data import loaders
from audiocraft.data.store_writer import StoreWriter
from audiocraft.launch.workers import environments
from audiocraft.solvers.base import StandardSolver

from .chain import ROOT, Chain, outcome

VARIABLE = 'AUDIOCRAFT_TEST_FAULT'
UPDATES, EPOCH, SAVE_EVERY = 30, 10, 3
PATIENCE = 500.  # seconds
ACTS_OF_SAVING = 200  # there are some more
YAML = """# @package _global_
defaults:
  - /solver/default
  - override /optim: adamw
  - override /schedule: cosine
  - _self_
solver: {_target_: integ.faults.Fragile}
allow_targets: [integ.]
device: cpu
num_threads: 1
model: {dim: 32, dropout: 0.1, frozen: 6000}
padding: 20000
dataset: {batch_size: 8, valid: {num_workers: 0}}
dset: {root: data}
optim: {epochs: 3, updates_per_epoch: 10, lr: 0.01, ema: {use: true, _target_: audiocraft.optim.EMA, decay: 0.9}}
schedule: {warmup: 3}
checkpoint: {save_every: 3, keep_last: null}
evaluate: {every: 2}
generate: {every: 1}
logging: {log_updates: 3}
"""
# Without a store, and small enough for a file of the repository.
PLAIN = """# @package _global_
defaults: [fragile, _self_]
solver: {_target_: integ.faults.Plain}
model: {dim: 8, frozen: 10}
padding: 1
"""


# -- the solver --------------------------------------------------------------------------------------------------------

class Network(torch.nn.Module):
    """Dropout, and a parameter that is frozen."""

    def __init__(self, dim: int, dropout: float, frozen: int):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(6, dim), torch.nn.Tanh(), torch.nn.Dropout(dropout),
                                          torch.nn.Linear(dim, 1))
        self.frozen = torch.nn.Parameter(torch.full((frozen,), 0.5), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 6] -> [B, 1]."""
        return self.layers(x) * self.frozen[0]


def items(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`x` [N, 6] and `y` [N, 1], the same on all machines."""
    x = (torch.arange(count * 6) * 37 % 101).reshape(count, 6) / 50 - 1
    return x, x[:, :1] * x[:, 1:2] + 0.5 * x.sum(1, keepdim=True)


class Valid(torch.utils.data.TensorDataset):
    """Items for valid."""

    def __init__(self) -> None:
        super().__init__(*items(24))


class Fragile(StandardSolver):
    """Trains on a store, and notes for each update what it read and the weights that it made (`trace.<rank>.jsonl`)."""

    def build_dataloaders(self) -> None:
        rank, world_size = distrib.rank(), distrib.world_size()
        mixture = loaders.Mixture([Path(self.cfg.dset.root) / 'items'])
        workers = self.cfg.dataset.valid.num_workers
        self.dataloaders = {
            'train': loaders.StoreLoader(mixture, batch_size=self.cfg.dataset.batch_size, seed=self.seed, shuffle=True,
                                         infinite=True, threads=self.cfg.dataset.num_workers, rank=rank,
                                         world_size=world_size, name='train'),
            'valid': torch.utils.data.DataLoader(Valid(), batch_size=8, num_workers=workers)}

    def build_model(self) -> None:
        self.model = self.prepare(Network(**self.cfg.model))
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.seen: list[list[str]] = []  # ids of each update, over all processes
        self.padding = torch.zeros(self.cfg.padding)  # so that state.pt is much longer than the other files
        self.register_stateful('model', 'optimizer', 'schedule', 'updater', 'seen', 'padding')
        self.register_best('model')
        self.register_ema('model')
        self.faults = Faults(os.environ.get(VARIABLE, ''))

    def best_metric(self) -> str:
        return 'loss'

    def run_step(self, idx: int, batch: tp.Any, metrics: dict) -> dict:
        x, y = (batch.tensors['x'], batch.tensors['y']) if self.is_training and hasattr(batch, 'ids') else batch
        noise = self.draws(len(x)).randn(x.shape[1])
        loss = (self.model(x + 0.05 * noise) - y).square().mean()
        if self.is_training:
            loss = self.faults.of_update(self, loss)
            metrics.update(self.updater(loss))
            self.write_trace([str(name) for name in getattr(batch, 'ids', [])], loss.item())
        else:
            self.faults.of_valid(self)
        metrics['loss'] = loss.detach()
        return metrics

    def write_trace(self, ids: list[str], loss: float) -> None:
        """Note what this update read, its loss, and the weights that it made."""
        self.seen.append([name for part in distrib.gather(ids) for name in part])
        weights = b''.join(tensor.detach().numpy().tobytes() for tensor in self.model.parameters())
        line = {'pid': os.getpid(), 'update': self.update, 'ids': self.seen[-1], 'loss': loss,
                'weights': hashlib.sha256(weights).hexdigest()}
        with open(self.folder / f'trace.{distrib.rank()}.jsonl', 'a') as file:
            file.write(json.dumps(line) + '\n')

    def evaluate(self) -> dict:
        return {'total': sum(param.sum().item() for param in self.model.parameters()), 'noise': torch.rand(1).item()}

    def generate(self) -> dict:
        return {'clips': float(self.draws(4).rand().sum())}


class Plain(Fragile):
    """The same without a store: a shuffled DataLoader with `dataset.num_workers` processes."""

    def build_dataloaders(self) -> None:
        loader = torch.utils.data.DataLoader
        self.dataloaders = {'train': loader(torch.utils.data.TensorDataset(*items(40)), batch_size=8, shuffle=True,
                                            drop_last=True, num_workers=self.cfg.dataset.num_workers),
                            'valid': loader(Valid(), batch_size=8)}


# -- the faults --------------------------------------------------------------------------------------------------------

class Faults:
    """The faults that a process has before it: `of_update` and `of_valid` are called where they may come."""

    def __init__(self, text: str):
        self.planned: list[tuple[str, int, bool]] = []
        for fault in filter(None, text.split(',')):
            name, _, place = fault.partition('@')
            place, _, rank = place.partition('/')
            if int(rank or 0) != distrib.rank():
                continue
            if place.startswith('save:'):
                die_while_saving(place, name)
            else:
                self.planned.append((name, int(place.rstrip('-')), place.endswith('-')))

    def _due(self, update: int) -> list[str]:
        return [name for name, at, on in self.planned if update == at or on and update > at]

    def of_update(self, solver: Fragile, loss: torch.Tensor) -> torch.Tensor:
        """Let happen what is due in this update; return its loss."""
        for name in self._due(solver.update):
            if name.startswith('SIG'):
                os.kill(os.getpid(), getattr(signal, name))
            elif name == 'nan':
                loss = loss * float('nan')
            elif name != 'worker':
                getattr(self, name)(solver)
        return loss

    def of_valid(self, solver: Fragile) -> None:
        """Kill -9 the process that reads for valid, `worker`."""
        if 'worker' in self._due(solver.update):
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGKILL)

    def interrupts(self, solver: Fragile) -> None:
        """Ctrl-C twice, in an update that never ends."""
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        self.sleep(solver)

    def sleep(self, solver: Fragile) -> None:
        """Sleep for ever."""
        (solver.folder / 'sleeps').touch()
        while True:
            time.sleep(0.1)

    def error(self, solver: Fragile) -> None:
        """An error that nobody expects."""
        raise ValueError(f'rank {distrib.rank()} cannot go on')

    def memory(self, solver: Fragile) -> None:
        """What torch raises when the memory of a GPU is full."""
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB.')

    def disk(self, solver: Fragile) -> None:
        """From now on no file gets longer than some bytes, as when a disk or a quota is full."""
        import resource
        solver._writer.wait()  # the checkpoint that is being written finds its room; the next one does not
        limit = int(os.environ[f'{VARIABLE}_LIMIT'])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def thread(self, solver: Fragile) -> None:
        """The thread that reads ahead ends without a word, the next time that it looks for something to do."""
        for run in solver.dataloaders['train']._runs:
            run._take = sys.exit


def die_while_saving(place: str, name: str) -> None:
    """Make each act of saving a point at which this process may get a signal."""
    from audiocraft.utils import checkpoint

    from .interrupt import SAVING, Points
    points = Points(place, name)
    for act in SAVING:
        points.wrap(checkpoint, act, 'save')


# -- running it --------------------------------------------------------------------------------------------------------

@dataclass
class Done:
    """How a command ended: its exit status (negative: the signal that killed it), and all that it printed."""
    status: int
    said: str

    @property
    def came_back(self) -> int:
        """The update from which it went on; 0: from the start."""
        found = [line for line in self.said.splitlines() if 'Restored ' in line]
        return int(found[0].rsplit('update ', 1)[1].rstrip('.')) if found else 0

    @property
    def error(self) -> str:
        """What stands behind the only `error: `, to the end."""
        _, *found = re.split('^error: ', self.said, flags=re.MULTILINE)
        assert len(found) == 1 and 'Traceback' not in self.said, self.said
        return found[0]


class Killed(tp.NamedTuple):
    """A training that was killed at an act of saving, when so many updates were done, and where it went on."""
    seed: int
    place: int
    done: int
    came_back: int


class Running:
    """A command that was started: one process, or one for each rank."""

    def __init__(self, processes: list[tp.Any], log: Path):
        self.processes, self.log = processes, log
        self.pid = processes[0].pid

    def _statuses(self) -> list[int | None]:
        return [process.poll() if isinstance(process, sp.Popen) else process.exitcode for process in self.processes]

    def wait_until(self, condition: tp.Callable[[], bool]) -> None:
        """Wait for something that it does."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert None in self._statuses() and time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.05)

    def finish(self) -> Done:
        """Wait for its end, which must be the same on all ranks."""
        self.wait_until(lambda: None not in self._statuses())
        (status,) = set(self._statuses())
        return Done(tp.cast(int, status), self.log.read_text())


def write_store(path: Path, count: int = 40) -> None:
    """The data of the project."""
    ids = [f'item-{number:02d}' for number in range(count)]
    writer = StoreWriter(path, ids=ids, keys={'x': ((6,), 'float32'), 'y': ((1,), 'float32')})
    for name, x, y in zip(ids, *items(count)):
        writer.add(name, {'caption': name}, {'x': x, 'y': y})
    writer.close()
    writer.finish()


class Project(Chain):
    """A folder with the solver and its data, in which commands are started; a case is a folder of XPs with one XP."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        (folder / 'config' / 'solver').mkdir(parents=True)
        for name, text in (('fragile', YAML), ('plain', PLAIN)):
            (folder / 'config' / 'solver' / f'{name}.yaml').write_text(text)
        write_store(folder / 'data' / 'items')

    def variables(self, case: str, fault: str, limit: int) -> dict[str, str]:
        """The environment of a command."""
        return {**self.environment(case), VARIABLE: fault, f'{VARIABLE}_LIMIT': str(limit),
                'PYTHONPATH': os.pathsep.join([str(ROOT), str(ROOT / 'tests')])}

    def start(self, case: str, *args: str, fault: str = '', ranks: int = 1, flags: tp.Sequence[str] = (),
              limit: int = 0, fresh: bool = False, solver: str = 'fragile') -> Running:
        """Start the training.

        With `fresh` as users do, on several ranks by `run -d`. Else each process is forked from this one, which has
        the libraries in memory (their import takes longer than all the rest), and does what a new one would.
        """
        workers = ['-d', '--ddp_workers', str(ranks)] if ranks > 1 and fresh else []
        argv = ['run', *flags, *workers, f'solver={solver}', *args]
        (self.folder / case).mkdir(exist_ok=True)
        log = self.folder / case / f'{len(list((self.folder / case).glob("*.out")))}.out'
        env = self.variables(case, fault, limit)
        if fresh:
            with open(log, 'w') as file:
                return Running([sp.Popen(self.command('-m', 'audiocraft', *argv), cwd=self.folder, env=env, text=True,
                                         stdout=file, stderr=sp.STDOUT, stdin=sp.DEVNULL)], log)
        import dora.__main__  # noqa: F401  what a start spends its time on; the first optimizer imports torch._dynamo
        import torch._dynamo  # noqa: F401
        envs = environments(ranks) if ranks > 1 else [{}]
        processes = []
        for rank, more in enumerate(envs):
            names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
            own = {**env, **{name: more[name] for name in names if name in more}}
            output = log.with_suffix(f'.{rank}') if rank else log
            processes.append(multiprocessing.get_context('fork').Process(target=_command,
                                                                         args=(argv, self.folder, own, output)))
            processes[-1].start()
        return Running(processes, log)

    def run(self, case: str, *args: str, code: int = 0, **options: tp.Any) -> Done:
        """Train until the end, of whatever kind; `code` is the exit status that is expected."""
        done = self.start(case, *args, **options).finish()
        assert done.status == code, f'exit {done.status}: {done.said[-6000:]}'
        return done

    def kill_while_saving(self, case: str, seed: int) -> 'Killed':
        """Kill -9 a new training at some act of saving, and let it go on to its end."""
        place = random.Random(seed).randint(1, ACTS_OF_SAVING)
        self.run(case, fault=f'SIGKILL@save:{place}', code=-signal.SIGKILL)
        done = max(line['update'] for line in self.trace(case)) + 1
        return Killed(seed, place, done, self.run(case).came_back)

    def folder_of(self, case: str) -> Path:
        """The folder of the XP."""
        (found,) = (self.folder / case / 'xps').iterdir()
        return found

    def outcome(self, case: str) -> dict[str, tp.Any]:
        """All that a training left; see `chain.outcome`."""
        return outcome(self.folder_of(case))

    def losses(self, case: str) -> list[float]:
        """The loss of each update."""
        found = {line['update']: line['loss'] for line in self.trace(case)}
        return [found[update] for update in sorted(found)]

    def trace(self, case: str, rank: int = 0) -> list[dict[str, tp.Any]]:
        """What a process noted, over all of its lives."""
        text = (self.folder_of(case) / f'trace.{rank}.jsonl').read_text()
        return [json.loads(line) for line in text.splitlines()]


def _command(argv: list[str], folder: Path, env: dict[str, str], log: Path) -> None:
    """In a forked process: what `python -m audiocraft ARGV` does in a new one."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(1, 'w', closefd=False), open(2, 'w', closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ['audiocraft', *argv]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from audiocraft.cli.dispatch import main
    from audiocraft.environment import AudioCraftEnvironment
    AudioCraftEnvironment.reset()
    if 'audiocraft.train' in sys.modules:
        train = sys.modules['audiocraft.train'].main
        train.dora.dir, train._bases = AudioCraftEnvironment.get_dora_dir(), {}
    sys.exit(main(argv))
