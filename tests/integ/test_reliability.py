"""Real processes, real faults, nothing lost: after each fault the same command goes on, and ends as if nothing was.

What is compared is all that a training leaves (see `chain.outcome`), bit for bit, and for each update that was ever
done, in whatever process: which items it read and which weights it made. docs/RELIABILITY.md lists the faults.
"""

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from audiocraft.utils.checkpoint import VERSION, list_checkpoints, load_latest
from audiocraft.utils.errors import HUNG

from .chain import differences
from .faults import EPOCH, SAVE_EVERY, UPDATES, Project

pytestmark = [pytest.mark.integ, pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs the signals of POSIX')]

FIXTURES = Path(__file__).resolve().parents[1] / 'solvers' / 'fixtures'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp('faults'))


@pytest.fixture(scope='module')
def one(project):
    """A training that nothing happens to, started as users do."""
    project.run('one', fresh=True)
    return 'one'


@pytest.fixture(scope='module')
def two(project):
    """The same on two ranks."""
    project.run('two', ranks=2)
    return 'two'


@pytest.fixture
def case(request):
    """A name for what a test does."""
    return re.sub(r'\W+', '_', request.node.name)


def updates(project, case, rank=0):
    """Update to what was read and made there; whenever it was done again, it was the same."""
    found: dict[int, dict] = {}
    for line in project.trace(case, rank):
        assert found.setdefault(line['update'], line)['ids'] == line['ids']
        assert found[line['update']]['weights'] == line['weights']
    return {update: (line['ids'], line['weights']) for update, line in found.items()}


def assert_same(project, case, reference, ranks=1):
    assert differences(project.outcome(case), project.outcome(reference)) == []
    for rank in range(ranks):
        assert updates(project, case, rank) == updates(project, reference, rank)
    assert not list((project.folder_of(case) / 'checkpoints').glob('.t*')), 'nothing is left of the faults'


def assert_gone(project, case, ranks):
    """No process of the case is left."""
    for pid in {line['pid'] for rank in range(ranks) for line in project.trace(case, rank)}:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def newest(project, case):
    """The newest checkpoint."""
    found = load_latest(project.folder_of(case) / 'checkpoints', set_aside=False)
    assert found is not None
    return found


def copy_of(project, reference, case, until):
    """An XP that has come to a checkpoint and has all the earlier ones."""
    source = project.folder_of(reference)
    target = project.folder / case / 'xps' / source.name
    shutil.copytree(source, target)
    for path in list_checkpoints(target / 'checkpoints'):
        if int(path.name) > until:
            shutil.rmtree(path)
    return target / 'checkpoints'


# -- ended from outside ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(3))
def test_kill_9_while_a_checkpoint_is_written(project, one, case, seed):
    row = project.kill_while_saving(case, seed)
    assert row.done - row.came_back <= 2 * SAVE_EVERY, 'one that is being written, and the one that waits for it'
    assert_same(project, case, one)


STOPS = {'SIGTERM': 143, 'SIGUSR1': 0, 'SIGUSR2': 0, 'SIGHUP': 0, 'SIGINT': 130}


def test_signals_at_random_updates(project, one, case):
    """TERM, USR1, USR2, HUP and Ctrl-C: each stops at the update it came in, which is saved."""
    places = sorted(random.Random(1).sample(range(1, UPDATES - 1), len(STOPS)))
    for (name, status), place in zip(STOPS.items(), places):
        done = project.run(case, fault=f'{name}@{place}', code=status)
        assert f'Stopped by {name} after update {place + 1}, which is saved' in done.said
        assert f'"update": {place + 1}' in (project.folder_of(case) / 'status.json').read_text()
    assert project.run(case).came_back == places[-1] + 1
    assert_same(project, case, one)


def test_signals_on_two_ranks(project, two, case):
    """One rank gets the signal, and both stop at the same update; the first time under `dora run -d`."""
    places = sorted(random.Random(2).sample(range(1, UPDATES - 1), 3))
    for (name, status), place, rank in zip(STOPS.items(), places, (1, 0, 1)):
        project.run(case, fault=f'{name}@{place}/{rank}', code=status, ranks=2, fresh=name == 'SIGTERM')
        assert [max(updates(project, case, rank)) for rank in range(2)] == [place, place]
        last = newest(project, case)
        assert (last.update, sorted(last.rank_states)) == (place + 1, [0, 1])
    assert project.run(case, ranks=2).came_back == places[-1] + 1
    assert_same(project, case, two, ranks=2)
    assert_gone(project, case, 2)


def test_two_ranks_then_one_then_two(project, case):
    """Another number of ranks: the same items in the same order; weights as far as sums in another order agree."""
    project.run(f'{case}_whole', 'model.dropout=0.')
    for ranks, place in ((2, 7), (1, 16), (2, None)):
        fault = '' if place is None else f'SIGUSR1@{place}'
        done = project.run(case, 'model.dropout=0.', fault=fault, ranks=ranks)
    assert done.came_back == 17
    ids, whole = ({update: ids for update, (ids, _) in updates(project, name).items()}
                  for name in (case, f'{case}_whole'))
    assert ids == whole and len(ids) == UPDATES
    a, b = newest(project, case), newest(project, f'{case}_whole')
    assert a.state['objects']['seen'] == b.state['objects']['seen']
    for kind in ('model', 'ema', 'best'):
        for key, tensor in a.models[kind].items():
            torch.testing.assert_close(tensor, b.models[kind][key], rtol=1e-4, atol=1e-5)


def test_ctrl_c_twice_and_two_starts_on_one_xp(project, one, case):
    """A second start and `--clear` are refused while a run goes on; Ctrl-C twice ends it at once."""
    running = project.start(case, fault='sleep@8')
    sleeps = project.folder / case / 'xps' / project.folder_of(one).name / 'sleeps'
    running.wait_until(sleeps.exists)
    second, clear = project.run(case, code=1), project.run(case, flags=['--clear'], code=1)
    for refused in (second, clear):
        assert f'process {running.pid} on ' in refused.error and len(refused.error.splitlines()) == 1
    assert 'is already running' in second.error and 'stop it before --clear' in clear.error
    os.kill(running.pid, signal.SIGINT)
    running.wait_until(lambda: 'once more to end at once' in running.log.read_text())
    os.kill(running.pid, signal.SIGINT)
    assert running.finish().status == -signal.SIGINT
    assert project.run(case).came_back == 6, 'the last checkpoint before the update that did not end'
    assert_same(project, case, one)


# -- damaged files -----------------------------------------------------------------------------------------------------

def tear(folder):
    path = folder / 'state.pt'
    os.truncate(path, path.stat().st_size // 2)
    return path


def lose(folder):
    (folder / 'ema.safetensors').unlink()
    return folder / 'ema.safetensors'


def flip(folder):
    path = folder / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
    return path


def test_damaged_checkpoints_are_set_aside(project, one, case):
    """A torn, a missing and a flipped file in the three newest checkpoints: the fourth is used."""
    folder = copy_of(project, one, case, until=21)
    newest = list_checkpoints(folder)[:-4:-1]
    damaged = [damage(path) for damage, path in zip((tear, lose, flip), newest)]
    done = project.run(case)
    assert done.came_back == 15 and [int(path.name) for path in newest] == [21, 20, 18]
    for path, file in zip(newest, damaged):
        assert f'Damaged checkpoint: {file}: ' in done.said and path.with_name(f'{path.name}.corrupt').is_dir()
    assert_same(project, case, one)


def test_nothing_whole_is_refused(project, one, case):
    """All checkpoints are damaged: it never starts from scratch, not even at the next try."""
    folder = copy_of(project, one, case, until=6)
    for path in list_checkpoints(folder):
        tear(path)
    for _ in range(2):
        error = project.run(case, code=1).error
        assert f'There are checkpoints in {folder} but none is whole' in error and '--clear' in error
    assert project.run(case, flags=['--clear']).came_back == 0
    assert_same(project, case, one)


def test_a_newer_format_is_refused(project, one, case):
    folder = copy_of(project, one, case, until=6)
    commit = list_checkpoints(folder)[-1] / 'COMMIT'
    commit.write_text(commit.read_text().replace('"version": 1', '"version": 1000'))
    error = project.run(case, code=1).error
    assert f'{commit.parent} was written by a newer version of audiocraft (format 1000' in error
    assert commit.exists(), 'it is not set aside'
    commit.write_text(commit.read_text().replace('"version": 1000', '"version": 1'))
    assert project.run(case).came_back == 6
    assert_same(project, case, one)


def test_a_folder_that_cannot_be_written(project, one, case):
    """A file stands where the folder of the checkpoints should be (permissions do not hold for root)."""
    folder = project.folder / case / 'xps' / project.folder_of(one).name / 'checkpoints'
    folder.parent.mkdir(parents=True)
    folder.touch()
    error = project.run(case, code=1).error
    assert f'Cannot write the checkpoint {folder / "3"}: ' in error and 'mend the permissions' in error
    folder.unlink()
    assert project.run(case).came_back == 0
    assert_same(project, case, one)


@pytest.mark.parametrize('asynchronous', ['true', 'false'])
def test_a_full_disk(project, one, case, asynchronous):
    """There is room for the weights but not for the rest, then not even for the weights."""
    for limit, file in ((60_000, 'state.pt'), (20_000, 'weights')):
        done = project.run(case, f'checkpoint.asynchronous={asynchronous}', fault='disk@13', limit=limit, code=1)
        assert 'Cannot write the checkpoint ' in done.error and 'File too large' in done.error, file
        assert len(done.error.splitlines()) == 1 and 'The earlier checkpoints are untouched' in done.error
        names = [path.name for path in (project.folder_of(case) / 'checkpoints').iterdir()]
        assert sorted(names, key=int) == ['3', '6', '9', '10', '12']
    assert project.run(case, f'checkpoint.asynchronous={asynchronous}').came_back == 12
    assert_same(project, case, one)


# -- faults within -----------------------------------------------------------------------------------------------------

def test_out_of_memory(project, one, case):
    error = project.run(case, fault='memory@13', code=1).error
    assert 'Out of memory: CUDA out of memory. Tried to allocate 20.00 GiB.' in error
    assert 'optim.accumulate=2' in error and 'activation_checkpointing=true' in error
    assert project.run(case).came_back == 12
    assert_same(project, case, one)


def test_a_reading_thread_ends(project, one, case):
    done = project.run(case, fault='thread@13', code=1)
    assert 'train: the threads that read batches have died; batch ' in done.said
    assert 13 < project.run(case).came_back + SAVE_EVERY
    assert_same(project, case, one)


def test_a_process_of_a_dataloader_is_killed(project, one, case):
    """By -9, in the second valid stage."""
    workers = 'dataset.valid.num_workers=1'
    error = project.run(case, workers, fault=f'worker@{2 * EPOCH}', code=1).error
    assert 'A process that reads data is gone: DataLoader worker (pid' in error and 'dataset.num_workers' in error
    assert project.run(case, workers).came_back == 18
    assert_same(project, case, one)


def test_losses_that_are_not_finite_on_one_rank(project, case):
    """Both ranks skip the same updates; too many in a row stop the run, with the ids; then it goes on."""
    done = project.run(case, 'max_skipped=3', fault='nan@4/1,nan@14-/1', ranks=2, fresh=True, code=1)
    made = [updates(project, case, rank) for rank in range(2)]
    assert made[0] == made[1], 'the same weights on both ranks, after each update'
    weights = {update: weights for update, (_, weights) in made[0].items()}
    assert weights[4] == weights[3] and weights[5] != weights[4] and weights[13] == weights[14] == weights[16]
    assert max(weights) == 16
    ids = made[0][16][0]
    assert '3 updates in a row were skipped, up to update 17' in done.error and all(name in done.error for name in ids)
    assert 'Update 5 was skipped' in done.said
    history = json.loads((project.folder_of(case) / 'history.json').read_text())
    assert history[0]['train']['skipped'] == pytest.approx(1 / EPOCH)
    done = project.run(case, 'max_skipped=3', ranks=2)
    assert done.came_back == 15, 'the last checkpoint'
    assert newest(project, case).state['objects']['updater']['skipped'] == 2
    assert_gone(project, case, 2)


def test_a_rank_that_sleeps(project, two, case):
    """The other rank waits for it; the watchdog says where each of them is, and ends both."""
    done = project.run(case, 'watchdog.timeout=5', fault='sleep@13/1', ranks=2, fresh=True, code=HUNG)
    stacks = [(project.folder_of(case) / f'stacks.{rank}.log').read_text() for rank in range(2)]
    assert 'faults.py' in stacks[1] and 'in sleep' in stacks[1] and 'in sleep' not in stacks[0]
    for rank, text in enumerate(stacks):
        assert f'Rank {rank}: nothing has moved for 5 s' in text and 'in run_step' in text
    assert 'nothing has moved for 5 s' in done.said
    assert_gone(project, case, 2)
    assert project.run(case, ranks=2).came_back == 12
    assert_same(project, case, two, ranks=2)


def test_a_rank_that_fails(project, two, case):
    """The others end as well, and the error that is shown is the first one."""
    done = project.run(case, fault='error@13/1', ranks=2, fresh=True, code=1)
    before, report = done.said.split('Worker 1 failed (exit status 1). The end of its log')
    assert 'ValueError: rank 1 cannot go on' in report and 'Error' not in before
    assert_gone(project, case, 2)
    assert project.run(case, ranks=2).came_back == 12
    assert_same(project, case, two, ranks=2)


# -- what stays as it was ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('version', range(1, VERSION + 1))
def test_checkpoints_of_each_format_are_read(project, case, version):
    """One of 13 updates that this format's code wrote goes on, with the losses that it had then."""
    stored = FIXTURES / f'checkpoint_v{version}'
    project.run(case, 'show=true', solver='plain')
    shutil.copytree(stored / '13', project.folder_of(case) / 'checkpoints' / '13')
    # Keys that solvers got since then are no reason to refuse it here.
    done = project.run(case, 'allow_config_change=true', solver='plain')
    assert done.came_back == 13 and f'Finished: 3 epochs, {UPDATES} updates' in done.said
    expected = json.loads((stored / 'losses.json').read_text())
    assert project.losses(case) == pytest.approx(expected[13:], rel=1e-3)


CURVE = ['seed=7', 'optim.epochs=5', 'optim.updates_per_epoch=20', 'evaluate.every=0', 'generate.every=0']


@pytest.fixture(scope='module')
def curves(project):
    """The losses of 100 updates, of a training on a store and of one on a DataLoader."""
    for solver in ('fragile', 'plain'):
        project.run(f'curve_{solver}', *CURVE, solver=solver)
    return {solver: project.losses(f'curve_{solver}') for solver in ('fragile', 'plain')}


def test_the_loss_curve_is_the_stored_one(curves):
    stored = json.loads((FIXTURES / 'curves.json').read_text())
    for solver, losses in curves.items():
        assert len(losses) == 100 and losses == pytest.approx(stored[solver], rel=1e-2)
        assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


@pytest.mark.parametrize('solver, override', [
    ('fragile', 'dataset.num_workers=3'), ('plain', 'dataset.num_workers=2'), ('fragile', 'logging.log_updates=0'),
    ('fragile', 'checkpoint.save_every=7'), ('fragile', 'checkpoint.asynchronous=false'),
    ('fragile', 'watchdog.timeout=null')])
def test_the_loss_curve_does_not_depend_on(project, curves, case, solver, override):
    project.run(case, *CURVE, override, solver=solver)
    assert project.losses(case) == curves[solver], 'to the bit'
