"""What is asked of SLURM, without SLURM. The jobs themselves are in `tests/integ/test_slurm.py`."""

import copy
import signal
import subprocess as sp
import types

import dora.conf
import dora.shep
import pytest
import submitit
from dora.conf import SubmitRules
from dora.explore import Herd, Launcher
from dora.shep import Shepherd
from submitit.core.job_environment import SignalHandler

from audiocraft import dora_compat
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.launch import slurm
from audiocraft.launch.slurm import SlurmConfig, requeue_after_save
from audiocraft.utils.errors import UserError

CPU = {'gpus': 0, 'mem_per_gpu': 0, 'cpus_per_gpu': 1}


def stock(name):
    """A method of Dora as it was before anything of ours."""
    function = getattr(Shepherd, name)
    while function.__module__ != 'dora.shep':
        (function,) = [cell.cell_contents for cell in function.__closure__ if callable(cell.cell_contents)]
    return function


@pytest.fixture(autouse=True)
def slurm_here(tmp_path, monkeypatch):
    """An `srun` that exists is all that submitit looks for."""
    (tmp_path / 'srun').touch(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    for name in ('SUBMITIT_EXECUTOR', 'SLURM_JOB_ID', 'SLURM_ARRAY_JOB_ID', 'SLURM_ARRAY_TASK_ID'):
        monkeypatch.delenv(name, raising=False)
    # Dora sets it for good, and monkeypatch takes it away at the end.
    monkeypatch.setenv('SLURM_KILL_BAD_EXIT', '1')


@pytest.fixture
def executor(tmp_path):
    """Makes the executor of some settings."""
    make = slurm.get_executor(stock('_get_submitit_executor'))
    return lambda **settings: make(None, 'job', tmp_path, SlurmConfig(**settings))


def asked(executor):
    return {key: value for key, value in executor.parameters.items()
            if key in ('nodes', 'ntasks_per_node', 'cpus_per_task', 'gres', 'mem')}


@pytest.mark.parametrize('settings, nodes, tasks, cpus, gres, mem', [
    ({**CPU, 'nodes': 2, 'tasks_per_node': 2}, 2, 2, 1, None, None),
    ({**CPU, 'tasks_per_node': 3, 'mem_per_gpu': 0.5}, 1, 3, 1, None, '1536MB'),
    ({**CPU, 'nodes': 3}, 3, 1, 1, None, None),
    ({'gpus': 12, 'nodes': 3}, 3, 4, 10, 'gpu:4', '163840MB'),
    ({'gpus': 32, 'nodes': 2, 'mem_per_gpu': 2.3}, 2, 16, 10, 'gpu:16', '37683MB'),
    ({'gpus': 8, 'nodes': 2, 'tasks_per_node': 8, 'mem_per_gpu': 1}, 2, 8, 10, 'gpu:4', '8192MB'),
    ({'gpus': 8, 'nodes': 2, 'cpus_per_task': 5}, 2, 4, 5, 'gpu:4', '163840MB'),
    ({'gpus': 8, 'nodes': 2, 'one_task_per_node': True}, 2, 1, 40, 'gpu:4', '163840MB'),
    ({'gpus': 16, 'tasks_per_node': 1}, 2, 1, 80, 'gpu:8', '327680MB'),
])
def test_nodes_and_tasks(executor, settings, nodes, tasks, cpus, gres, mem):
    slurm.check(SlurmConfig(**settings))
    wanted = {'nodes': nodes, 'ntasks_per_node': tasks, 'cpus_per_task': cpus, 'gres': gres, 'mem': mem}
    made = executor(**settings)
    assert asked(made) == {key: value for key, value in wanted.items() if value is not None}
    text = made._make_submission_file_text('true', 'uid')
    assert f'#SBATCH --nodes={nodes}\n' in text and f'#SBATCH --ntasks-per-node={tasks}\n' in text


@pytest.mark.parametrize('settings', [
    {}, CPU, {'gpus': 4}, {'gpus': 16}, {'gpus': 16, 'one_task_per_node': True}, {'gpus': 2, 'cpus_per_task': 3},
    {'mem_per_gpu': 2.5, 'time': 7, 'comment': 'c', 'qos': 'q', 'setup': ['module load x'], 'exclude': 'a,b'},
    {'nodelist': ['a', 'b'], 'srun_args': ['-v'], 'container_chdir': True, 'constraint': 'big'},
])
def test_without_them_all_is_as_in_dora(executor, tmp_path, settings):
    theirs = stock('_get_submitit_executor')(None, 'job', tmp_path, dora.conf.SlurmConfig(**copy.deepcopy(settings)))
    assert executor(**settings).parameters == theirs.parameters


def test_settings_are_left_as_they_are(tmp_path):
    """Dora adds to the list of the settings itself, once more with each job."""
    config = SlurmConfig(container_chdir=True, nodes=1)
    for _ in range(2):
        made = slurm.get_executor(stock('_get_submitit_executor'))(None, 'job', tmp_path, config)
        assert len(made.parameters['srun_args']) == 2
    assert config.srun_args == [] and config.gpus == 1


@pytest.mark.parametrize('partition, asked_for', [
    ('', None), (['a', 'b'], 'a,b'), ('a,b', 'a,b'), ([], None),
])
def test_partitions(executor, partition, asked_for):
    assert executor(partition=partition).parameters.get('partition') == asked_for


@pytest.mark.parametrize('settings, said', [
    ({'gpus': 3, 'nodes': 2}, 'slurm.gpus=3 cannot be spread evenly over slurm.nodes=2'),
    ({'gpus': 1, 'nodes': 2}, 'slurm.gpus=1 cannot'),
    ({'nodes': 0}, 'slurm.nodes=0: expected'),
    ({'tasks_per_node': 'two'}, 'slurm.tasks_per_node=two: expected'),
    ({'gpus': 12}, 'without slurm.nodes'),
])
def test_numbers_that_do_not_go_together(settings, said):
    with pytest.raises(UserError, match=said):
        slurm.check(SlurmConfig(**settings))


def test_from_config(monkeypatch):
    config = slurm.from_config({'gpus': 16, 'nodes': 4, 'partition': None})
    assert (config.gpus, config.nodes, config.partition, config.exclude) == (16, 4, '', None)
    monkeypatch.setenv('AUDIOCRAFT_TEAM', 'labs')
    monkeypatch.setenv('AUDIOCRAFT_CLUSTER', 'aws')
    AudioCraftEnvironment.reset()
    assert slurm.from_config(None).partition == 'learn'
    assert slurm.from_config({'partition': 'mine'}).partition == 'mine'
    with pytest.raises(UserError, match=r'slurm\.nodess: there is no such SLURM setting: did you mean "nodes"\?'):
        slurm.from_config({'nodess': 2})


def xp(sig='abc', argv=(), **own):
    xp = types.SimpleNamespace(sig=sig, argv=argv, cfg={'slurm': {'gpus': 1, 'nodes': None, **own}})
    return types.SimpleNamespace(xp=xp, job=None)


class Shepherd_(Shepherd):
    def __init__(self):
        self.main = types.SimpleNamespace(_base_cfg={'slurm': {'gpus': 1, 'nodes': None}})
        self._in_job_array, self._to_submit = False, []


def submit(shepherd, sheep, config):
    slurm.maybe_submit(stock('maybe_submit_lazy'))(shepherd, sheep, config, SubmitRules())


def test_an_xp_changes_settings():
    """What its overrides say wins over the grid, and the grid over the yaml of its solver."""
    shepherd, config = Shepherd_(), SlurmConfig(gpus=4, partition='', time=7)
    submit(shepherd, xp(argv=['slurm.nodes=2', '+slurm.gpus=8'], nodes=2, gpus=8), config)
    submit(shepherd, xp(), config)
    submit(shepherd, xp(nodes=2, gpus=8), config)
    found = [(array.slurm_config.gpus, array.slurm_config.nodes) for array in shepherd._to_submit]
    assert found == [(8, 2), (4, None), (4, 2)] and config == SlurmConfig(gpus=4, partition='', time=7)
    with pytest.raises(UserError, match='slurm.nodes=3'):
        submit(shepherd, xp(nodes=3), config)
    with pytest.raises(UserError, match='slurm.nodez: there is no such SLURM setting'):
        submit(shepherd, xp(nodez=3), config)
    assert len(shepherd._to_submit) == 3


def test_sbatch_refuses(monkeypatch):
    def refuse(self):
        raise submitit.core.utils.FailedJobError('sbatch: error: Invalid node name')
    with pytest.raises(UserError, match='SLURM refused the job: sbatch: error: Invalid node name'):
        slurm.commit(refuse)(None)


def test_an_array_has_the_same_settings():
    shepherd, config = Shepherd_(), SlurmConfig()
    with shepherd.job_array(config):
        submit(shepherd, xp(gpus=2), config)
        submit(shepherd, xp(gpus=2), config)
        assert shepherd._to_submit[0].slurm_config.gpus == 2
        with pytest.raises(UserError, match='The XP def has other slurm settings'):
            submit(shepherd, xp('def', gpus=4), config)


def test_launcher_names_what_it_does_not_know():
    launcher = Launcher(types.SimpleNamespace(main=None), SlurmConfig(), Herd())
    assert slurm.slurm_(launcher, nodes=2, tasks_per_node=2)._slurm == SlurmConfig(nodes=2, tasks_per_node=2)
    with pytest.raises(UserError, match='launcher.slurm: gpu'):
        slurm.slurm_(launcher, gpu=2)


def test_the_last_dependent_comes_back(executor, monkeypatch):
    sent = []
    monkeypatch.setattr(submitit.SlurmExecutor, 'submit', lambda self, *args: sent.append(args) or 'job')
    made = executor(**CPU, dependents=2)
    for index in range(3):
        if index:
            made.update_parameters(additional_parameters={'dependency': f'afternotok:{index}'})
        assert made.submit('target', b'main', ['a=1'], False, False) == 'job'
    assert [args[3] for args in sent] == [False, False, True]
    assert '#SBATCH --kill-on-invalid-dep=yes\n' in made._make_submission_file_text('true', 'uid')


def test_a_job_comes_back_before_the_xp_is_entered():
    target = slurm.Target()
    assert target.checkpoint(b'main', ['a=1'], True, False).args == (b'main', ['a=1'], True, False)
    with pytest.raises(SystemExit) as ended:
        target.checkpoint(b'main', ['a=1'], False, False)
    assert ended.value.code == 1


@pytest.mark.parametrize('signal_name, executor_name, job, comes_back', [
    ('SIGUSR2', 'slurm', '12', True), ('SIGUSR1', 'slurm', '12', True), ('SIGTERM', 'slurm', '12', False),
    ('SIGINT', 'slurm', '12', False), ('SIGUSR2', 'local', '12', False), ('SIGUSR2', 'slurm', None, False),
    ('SIGUSR2', 'slurm', '12; x', False), ('SIGUSR2', None, '12', False),
])
def test_requeue_after_save(monkeypatch, signal_name, executor_name, job, comes_back):
    for name, value in (('SUBMITIT_EXECUTOR', executor_name), ('SLURM_JOB_ID', job)):
        if value is not None:
            monkeypatch.setenv(name, value)
    calls = []
    requeue_after_save(signal_name, {'SIGUSR2': lambda number, frame: calls.append(number), 'SIGUSR1': signal.SIG_DFL})
    assert calls == ([signal.SIGUSR2] if comes_back else [])
    requeue_after_save(signal_name, {'SIGUSR2': signal.SIG_DFL})
    requeue_after_save(signal_name, {})


def test_the_handler_of_submitit(monkeypatch, tmp_path):
    """What `requeue_after_save` calls asks for a requeue and ends the process."""
    monkeypatch.setenv('SUBMITIT_EXECUTOR', 'slurm')
    monkeypatch.setenv('SLURM_JOB_ID', '12')
    asked_for = []
    environment = types.SimpleNamespace(global_rank=0, _requeue=asked_for.append)
    delayed = submitit.core.utils.DelayedSubmission(slurm.Target(), b'main', [], True, False)
    delayed.set_timeout(60, 5)
    handler = SignalHandler(environment, types.SimpleNamespace(submitted_pickle=tmp_path / 'job.pkl'), delayed)
    with pytest.raises(SystemExit):
        requeue_after_save('SIGUSR1', {'SIGUSR2': handler.checkpoint_and_try_requeue})
    assert asked_for == [5] and (tmp_path / 'job.pkl').exists()


def test_ids_and_cancel(monkeypatch):
    assert slurm.checked_ids(['12', '12_3']) == ['12', '12_3']
    with pytest.raises(UserError, match='is not the id of a SLURM job'):
        slurm.checked_ids(['12', '--user=root'])
    answers = []
    monkeypatch.setattr(slurm.sp, 'run', lambda command, **_: sp.CompletedProcess(command, 1, '', answers[-1]))
    jobs = [types.SimpleNamespace(job_id='12')]
    answers.append('scancel: error: Kill job error on job id 12: Invalid job id specified\n')
    slurm.cancel(None, jobs)
    answers.append('scancel: error: slurm_kill_job2() failed Unable to contact slurm controller\n')
    with pytest.raises(UserError, match='scancel failed: .*Unable to contact'):
        slurm.cancel(None, jobs)


def test_installed():
    dora_compat.install()
    assert dora.shep._SubmitItTarget is slurm.Target and Launcher.slurm_ is slurm.slurm_
    for name in ('maybe_submit_lazy', '_get_submitit_executor'):
        assert getattr(Shepherd, name).__module__ == slurm.__name__
