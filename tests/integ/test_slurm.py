"""Jobs on a real SLURM: they are started, watched, interrupted in every way, and end as if nothing had happened.

All jobs of the main grid are submitted together; one that a test interrupts holds in mid-epoch until then.
"""

import json
import os
import shutil
import signal
import subprocess as sp
import sys
import textwrap
import typing as tp
from dataclasses import dataclass
from pathlib import Path

import pytest

from .chain import differences, outcome
from .slurm_cluster import COMMANDS, PARTITION, URGENT, Cluster, until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integ
LONG = 300.  # seconds until something is given up

SOLVER = textwrap.dedent(r'''
    import os, time
    import torch
    from audiocraft import distrib, optim
    from audiocraft.environment import resolve_path
    from audiocraft.solvers import base

    class Toy(base.StandardSolver):
        """Three epochs of five updates; the n-th start holds after the n-th of `toy.hold` until it is asked to stop."""

        def build_dataloaders(self):
            self.starts = self.folder / 'starts'
            if distrib.is_rank_zero():
                names = 'SLURM_JOB_ID', 'SLURM_RESTART_COUNT', 'SLURM_JOB_PARTITION'
                with self.starts.open('a') as file:
                    file.write(' '.join([*(os.environ.get(name, '-') for name in names), os.getcwd()]) + '\n')
            self.logger.info('This is rank %d of %d.', distrib.rank(), distrib.world_size())
            scale = float(resolve_path(self.cfg.toy.data).read_text()) if self.cfg.toy.data else 1.
            data = torch.utils.data.TensorDataset(scale * torch.randn(64, 6))
            self.dataloaders = {stage: torch.utils.data.DataLoader(data, batch_size=8, shuffle=stage == 'train')
                                for stage in ('train', 'valid')}

        def build_model(self):
            self.model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
            self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
            self.updater = self.build_updater(self.model.parameters(), self.optimizer)
            self.register_stateful('model', 'optimizer', 'updater')

        def run_step(self, idx, batch, metrics):
            loss = (self.model(batch[0]) - 1).square().mean()
            metrics['loss'] = loss.detach()
            if self.is_training:
                metrics.update(self.updater(loss))
                self.hold()
            return metrics

        def hold(self):
            number = len(self.starts.read_text().splitlines()) - 1
            if 'SLURM_JOB_ID' in os.environ and self.update in self.cfg.toy.hold[number:number + 1]:
                (self.folder / f'holds.{self.update}').touch()
                while self.stop.requested is None:
                    time.sleep(0.05)
''')
YAML = textwrap.dedent("""
    # @package _global_
    defaults: [/solver/default, _self_]
    solver: {_target_: toy_project.Toy}
    allow_targets: [toy_project]
    device: cpu
    num_threads: 1
    toy: {label: none, hold: [], data: null}
    optim: {epochs: 3, updates_per_epoch: 5, lr: 0.01}
    evaluate: {every: 0}
    generate: {every: 0}
    logging: {log_updates: 1}
    slurm: {gpus: 0, mem_per_gpu: 0, cpus_per_gpu: 1, time: 10, exclude: "vn[3-6]"}
""").lstrip()
TEAM = '{{default: {{dora_dir: {0}, reference_dir: {0}, partitions: {{global: "{1}", team: "{1},{2}"}}}}}}'
GRID = textwrap.dedent("""
    import treetable as tt
    from dora import Explorer
    from audiocraft.environment import AudioCraftEnvironment

    class Table(Explorer):
        def get_grid_metrics(self):
            return [tt.leaf('epoch')]

        def process_history(self, history):
            return {'epoch': len(history)}

    @Table
    def explorer(launcher):
        launcher.bind_(solver='toy')
""").lstrip()
MAIN = """
        four = launcher.slurm(nodes=2, tasks_per_node=2)
        four({'toy.label': 'four'})
        listed = launcher.slurm(partition=AudioCraftEnvironment.get_slurm_partitions(['team']))
        with listed.job_array():
            listed({'toy.label': 'array', 'seed': 1})
            listed({'toy.label': 'array', 'seed': 2})
        held = launcher.bind({'toy.hold': [6]})
        held.slurm(time=3)({'toy.label': 'limit'})
        for kind, options in KINDS.items():
            held.slurm(**options)({'toy.label': kind})
        four.slurm(nodelist=['vn5', 'vn6'], exclude='vn1')({'toy.label': 'group', 'toy.hold': list(HOLDS.values())})
        launcher.slurm(dependents=2)({'toy.label': 'dependents', 'toy.hold': [6, 8]})
"""
# Nodes: the one that is sent away by an urgent job, and the one that fails, hold nothing else. The job of four
# processes suffers everything, one after the other.
KINDS: dict[str, dict[str, tp.Any]] = {'requeue': {}, 'usr2': {}, 'preempt': {'nodelist': ['vn3'], 'exclude': 'vn1'},
                                       'down': {'nodelist': ['vn4'], 'exclude': 'vn1'}}
HOLDS = {'requeue': 3, 'usr2': 6, 'preempt': 8, 'down': 11}
GROUP_NODES = {'vn3': 'vn5', 'vn4': 'vn6'}


@dataclass
class Project:
    """A folder with a solver and grids of its own, from which the commands are run."""
    cluster: Cluster
    folder: Path
    code: Path = ROOT

    @property
    def environment(self) -> dict[str, str]:
        outer = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM_', 'SUBMITIT_'))}
        return outer | self.cluster.variables | {
            'AUDIOCRAFT_DORA_DIR': str(self.folder / 'outputs'), 'AUDIOCRAFT_CONFIG': str(self.folder / 'team.yaml'),
            'PYTHONPATH': str(self.code), 'DORA_PACKAGE': 'audiocraft', 'OMP_NUM_THREADS': '1'}

    def write(self) -> 'Project':
        for folder in ('config/solver', 'grids'):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        (self.folder / 'toy_project.py').write_text(SOLVER)
        (self.folder / 'config' / 'solver' / 'toy.yaml').write_text(YAML)
        (self.folder / 'team.yaml').write_text(TEAM.format(self.folder, PARTITION, URGENT))
        (self.folder / 'grids' / '__init__.py').touch()
        return self

    def start(self, *args: str, **variables: str) -> sp.Popen:
        return sp.Popen([sys.executable, '-m', *args], cwd=self.folder, env=self.environment | variables, text=True,
                        stdout=sp.PIPE, stderr=sp.STDOUT, stdin=sp.DEVNULL)

    def launch(self, *args: str, code: int = 0) -> str:
        process = self.start(*args)
        output = process.communicate(timeout=LONG)[0]
        assert process.returncode == code, f'{" ".join(args)} ended with {process.returncode}: {output}'
        return output

    def grid(self, name: str, body: str, *flags: str, code: int = 0) -> str:
        """Write a grid and run `dora grid` on it."""
        (self.folder / 'grids' / f'{name}.py').write_text(GRID + textwrap.indent(textwrap.dedent(body), '    '))
        return self.launch('dora', 'grid', name, '--no_monitoring', *flags, code=code)

    def xp(self, label: str, number: int = 0) -> Path:
        """The folder of the XP with this `toy.label`."""
        found = [path.parent for path in sorted((self.folder / 'outputs' / 'xps').glob('*/.argv.json'))
                 if f'toy.label="{label}"' in json.loads(path.read_text())]
        return found[number]

    def jobs(self, label: str, number: int = 0) -> list[str]:
        """Ids of the job of an XP and of its dependents."""
        facts = json.loads((self.xp(label, number) / 'job.json').read_text())
        return [facts['job_id'], *facts['dependent_job_ids']]

    def state(self, job: str) -> str:
        return self.cluster.ask('sacct', '-X', '-n', '-P', '-j', job, '-o', 'State')

    def logs(self, label: str) -> str:
        return '\n'.join(path.read_text() for path in sorted((self.xp(label) / 'submitit').glob('*_log.out')))

    def wait_for_state(self, job: str, state: str, label: str = '') -> None:
        """Until a job is in a state; what ends in another one fails at once."""
        def reached() -> bool:
            now = self.state(job)
            assert now.startswith(state) or not now.startswith(('FAILED', 'COMPLETED', 'TIMEOUT', 'CANCELLED')), \
                f'job {job} of {label} is {now}\n{self.logs(label) if label else ""}'
            return now.startswith(state)
        until(reached, LONG, f'job {job} of {label} is {state}')

    def wait_for_hold(self, label: str, update: int = 6) -> None:
        def reached() -> bool:
            assert not self.state(self.jobs(label)[-1]).startswith(('FAILED', 'COMPLETED')), self.logs(label)
            return (self.xp(label) / f'holds.{update}').exists()
        until(reached, LONG, f'{label} holds at {update}')

    def starts(self, label: str) -> list[list[str]]:
        """Job, number of restarts, partition and folder of each process of rank 0."""
        return [line.split() for line in (self.xp(label) / 'starts').read_text().splitlines()]


def main_grid() -> str:
    return MAIN.replace('KINDS', repr(KINDS)).replace('HOLDS', repr(HOLDS))


@pytest.fixture(scope='module')
def cluster(tmp_path_factory: pytest.TempPathFactory) -> tp.Iterator[Cluster]:
    sp.run(['sh', ROOT / 'tests' / 'integ' / 'setup.sh', *COMMANDS], check=True)
    with Cluster(tmp_path_factory.mktemp('slurm'), nodes=6) as cluster:
        yield cluster


@pytest.fixture(scope='module')
def project(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """With all the jobs of the main grid submitted."""
    project = Project(cluster, tmp_path_factory.mktemp('project')).write()
    project.grid('main', main_grid())
    return project


@pytest.fixture(scope='module')
def reference(project: Project) -> dict[str, tp.Any]:
    """What the training gives when nothing interrupts it and nothing schedules it."""
    process = project.start('dora', 'run', 'solver=toy', AUDIOCRAFT_DORA_DIR=str(project.folder / 'alone'))
    output = process.communicate(timeout=LONG)[0]
    assert process.returncode == 0, output
    (xp,) = (project.folder / 'alone' / 'xps').iterdir()
    return outcome(xp)


def interrupt(project: Project, kind: str, label: str) -> None:
    """What happens to a job in the middle of an epoch."""
    ask, (job, *_) = project.cluster.ask, project.jobs(label)
    node = {'preempt': 'vn3', 'down': 'vn4'}.get(kind, '')
    node = GROUP_NODES.get(node, '') if label == 'group' else node
    if kind == 'requeue':
        ask('scontrol', 'requeue', job)
    elif kind == 'usr2':
        ask('scancel', '--signal=USR2', job)
    elif kind == 'preempt':
        ask('sbatch', '-p', URGENT, '-w', node, '--exclusive', '-o', '/dev/null', '--wrap', 'true')
    elif kind == 'down':
        ask('scontrol', 'update', f'nodename={node}', 'state=down', 'reason=test')
        until(lambda: ask('squeue', '-h', '-j', job, '-o', '%T') in ('PENDING', 'REQUEUED'), LONG, 'it left the node')
        # It may have come back by itself, since its daemon still answers.
        ask('scontrol', 'update', f'nodename={node}', 'state=resume', check=False)


def same(xp: Path, reference: dict[str, tp.Any]) -> None:
    """To the bit, but for the signature: XPs of one training have different labels."""
    assert [name for name in differences(outcome(xp), reference) if name != '.state.sig'] == []


def test_jobs_of_a_grid(project):
    labels = [('four', 0), ('array', 0), ('array', 1)]
    for label, number in labels:
        project.wait_for_state(project.jobs(label, number)[0], 'COMPLETED', label)
    table = project.grid('main', main_grid())
    assert table.count('COMPLETED') >= len(labels) and 'RUNNING' in table, table
    assert 'Scheduled job' not in table, table
    (job,) = project.jobs('four')
    ranks = [(project.xp('four') / 'submitit' / f'{job}_{rank}_log.out').read_text() for rank in range(4)]
    assert all(f'This is rank {rank} of 4.' in text for rank, text in enumerate(ranks)), ranks
    assert project.cluster.ask('sacct', '-X', '-n', '-P', '-j', job, '-o', 'NNodes,AllocCPUS') == '2|4'
    arrays = [project.jobs('array', number)[0] for number in (0, 1)]
    assert {job.split('_')[1] for job in arrays} == {'0', '1'} and len({job.split('_')[0] for job in arrays}) == 1
    (script,) = (project.xp('array') / 'latest').glob('*_submission.sh')
    assert f'--partition={PARTITION},{URGENT}' in script.read_text()
    assert project.starts('four')[0][2] == PARTITION


def test_info(project):
    project.wait_for_hold('usr2')
    sig = project.xp('usr2').name
    process = project.start('dora', 'info', '-f', sig, '-t')
    try:
        assert any('Train | Epoch 1/3' in line for line in iter(process.stdout.readline, ''))
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 'Train Summary | Epoch 1' in project.launch('dora', 'info', '-f', sig, '-l')
    assert 'Metrics[1]: {"train": ' in project.launch('dora', 'info', '-f', sig, '-m')


@pytest.mark.parametrize('kind', list(KINDS))
def test_interrupted(project, reference, kind):
    project.wait_for_hold(kind)
    interrupt(project, kind, kind)
    project.wait_for_hold('group', HOLDS[kind])
    interrupt(project, kind, 'group')
    project.wait_for_state(project.jobs(kind)[0], 'COMPLETED', kind)
    assert [start[1] for start in project.starts(kind)] == ['-', '1'], project.logs(kind)
    same(project.xp(kind), reference)


def test_interrupted_group(project):
    """Four processes on two nodes, after all of the above."""
    project.wait_for_state(project.jobs('group')[0], 'COMPLETED', 'group')
    assert [start[1] for start in project.starts('group')] == ['-', '1', '2', '3', '4']
    same(project.xp('group'), outcome(project.xp('four')))


def test_dependents(project, reference):
    jobs = project.jobs('dependents')
    project.wait_for_hold('dependents', 6)
    project.cluster.ask('scancel', '--signal=USR2', jobs[0])
    project.wait_for_hold('dependents', 8)
    assert project.state(jobs[0]) == 'FAILED'
    project.cluster.ask('scancel', '--signal=USR2', jobs[1])
    project.wait_for_state(jobs[2], 'COMPLETED', 'dependents')
    same(project.xp('dependents'), reference)


def test_removed_and_cancelled(project):
    xps = ["launcher({'toy.label': 'kept', 'toy.hold': [1]})", "launcher({'toy.label': 'removed', 'toy.hold': [1]})"]
    project.grid('endless', '\n'.join(xps))
    for label in ('kept', 'removed'):
        project.wait_for_hold(label, 1)
    assert 'no longer required' in project.grid('endless', xps[0])
    project.wait_for_state(project.jobs('removed')[0], 'CANCELLED', 'removed')
    assert project.state(project.jobs('kept')[0]) == 'RUNNING'
    project.grid('endless', xps[0], '--cancel')
    project.wait_for_state(project.jobs('kept')[0], 'CANCELLED', 'kept')
    assert [len(project.starts(label)) for label in ('kept', 'removed')] == [1, 1]


def test_time_limit(project, reference):
    """SLURM sends USR2 90 seconds before the limit of three minutes."""
    project.wait_for_state(project.jobs('limit')[0], 'COMPLETED', 'limit')
    assert 'this job is timed-out' in project.logs('limit')
    assert [start[1] for start in project.starts('limit')] == ['-', '1']
    same(project.xp('limit'), reference)


@pytest.mark.parametrize('body, said', [
    ('launcher.slurm_(nodez=2)', 'did you mean "nodes"?'),
    ("launcher.slurm(gpus=3, nodes=2)({'seed': 5})", 'slurm.gpus=3 cannot be spread evenly over slurm.nodes=2'),
])
def test_wrong_settings_are_one_line(project, body, said):
    before = len(project.cluster.jobs())
    output = project.grid('wrong', body, code=1)
    assert said in output and 'Traceback' not in output
    assert len(project.cluster.jobs()) <= before


def git(folder: Path, *args: str) -> None:
    sp.run(['git', '-c', 'user.name=test', '-c', 'user.email=test@localhost', *args], cwd=folder, check=True,
           capture_output=True)


def test_git_save(cluster, tmp_path):
    """The job runs the code of a clone and reads the data of the folder in which the command was given."""
    folder = tmp_path / 'checkout'
    ignore = shutil.ignore_patterns('__pycache__')
    for name in ('audiocraft', 'config', 'grids'):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    project = Project(cluster, folder, code=Path()).write()
    config = folder / 'config' / 'config.yaml'
    config.write_text(config.read_text().replace('\ndora:\n', '\ndora:\n  git_save: true\n'))
    (folder / '.gitignore').write_text('data\noutputs\n__pycache__\n')
    git(folder, 'init', '-q')
    git(folder, 'add', '.')
    git(folder, 'commit', '-q', '-m', 'all')
    (folder / 'data').mkdir()
    (folder / 'data' / 'x').write_text('3.5')
    project.grid('saved', "launcher({'toy.label': 'saved', 'toy.data': 'data/x'})")
    project.wait_for_state(project.jobs('saved')[0], 'COMPLETED', 'saved')
    (start,) = project.starts('saved')
    assert Path(start[3]).parent == folder / 'outputs' / 'codes'
    (folder / 'toy_project.py').write_text(SOLVER + '# changed\n')
    assert 'Repository is not clean' in project.grid('saved', 'launcher(seed=3)', code=1)
