"""Jobs that are scheduled on this machine: what they need, what they inherit, and where Dora finds them."""

import json
import os
import subprocess as sp
import types

import dora.git_save
import dora.launch
import pytest
from dora.conf import SlurmConfig, SubmitRules
from dora.shep import Sheep, Shepherd

from audiocraft import dora_compat, train
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.launch import local, slurm
from audiocraft.launch.runner import Keeper, Queue
from audiocraft.utils.errors import UserError


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Our main, with XPs of its own, and nobody who starts jobs."""
    dora_compat.install()
    monkeypatch.setattr(train.main.dora, 'dir', tmp_path / 'out')
    monkeypatch.setattr(Queue, 'wake', lambda self: None)
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: 0)
    team(monkeypatch, tmp_path, launcher='local', local_workers=2)
    return train.main


def team(monkeypatch, folder, **settings):
    (folder / 'team.yaml').write_text(json.dumps({'default': {'dora_dir': str(folder / 'out'), **settings}}))
    monkeypatch.setenv('AUDIOCRAFT_CONFIG', str(folder / 'team.yaml'))
    AudioCraftEnvironment.reset()


def schedule(main, *arrays, rules=None):
    """Schedule job arrays, each a list of overrides and its SLURM settings; returns their sheep."""
    said = []
    shepherd = Shepherd(main, said.append)
    sheep = []
    for argvs, settings in arrays:
        with shepherd.job_array(config := main.get_slurm_config()):
            vars(config).update(settings)
            for argv in argvs:
                sheep.append(shepherd.get_sheep_from_argv(['solver=mmaudio/debug', *argv]))
                shepherd.maybe_submit_lazy(sheep[-1], config, rules or SubmitRules())
    shepherd.commit()
    return sheep, said


def finish(sheep, state='COMPLETED'):
    sheep.job.queue.write(sheep.job.job_id, 'end', state=state, status=0)


def test_a_job_is_found_again(main):
    (first, second), said = schedule(main, ([['seed=1'], ['seed=2']], {'gpus': 0}))
    assert (first.job.job_id, second.job.job_id) == ('L1', 'L2') and 'Scheduled job L1' in said[0]
    again = Shepherd(main).get_sheep_from_sig(first.xp.sig)
    assert (again.job.job_id, again.state(), again.is_done()) == ('L1', 'PENDING', False)
    assert Shepherd(main).get_sheep_from_job_id('L2').xp.sig == second.xp.sig
    assert again.log == first.xp.folder / 'latest' / 'L1_0_log.out'
    assert not first._job_file.exists()
    record = first.job.queue.read('L1', 'json')
    assert record['command'][1:] == ['-m', 'dora', '-P', 'audiocraft', '--main_module', 'train', 'run', '--',
                                     'solver=mmaudio/debug', 'seed=1']
    assert record['cwd'] == os.getcwd() and record['capacity'] == 2


def test_what_is_there_is_not_scheduled_again(main):
    (sheep,), _ = schedule(main, ([[]], {}))
    for state in ('PENDING', 'COMPLETED', 'FAILED', 'CANCELLED'):
        if state != 'PENDING':
            finish(sheep, state)
        (again,), _ = schedule(main, ([[]], {}))
        assert again.job.job_id == 'L1' and again.state() == state
    (again,), _ = schedule(main, ([[]], {}), rules=SubmitRules(retry=True))
    assert again.job.job_id == 'L2' == Sheep(again.xp).job.job_id


def test_a_job_that_is_replaced_has_gone_before(main):
    (first,), _ = schedule(main, ([[]], {}))
    (second,), _ = schedule(main, ([[]], {}), rules=SubmitRules(replace=True))
    assert first.job.state == 'CANCELLED' and second.job.job_id == 'L2'


@pytest.mark.parametrize('content', ['{"jo', '[]', '{"job_id": "12", "array_job_ids": []}',
                                     '{"job_id": "../L1", "launcher": "local"}', '{"job_id": 1, "launcher": "local"}'])
def test_other_jobs_are_none_of_ours(main, content):
    xp = main.init_xp(main.get_xp(['solver=mmaudio/debug']))
    (xp.folder / 'job.json').write_text(content)
    assert Sheep(xp).job is None


@pytest.mark.parametrize('settings, devices, expected', [
    ({'gpus': 0}, [], (0, 1)), ({'gpus': 1}, [], (0, 1)), ({'gpus': 8}, [], (0, 8)),
    ({'gpus': 0, 'tasks_per_node': 3}, [], (0, 3)), ({'gpus': 0, 'nodes': 2, 'tasks_per_node': 3}, [], (0, 6)),
    ({'gpus': 2}, ['0', '1'], (2, 2)), ({'gpus': 0}, ['0', '1'], (0, 1)),
])
def test_what_a_job_needs(settings, devices, expected):
    config = SlurmConfig()
    vars(config).update(settings)
    assert local.needs(config, devices) == expected


def test_more_gpus_than_there_are(main, monkeypatch):
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: 2)
    with pytest.raises(UserError, match='slurm.gpus=4: this machine has 2'):
        schedule(main, ([['seed=1']], {'gpus': 2}), ([['seed=2']], {'gpus': 4}))
    assert not (main.dora.dir / 'local').exists(), 'nothing is scheduled when one of them cannot be'


def test_visible_gpus(monkeypatch):
    monkeypatch.setattr(local.torch.cuda, 'device_count', lambda: 2)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert local.visible_gpus() == ['0', '1']
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3,5')
    assert local.visible_gpus() == ['3', '5']


def test_several_workers_and_too_many(main):
    (few, many), said = schedule(main, ([['seed=1']], {'gpus': 2}), ([['seed=2']], {'gpus': 3}))
    command = many.job.queue.read('L2', 'json')['command']
    assert command[command.index('run') + 1:][:4] == ['-d', '--ddp_workers', '3', '--']
    assert any('3 workers where 2 may run' in line for line in said)
    assert not any('2 workers' in line and few.xp.sig in line for line in said)


def test_what_a_job_inherits(main, monkeypatch):
    monkeypatch.setenv('RANK', '3')
    monkeypatch.setenv('MY_TOKEN', 'hidden')
    monkeypatch.setenv('HELLO', 'there')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    env = local.environment(main, gpus=0)
    assert env['HELLO'] == 'there' and env['OMP_NUM_THREADS'] == '1'
    assert env['AUDIOCRAFT_DORA_DIR'] == str(main.dora.dir)
    assert 'RANK' not in env and 'MY_TOKEN' not in env
    assert 'OMP_NUM_THREADS' not in local.environment(main, gpus=1)
    monkeypatch.setenv('OMP_NUM_THREADS', '4')
    assert local.environment(main, gpus=0)['OMP_NUM_THREADS'] == '4'


def test_cancel_both_kinds(main, monkeypatch):
    (sheep,), _ = schedule(main, ([[]], {}))
    shepherd, calls = Shepherd(main), []
    monkeypatch.setattr(slurm.sp, 'run', lambda command, **_: calls.append(command) or sp.CompletedProcess(
        command, 0, '', ''))
    shepherd._cancel([sheep.job, types.SimpleNamespace(job_id='17')])
    assert sheep.job.state == 'CANCELLED' and calls == [['scancel', '17']]

    def missing(*args, **kwargs):
        raise FileNotFoundError('scancel')
    monkeypatch.setattr(slurm.sp, 'run', missing)
    shepherd._cancel([sheep.job])
    with pytest.raises(UserError, match='scancel'):
        shepherd._cancel([types.SimpleNamespace(job_id='17')])


def test_clear_waits_until_the_job_is_gone(main, monkeypatch):
    (sheep,), _ = schedule(main, ([[]], {}))
    queue, looks = sheep.job.queue, []

    def is_done(job):
        looks.append(queue.path(job, 'cancel').exists())
        return len(looks) > 4
    monkeypatch.setattr(Queue, 'is_done', lambda self, job: is_done(job))
    dora.launch.reliable_rmtree(sheep.xp.folder)
    assert looks[-1] and len(looks) == 5 and not sheep.xp.folder.exists()


def test_a_job_does_not_warn_of_itself(main, monkeypatch, capsys):
    (sheep,), _ = schedule(main, ([[]], {}))
    dora.run.check_job_and_clear(sheep.xp.argv, main)
    assert 'L1' in capsys.readouterr().err
    monkeypatch.setenv(local.JOB_VARIABLE, 'L1')
    dora.run.check_job_and_clear(sheep.xp.argv, main)
    assert capsys.readouterr().err == ''


def test_a_job_knows_its_id(main):
    (sheep,), _ = schedule(main, ([[]], {}))
    assert Keeper(sheep.job.queue, 'L1', [])._environment()[local.JOB_VARIABLE] == 'L1'
    assert not local.inside_job()


def test_git_save_without_a_repository(main, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    with pytest.raises(UserError, match='not a git repository') as caught:
        dora.git_save.get_new_clone(main)
    assert '\n' not in str(caught.value)


def test_git_save_runs_the_clone(main, tmp_path, monkeypatch):
    repository = tmp_path / 'code'
    repository.mkdir()
    monkeypatch.chdir(repository)
    (repository / 'file').touch()
    for arguments in (['init', '-q'], ['add', '.'],
                      ['-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-q', '-m', 'x']):
        sp.run(['git', *arguments], check=True)
    monkeypatch.setattr(main.dora, 'git_save', True)
    (sheep,), _ = schedule(main, ([[]], {}))
    record = sheep.job.queue.read('L1', 'json')
    assert record['cwd'].startswith(str(main.dora.dir / 'codes'))
    assert record['env']['_DORA_ORIGINAL_DIR'] == str(repository) and (sheep.xp.folder / 'code' / 'file').exists()
    assert os.getcwd() == str(repository)


# -- which launcher -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script, launcher', [
    (None, 'local'), ('echo main\necho gpu', 'slurm'), ('exit 0', 'local'), ('echo main; exit 1', 'local'),
])
def test_launcher_by_what_answers(monkeypatch, tmp_path, script, launcher):
    monkeypatch.setenv('PATH', str(tmp_path) + (':/bin:/usr/bin' if script else ''))
    if script:
        (tmp_path / 'sinfo').write_text(f'#!/bin/sh\n{script}\n')
        (tmp_path / 'sinfo').chmod(0o755)
    team(monkeypatch, tmp_path)
    assert AudioCraftEnvironment.get_launcher() == launcher


def test_launcher_of_the_team(monkeypatch, tmp_path):
    for launcher in ('local', 'slurm'):
        team(monkeypatch, tmp_path, launcher=launcher, local_workers=3)
        assert AudioCraftEnvironment.get_launcher() == launcher and local.capacity() == 3
    team(monkeypatch, tmp_path, launcher='pbs', local_workers=0)
    with pytest.raises(UserError, match="default.launcher.*'pbs', expected auto, local or slurm"):
        AudioCraftEnvironment.get_launcher()
    with pytest.raises(UserError, match='default.local_workers.* 0, expected a whole number'):
        local.capacity()
    team(monkeypatch, tmp_path)
    assert local.capacity() >= 1


def test_a_cluster_that_does_not_answer(monkeypatch, tmp_path):
    from audiocraft import environment

    def late(*args, **kwargs):
        raise sp.TimeoutExpired('sinfo', 5.)
    monkeypatch.setattr(environment.sp, 'run', late)
    team(monkeypatch, tmp_path)
    assert AudioCraftEnvironment.get_launcher() == 'local'
