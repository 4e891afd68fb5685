"""Training where POSIX's own pieces do not exist, as on Windows: it trains, stops, resumes and reports.

What Windows lacks is taken away in a process of its own before anything of audiocraft is imported, and after our
dependencies are: what these need of it, on the systems that they support, is their business.
"""

import json
import os
import re
import subprocess as sp
import sys
import textwrap
from pathlib import Path

from audiocraft.utils.checkpoint import read_tensors

ROOT = Path(__file__).resolve().parents[1]

POOR = textwrap.dedent('''
    """Takes away what Windows lacks, then runs each of the commands in sys.argv (a JSON list of lists)."""
    import ctypes, json, os, select, signal, sys

    # Our dependencies, with the parts of them that are imported late.
    import dora.__main__, dora.run, dora.grid, flashy, flashy.distrib, hydra, omegaconf, submitit, tensordict, treetable
    import hydra._internal.utils, hydra.core.plugins, torch, torch.distributed.fsdp, torch.utils.data, torchaudio
    import multiprocessing.util, soundfile, safetensors.torch, torch.distributed.tensor, tempfile

    MODULES = ['fcntl', 'termios', 'resource', 'tty', 'pty', 'pwd', 'grp', 'syslog']
    FUNCTIONS = ['fork', 'forkpty', 'killpg', 'setsid', 'getsid', 'getpgrp', 'getpgid', 'setpgid', 'tcgetpgrp',
                 'tcsetpgrp', 'getuid', 'geteuid', 'getgid', 'setuid', 'sched_getaffinity', 'statvfs', 'mkfifo',
                 'fchmod', 'fchown', 'chown', 'posix_fadvise', 'posix_fallocate', 'pread', 'pwrite', 'uname',
                 'getloadavg', 'sysconf', 'wait3', 'wait4', 'WNOHANG', 'nice', 'O_DIRECTORY', 'O_NOFOLLOW']
    SIGNALS = ['SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGKILL', 'SIGQUIT', 'SIGALRM', 'SIGCHLD', 'SIGTTIN', 'SIGTTOU',
               'SIGXFSZ', 'pthread_sigmask', 'pthread_kill', 'setitimer', 'alarm', 'sigwait', 'siginterrupt']

    for name in MODULES:
        sys.modules[name] = None
    for owner, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        for name in names:
            if hasattr(owner, name):
                delattr(owner, name)

    def no_files(*args):
        raise OSError('select is for sockets')

    def no_library(*args):
        raise OSError('no library of C, and so no prctl')

    def no_folders(path, flags, *more, stock=os.open, **options):
        if os.path.isdir(path):
            raise PermissionError(13, 'a folder cannot be opened', path)
        return stock(path, flags, *more, **options)

    select.select, ctypes.CDLL, os.open = no_files, no_library, no_folders
    assert not any(name.startswith('audiocraft') for name in sys.modules)
    from audiocraft.cli.dispatch import main
    for argv in json.loads(sys.argv[1]):
        print('>', *argv, flush=True)
        try:
            status = main(argv)
        except SystemExit as ended:
            status = ended.code or 0
        print('status', status, flush=True)
''')
SOLVER = textwrap.dedent("""
    import torch
    from audiocraft import optim
    from audiocraft.solvers.base import StandardSolver
    from audiocraft.utils.mailbox import FOLDER
    from audiocraft.utils.files import write_atomic

    class Solver(StandardSolver):
        def build_dataloaders(self):
            x = torch.linspace(-1, 1, 96).reshape(24, 4)
            data = torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))
            self.dataloaders = {'train': torch.utils.data.DataLoader(data, batch_size=4, shuffle=True),
                                'valid': torch.utils.data.DataLoader(data, batch_size=8)}

        def build_model(self):
            self.model = self.prepare(torch.nn.Linear(4, 1))
            self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
            self.updater = self.build_updater(self.model.parameters(), self.optimizer)
            self.register_stateful('model', 'optimizer', 'updater')
            self.register_best('model')

        def best_metric(self):
            return 'loss'

        def run_step(self, idx, batch, metrics):
            x, y = batch
            loss = (self.model(x + 0.1 * self.draws(len(x)).randn(4)) - y).square().mean()
            metrics['loss'] = loss.detach()
            if self.is_training:
                metrics.update(self.updater(loss))
                if self.update == self.cfg.quit_at and self.epoch == 2:
                    self.control._mailbox._next = 0.  # look at once
                    write_atomic(self.folder / FOLDER / '1-0123456789ab.cmd', 'quit')
            return metrics

        def evaluate(self):
            return {'total': self.model.weight.sum().item()}

        def generate(self):
            return {'clips': 0}
""")
YAML = """# @package _global_
defaults: [/solver/default, _self_]
solver: {_target_: poor_project.Solver}
allow_targets: [poor_project]
device: cpu
num_threads: 1
quit_at: null
optim: {epochs: 3, updates_per_epoch: 5, lr: 0.01}
"""


def run(folder, *commands):
    """The exit status and the output of each command, all in one process."""
    env = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{folder}', 'AUDIOCRAFT_DORA_DIR': str(folder / 'out'),
           'AUDIOCRAFT_PARENT': str(os.getpid()), 'USERNAME': 'somebody'}  # Windows sets the name
    done = sp.run([sys.executable, str(folder / 'poor.py'), json.dumps(commands)], cwd=folder, env=env, text=True,
                  stdout=sp.PIPE, stderr=sp.STDOUT, stdin=sp.DEVNULL)
    assert done.returncode == 0 and 'Traceback' not in done.stdout, done.stdout[-6000:]
    found = re.findall(r'^> .*\n((?:.*\n)*?)status (\d+)$', done.stdout, re.MULTILINE)
    assert len(found) == len(commands), done.stdout
    return [(int(status), said) for said, status in found]


def test_training_without_posix(tmp_path):
    """It trains, is stopped by `quit` in the second epoch, goes on, and ends as a training that was not stopped."""
    (tmp_path / 'config' / 'solver').mkdir(parents=True)
    (tmp_path / 'config' / 'solver' / 'poor.yaml').write_text(YAML)
    for name, text in (('poor.py', POOR), ('poor_project.py', SOLVER)):
        (tmp_path / name).write_text(text)
    train, other = ['run', 'solver=poor', 'quit_at=7'], ['run', 'solver=poor']
    stopped, resumed, again, whole, sig, sig_whole, xps = run(
        tmp_path, train, train, train, other, ['sig', *train[1:]], ['sig', *other[1:]], ['xps'])
    assert [status for status, _ in (stopped, resumed, again, whole, sig, sig_whole, xps)] == [0] * 7
    assert 'Stopped by quit after update 8, which is saved' in stopped[1]
    assert 'epoch 2, update 8.' in resumed[1] and 'Finished: 3 epochs, 15 updates' in resumed[1]
    assert 'Nothing to do, this XP is finished' in again[1]
    name, name_whole = sig[1].strip(), sig_whole[1].strip()
    assert name in xps[1] and name_whole in xps[1] and 'finished' in xps[1]
    weights, expected = (read_tensors(tmp_path / 'out' / 'xps' / xp / 'checkpoints' / '15' / 'model.safetensors')
                         for xp in (name, name_whole))
    assert name != name_whole and weights.keys() == expected.keys()
    assert all(weights[key].equal(expected[key]) for key in weights)
