"""The queue of this machine, with stand-ins for trainings."""

import json
import os
import signal
import subprocess as sp
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from audiocraft.launch import runner
from audiocraft.launch.runner import Queue, Runner, identity, room_for, run

pytestmark = pytest.mark.skipif(os.name != 'posix', reason='the queue needs POSIX')

linux = pytest.mark.skipif(not Path('/proc/self/stat').exists(), reason='looks into /proc')

WAIT = "import os, time\nopen('began_' + os.environ['AUDIOCRAFT_LOCAL_JOB'], 'w').close()\n" \
       "while not os.path.exists('go'): time.sleep(0.02)\n"
STUBBORN = 'import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n'
GENTLE = "import signal, sys\ndef stop(*args):\n    open('saved', 'w').close(); sys.exit(143)\n" \
         'signal.signal(signal.SIGTERM, stop)\n'


def wait_until(condition, seconds=60):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError('this never happened')


@pytest.fixture
def queue(tmp_path):
    queue = Queue(tmp_path / 'local')
    yield queue
    for job in queue.ids() if queue.folder.exists() else []:
        for pid, who in (queue.read(job, 'start') or {'processes': []})['processes']:
            if identity(pid) == who:
                os.kill(pid, signal.SIGKILL)


def add(queue, code, **changed):
    """Put a job that runs some Python into the queue."""
    here = str(queue.folder.parent)
    record = {'command': [sys.executable, '-S', '-E', '-c', code], 'cwd': here, 'env': {'WORD': 'x'}, 'logs': here,
              'gpus': 0, 'workers': 1, 'devices': [], 'capacity': 2, 'grace': 60.}
    return queue.add({**record, **changed})


def keep(queue, job):
    """What the runner starts for a job."""
    sp.run([sys.executable, '-m', runner.MODULE, str(queue.folder), '--job', job], check=True)


def log(queue, job):
    return (queue.folder.parent / f'{job}_0_log.out').read_text()


def began(queue, job):
    return (queue.folder.parent / f'began_{job}').exists()


def go(queue):
    (queue.folder.parent / 'go').touch()


def test_jobs_end_with_their_states(queue, monkeypatch):
    monkeypatch.setenv('HIDDEN_TOKEN', 'secret')
    jobs = [add(queue, code) for code in (
        "import os; print(os.environ['WORD'], os.environ['HIDDEN_TOKEN'], sorted(os.environ))", 'raise ValueError(1)',
        'raise SystemExit(143)')]
    assert jobs == ['L1', 'L2', 'L3'] == queue.ids()
    assert [queue.state(job) for job in jobs] == ['PENDING'] * 3
    Runner(queue).run()
    assert [queue.state(job) for job in jobs] == ['COMPLETED', 'FAILED', 'CANCELLED']
    assert all(queue.is_done(job) for job in jobs) and queue.unfinished() == {}
    # The secrets of the process that scheduled are handed on by the runner, and are in no file.
    assert log(queue, 'L1').startswith('x secret') and 'PATH' not in log(queue, 'L1')
    assert 'ValueError: 1' in log(queue, 'L2')
    assert queue.state('L9') == 'UNKNOWN' and queue.is_done('L9')
    assert queue.path('L1', 'json').stat().st_mode & 0o077 == 0


def test_a_command_that_is_not_there(queue):
    job = add(queue, '', command=[str(queue.folder / 'nothing')])
    Runner(queue).run()
    assert queue.state(job) == 'FAILED' and 'did not start' in log(queue, job)


def test_a_log_is_appended_to(queue):
    (queue.folder.parent / 'L1_0_log.out').write_text('before\n')
    add(queue, 'print(1)')
    Runner(queue).run()
    assert log(queue, 'L1') == 'before\n1\n'


def test_ids_are_given_once(queue):
    found = []
    threads = [threading.Thread(target=lambda: found.extend(add(queue, '') for _ in range(10))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(queue.ids()) and len(set(found)) == 60
    assert all(queue.read(job, 'json')['capacity'] == 2 for job in found)


def test_as_many_as_there_is_room_for(queue):
    jobs = [add(queue, WAIT) for _ in range(3)]
    runner = Runner(queue)
    assert runner.step()
    wait_until(lambda: began(queue, 'L1') and began(queue, 'L2'))
    for _ in range(3):
        runner.step()
    assert [queue.state(job) for job in jobs] == ['RUNNING', 'RUNNING', 'PENDING']
    go(queue)
    runner.run()
    assert [queue.state(job) for job in jobs] == ['COMPLETED'] * 3


CPU = {'gpus': 0, 'workers': 1, 'capacity': 2, 'devices': []}
LARGE = {**CPU, 'workers': 8}
GPU = {'gpus': 1, 'workers': 1, 'capacity': 2, 'devices': ['0', '3']}


@pytest.mark.parametrize('job, running, room', [
    (CPU, [], []), (CPU, [(CPU, [])], []), (CPU, [(CPU, [])] * 2, None),
    (LARGE, [], []), (LARGE, [(CPU, [])], None), (CPU, [(LARGE, [])], None),
    (GPU, [], ['0']), (GPU, [(GPU, ['0'])], ['3']), (GPU, [(GPU, ['0']), (GPU, ['3'])], None),
    ({**GPU, 'gpus': 2}, [], ['0', '3']), ({**GPU, 'gpus': 2}, [(GPU, ['0'])], None),
    (CPU, [(GPU, ['0'])] * 2, []), (GPU, [(CPU, [])] * 2, ['0']),
])
def test_room(job, running, room):
    assert room_for(job, running) == room


def test_gpus_are_shared_out_and_do_not_hold_up_others(queue):
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])\n" + WAIT
    jobs = [add(queue, code, gpus=gpus, devices=['1', '5']) for gpus in (1, 1, 2, 1, 0)]
    runner = Runner(queue)
    runner.step()
    wait_until(lambda: all(began(queue, job) for job in ('L1', 'L2', 'L5')))
    runner.step()
    assert [queue.state(job) for job in jobs] == ['RUNNING', 'RUNNING', 'PENDING', 'PENDING', 'RUNNING']
    go(queue)
    runner.run()
    assert [log(queue, job).strip() for job in jobs] == ['1', '5', '1,5', '1', '']


def test_a_job_that_waits_is_cancelled_at_once(queue):
    job = add(queue, WAIT)
    queue.cancel(job)
    assert queue.state(job) == 'CANCELLED' and queue.is_done(job)
    Runner(queue).run()
    assert not began(queue, job)


def test_a_job_is_cancelled_while_it_is_started(queue):
    job = add(queue, WAIT)
    queue.cancel(job)
    keep(queue, job)  # the runner had started it just before
    assert queue.state(job) == 'CANCELLED' and not began(queue, job)


def test_a_job_that_runs_may_save(queue):
    job = add(queue, GENTLE + WAIT)
    runner = Runner(queue)
    runner.step()
    wait_until(lambda: began(queue, job))
    queue.cancel(job)
    assert not queue.is_done(job)
    runner.run()
    assert queue.state(job) == 'CANCELLED' and (queue.folder.parent / 'saved').exists()
    assert queue.read(job, 'end')['status'] == 143


@linux
def test_nothing_of_a_job_is_left(queue):
    # A child in a process group of its own, as those of `dora run -d` are.
    child = 'import subprocess, sys\nprint(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], ' \
            'process_group=0).pid, flush=True)\n'
    jobs = [add(queue, STUBBORN + child + WAIT, grace=0.1), add(queue, child)]
    runner = Runner(queue)
    runner.step()
    wait_until(lambda: began(queue, 'L1') and queue.is_done('L2'))
    queue.cancel('L1')
    runner.run()
    assert [queue.state(job) for job in jobs] == ['CANCELLED', 'COMPLETED']
    assert queue.read('L1', 'end')['status'] == -signal.SIGKILL
    wait_until(lambda: all(identity(int(log(queue, job))) is None for job in jobs))


def runners(queue):
    """The processes that run the queue."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        with suppress(OSError):
            if path.read_text().rstrip('\0').endswith(f'{runner.MODULE}\0{queue.folder}'):
                found.append(int(path.parent.name))
    return found


@linux
def test_a_killed_runner_loses_nothing(queue):
    jobs = [add(queue, WAIT, capacity=1) for _ in range(2)]
    queue.wake()
    wait_until(lambda: began(queue, 'L1'))
    queue.wake()
    (pid,) = runners(queue)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not runners(queue))
    assert [queue.state(job) for job in jobs] == ['RUNNING', 'PENDING']
    queue.wake()
    wait_until(lambda: runners(queue))
    go(queue)
    wait_until(lambda: not runners(queue))
    assert [queue.state(job) for job in jobs] == ['COMPLETED', 'COMPLETED']
    assert (queue.folder / 'runner.log').read_text() == ''


@linux
def test_there_is_one_runner(queue):
    job = add(queue, 'pass')
    lock = queue.lock()
    run(queue)  # returns: it is not needed
    queue.wake()
    assert queue.state(job) == 'PENDING' and runners(queue) == []
    lock.close()
    run(queue)
    assert queue.state(job) == 'COMPLETED'


def test_a_job_that_comes_at_the_last_moment(queue, monkeypatch):
    add(queue, 'pass')

    class Late(Runner):
        def run(self):
            super().run()
            if len(queue.ids()) == 1:
                add(queue, 'pass')  # its owner sees the lock and starts no runner
    monkeypatch.setattr(runner, 'Runner', Late)
    run(queue)
    assert queue.state('L2') == 'COMPLETED'


def test_a_killed_keeper(queue):
    job = add(queue, GENTLE + WAIT)
    runner = Runner(queue)
    runner.step()
    wait_until(lambda: began(queue, job))
    (keeper, _), (child, _) = queue.read(job, 'start')['processes']
    os.kill(keeper, signal.SIGKILL)
    wait_until(lambda: identity(keeper) is None)
    assert queue.state(job) == 'RUNNING'
    queue.cancel(job)
    wait_until(lambda: queue.is_done(job))
    assert queue.state(job) == 'CANCELLED' and (queue.folder.parent / 'saved').exists()
    runner.run()


def test_a_job_is_claimed_once(queue):
    job = add(queue, "open('n', 'a').write('x')")
    for _ in range(2):
        keep(queue, job)
    assert (queue.folder.parent / 'n').read_text() == 'x' and queue.state(job) == 'COMPLETED'


def test_a_keeper_that_never_began(queue, monkeypatch):
    job = add(queue, 'pass')
    monkeypatch.setattr(runner, 'MODULE', 'no.such.module')
    Runner(queue).run()
    assert queue.state(job) == 'FAILED'


def test_jobs_of_another_machine_are_left_alone(queue):
    job = add(queue, 'pass')
    path = queue.path(job, 'json')
    path.write_text(json.dumps({**json.loads(path.read_text()), 'host': 'elsewhere'}))
    Runner(queue).run()
    assert queue.state(job) == 'PENDING'
    queue.write(job, 'start', host='elsewhere', processes=[[1, 'x']], devices=[])
    assert queue.state(job) == 'RUNNING'
    queue.cancel(job)
    assert queue.path(job, 'cancel').exists()


def test_identity():
    assert identity(os.getpid()) == identity(os.getpid()) != identity(os.getppid())
    gone = sp.Popen(['true'])
    while gone.poll() is None:
        time.sleep(0.01)
    assert identity(gone.pid) is None


def test_only_the_standard_library_is_imported():
    code = 'import sys; import audiocraft.launch.runner; print(sorted(sys.modules))'
    out = sp.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert not any(f"'{name}'" in out for name in ('torch', 'numpy', 'dora', 'omegaconf', 'hydra'))
