"""The parent of `dora run -d`, with small scripts in place of the workers."""

import os
import signal
import subprocess as sp
import sys
import textwrap
import threading
import time
import types
from pathlib import Path

import pytest

from audiocraft.launch import workers
from audiocraft.launch.workers import Grace
from audiocraft.utils import terminal
from audiocraft.utils.errors import LOST_PEER, UserError

pytestmark = pytest.mark.skipif(not hasattr(os, 'killpg'), reason='needs the signals of POSIX')
ROOT = Path(__file__).resolve().parents[2]
# What the scripts share. `save` is a worker that saves and stops when it is asked to.
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
rank, parent = int(os.environ['RANK']), os.getppid()
Path(f'pid_{rank}').write_text(str(os.getpid()))
def wait_for(*names):
    while not all(Path(name).exists() for name in names):
        time.sleep(0.02)
def save(name='TERM', status=143):
    signal.signal(getattr(signal, 'SIG' + name), lambda *_: (Path(f'saved_{rank}').touch(), sys.exit(status)))
    Path(f'ready_{rank}').touch()
def forever():
    while True:
        time.sleep(0.02)
"""
FOREVER = Grace(stop=300, again=300, failed=300, peer=300)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The folder of the XP, and the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'stdin', None)
    for name in ('MASTER_PORT', 'RANK', 'WORLD_SIZE', terminal.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def command(script):
    return [sys.executable, '-S', '-c', PRELUDE + textwrap.dedent(script)]


def run(script, world_size=2, grace=FOREVER, environments=None):
    """Run workers that are this script, and return the exit status of all."""
    status = workers.run_workers(command(script), environments or workers.environments(world_size), Path('.'), grace)
    for rank in range(world_size):
        assert not is_alive(rank)
    return status


def is_alive(rank):
    path = Path(f'pid_{rank}')
    if not path.exists() or not path.read_text():
        return False
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it never came'
        time.sleep(0.05)


# -- how it ends ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('script, status, said', [
    ('pass', 0, ''),
    ('sys.exit(3 * (rank == 1))', 3, 'Worker 1 failed (exit status 3). The end of its log, worker_1.log:'),
    ('sys.exit(4 * (rank == 0))', 4, 'Worker 0 failed (exit status 4); what it wrote is above.'),
    ('if rank == 1: os.kill(os.getpid(), 9)', 1, 'Worker 1 was killed by SIGKILL (out of memory?). The end of'),
    ('if rank == 1: os.kill(os.getpid(), 11)', 1, 'Worker 1 was killed by SIGSEGV. The end of'),
    # The second one is not the cause, and has its own reasons.
    ("""
     if rank == 1:
         sys.exit(5)
     signal.signal(signal.SIGTERM, lambda *_: sys.exit(6))
     forever()
     """, 5, 'Worker 1 failed (exit status 5)'),
])
def test_status_and_report(script, status, said, capfd):
    assert run(script) == status
    assert said in capfd.readouterr().err


def test_report_shows_the_end_of_this_run_only(capfd):
    script = 'if rank == 1: print(*range(NUMBER), sep=chr(10)); sys.exit(1)'
    assert run(script.replace('NUMBER', '20')) == 1
    assert capfd.readouterr().err.splitlines()[-15:] == [str(number) for number in range(5, 20)]
    assert run(script.replace('NUMBER', '3')) == 1
    assert capfd.readouterr().err.splitlines()[-4:] == [
        '\x1b[1mExecutor:\x1b[0m Worker 1 failed (exit status 1). The end of its log, worker_1.log:', '0', '1', '2']
    log = Path('worker_1.log').read_text()
    assert log.count(f'{sys.executable} -S -c') == 2 and log.startswith('--- 20') and log.count('\n2\n') == 2


def test_others_that_fail_have_one_line(capfd):
    script = """
        if rank == 1:
            wait_for('ready_0', 'ready_2')
            sys.exit(5)
        signal.signal(signal.SIGTERM, lambda *_: (print('mine'), sys.exit(6)))
        Path(f'ready_{rank}').touch()
        forever()
    """
    assert run(script, 3) == 5
    captured = capfd.readouterr()
    assert captured.out == 'mine\n'
    assert 'Worker 2 failed (exit status 6). Its log: worker_2.log' in captured.err
    assert 'Worker 0 failed (exit status 6); what it wrote is above.' in captured.err


@pytest.mark.parametrize('cause', [
    'sys.exit(7)',
    'wait_for("gone"); sys.exit(7)',  # after the one that lost it
])
def test_one_that_lost_another_is_not_the_cause(cause, capfd):
    script = f"""
        if rank == 1:
            {cause}
        Path('gone').touch()
        sys.exit({LOST_PEER})
    """
    assert run(script) == 7
    said = capfd.readouterr().err
    assert 'Worker 1 failed (exit status 7)' in said and 'Worker 0' not in said


def test_lost_with_no_cause(capfd):
    assert run(f'sys.exit({LOST_PEER})') == LOST_PEER
    script = f"""
        if rank == 1:
            save()
            forever()
        wait_for('ready_1')
        sys.exit({LOST_PEER})
    """
    assert run(script, grace=Grace(peer=0.5, failed=300)) == LOST_PEER
    assert Path('saved_1').exists()
    assert f'Worker 0 failed (exit status {LOST_PEER})' in capfd.readouterr().err


def test_failure_ends_one_that_ignores_it(capfd):
    script = """
        if rank == 1:
            wait_for('ready_0')
            sys.exit(8)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path('ready_0').touch()
        forever()
    """
    assert run(script, grace=Grace(failed=0.5)) == 8
    assert 'Killing what did not end in time: worker 0' in capfd.readouterr().err


def test_nothing_is_left_when_a_worker_cannot_start(monkeypatch):
    popen = sp.Popen

    def start(*args, env, **kwargs):
        if env['RANK'] == '1':
            wait_until(lambda: is_alive(0))
            raise OSError('no more processes')
        return popen(*args, env=env, **kwargs)
    monkeypatch.setattr(workers.sp, 'Popen', start)
    with pytest.raises(OSError, match='no more'):
        run('forever()')
    assert not is_alive(0)


# -- signals --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name, status', [('TERM', 143), ('INT', 130), ('HUP', 0), ('USR1', 0), ('USR2', 0)])
def test_signals_go_to_all(name, status, capfd):
    script = f"""
        save({name!r}, {status})
        if rank == 0:
            wait_for('ready_1')
            os.kill(parent, signal.SIG{name})
        forever()
    """
    assert run(script) == status
    assert Path('saved_0').exists() and Path('saved_1').exists()
    assert 'Worker' not in capfd.readouterr().err
    assert signal.getsignal(getattr(signal, f'SIG{name}')) in (signal.SIG_DFL, signal.default_int_handler)


def test_one_that_ignores_a_signal_is_killed(capfd):
    script = """
        if rank == 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                Path('pid_2').write_text(str(os.getpid()))
            else:
                wait_for('pid_2', 'ready_0')
                os.kill(parent, signal.SIGTERM)
            forever()
        save()
        forever()
    """
    assert run(script, grace=Grace(stop=1)) == 143
    assert 'Killing what did not end in time: worker' in capfd.readouterr().err
    wait_until(lambda: not is_alive(2))


def test_second_interrupt(monkeypatch):
    script = """
        times = 0
        def count(*_):
            global times
            times += 1
            Path(f'got_{rank}_{times}').touch()
            if times == 2:
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
        signal.signal(signal.SIGINT, count)
        Path(f'ready_{rank}').touch()
        if rank == 0:
            wait_for('ready_1')
            os.kill(parent, signal.SIGINT)
            wait_for('got_0_1', 'got_1_1')
            os.kill(parent, signal.SIGINT)
        forever()
    """
    limits = []
    monkeypatch.setattr(workers.Group, '_end_within', lambda self, seconds: limits.append(seconds))
    assert run(script, grace=Grace(stop=300, again=200)) == 130
    assert limits == [300, 200]
    assert sorted(path.name for path in Path('.').glob('got_*')) == ['got_0_1', 'got_0_2', 'got_1_1', 'got_1_2']


def test_one_is_asked_alone():
    """All agree to stop; the others still have the time that a stop gives, not that of a failure."""
    script = """
        if rank == 1:
            wait_for('ready_0')
            sys.exit(143)
        save()
        forever()
    """
    assert run(script, grace=Grace(stop=300, failed=0)) == 143
    assert Path('saved_0').exists()


def test_failure_during_a_stop(capfd):
    script = """
        save(status=143 if rank == 0 else 9)
        if rank == 0:
            wait_for('ready_1')
            os.kill(parent, signal.SIGTERM)
        forever()
    """
    assert run(script) == 9
    assert 'Worker 1 failed (exit status 9)' in capfd.readouterr().err


FOLLOWER = f"""
sys.path.insert(0, {str(ROOT)!r})
from audiocraft.launch.parent import follow_parent
"""


class Parent:
    """A parent in a process of its own (a copy of this one, which is there at once), with its workers running.

    Args:
        script (str): what the workers run; each makes a file `ready_RANK`.
        tty (int or None): the terminal that it has, if any.
    """
    def __init__(self, script, world_size=2, tty=None):
        self.pid = os.fork()
        if not self.pid:
            try:
                if tty is not None:
                    take_terminal(tty)
                os._exit(workers.run_workers(command(script), workers.environments(world_size), Path('.'), FOREVER))
            finally:
                os._exit(99)
        try:
            wait_until(lambda: all(Path(f'ready_{rank}').exists() for rank in range(world_size)))
        except AssertionError:
            self.kill()
            raise

    def wait(self):
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def take_terminal(tty):
    """Make it the terminal of this process, and what it reads and writes."""
    import fcntl
    import termios
    os.setsid()
    fcntl.ioctl(tty, termios.TIOCSCTTY, 0)
    for descriptor in range(3):
        os.dup2(tty, descriptor)
    sys.stdin, sys.stderr = open(0), open(2, 'w')


def test_workers_go_when_the_parent_is_killed():
    script = FOLLOWER + """
save()
if rank == 1:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as one that hangs
if rank == 2:
    sys.platform = 'other'  # that says nothing of the death of a parent
follow_parent(grace=0.5, poll=0.1 if rank else 10**6)  # rank 0 has the notice of the system alone
assert 'AUDIOCRAFT_PARENT' not in os.environ
Path(f'follows_{rank}').touch()
forever()
"""
    parent = Parent(script, 3)
    wait_until(lambda: all(Path(f'follows_{rank}').exists() for rank in range(3)))
    parent.kill()
    wait_until(lambda: not any(is_alive(rank) for rank in range(3)))
    assert Path('saved_0').exists() and Path('saved_2').exists() and not Path('saved_1').exists()


def test_parent_that_has_gone_already():
    script = f'{FOLLOWER}follow_parent(); print("goes on")'
    results = [sp.run([sys.executable, '-c', 'import sys' + script], capture_output=True, text=True,
                      env={**os.environ, 'AUDIOCRAFT_PARENT': pid}) for pid in ('1', '', str(os.getpid()))]
    assert [(result.returncode, result.stdout) for result in results] == [
        (143, ''), (0, 'goes on\n'), (0, 'goes on\n')]


# -- a terminal -----------------------------------------------------------------------------------------------------

def test_ctrl_c_of_a_terminal_reaches_workers_once_and_lines_go_to_rank_zero():
    script = """
        times = []
        signal.signal(signal.SIGINT, lambda *_: times.append(1))
        Path(f'ready_{rank}').touch()
        Path(f'typed_{rank}').write_text(sys.stdin.readline() + os.environ.get('AUDIOCRAFT_STDIN', 'none'))
        while not times:
            time.sleep(0.02)
        time.sleep(0.3)
        sys.exit(130 if len(times) == 1 else 9)
    """
    ours, theirs = os.openpty()
    parent = Parent(script, tty=theirs)
    os.write(ours, b'lr 1e-4\n')
    wait_until(lambda: [path.read_text() for path in sorted(Path('.').glob('typed_?'))] == ['lr 1e-4\n1', 'none'])
    os.write(ours, b'\x03')
    assert parent.wait() == 130
    os.close(ours)
    os.close(theirs)


def test_lines_through_a_pipe(monkeypatch):
    monkeypatch.setenv(terminal.VARIABLE, '1')
    script = """
        Path('typed').write_text(sys.stdin.read() if rank == 0 else 'x')
    """
    output, input_ = os.pipe()
    with open(output) as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)
        os.write(input_, b'save\n\nquit@3')
        os.close(input_)
        assert run(script, 1) == 0
    assert Path('typed').read_text() == 'save\n\nquit@3\n'


# -- what workers get -----------------------------------------------------------------------------------------------

def test_environments(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(workers.torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(workers, '_cores', lambda: 7)
    envs = workers.environments(3)
    names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'OMP_NUM_THREADS', 'AUDIOCRAFT_PARENT')
    assert [[env[name] for name in names] for env in envs] == [
        [str(rank), str(rank), '3', '127.0.0.1', '2', str(os.getpid())] for rank in range(3)]
    assert len({env['MASTER_PORT'] for env in envs}) == 1 and 1024 < int(envs[0]['MASTER_PORT']) < 65536
    assert workers.environments(8)[0]['OMP_NUM_THREADS'] == '1'
    monkeypatch.setenv('MASTER_PORT', '12345')
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    assert [workers.environments(1)[0][name] for name in ('MASTER_PORT', 'OMP_NUM_THREADS')] == ['12345', '5']
    monkeypatch.delenv('OMP_NUM_THREADS')
    monkeypatch.setattr(workers.torch.cuda, 'device_count', lambda: 2)
    assert 'OMP_NUM_THREADS' not in workers.environments(2)[0]


@pytest.mark.parametrize('asked, gpus, started, said', [
    (3, 8, 3, 'Starting 3 workers.'), (None, 8, 8, 'Starting 8 workers.'), (None, 0, 2, 'There is no GPU'),
    (0, 4, None, ''), (-1, 0, None, ''),
])
def test_how_many(asked, gpus, started, said, monkeypatch, folder, capsys):
    xp = types.SimpleNamespace(folder=folder / 'xp')
    main = types.SimpleNamespace(package='my_project', main_module='train', get_xp=lambda argv: xp,
                                 init_xp=lambda xp: xp.folder.mkdir())
    ran = []
    monkeypatch.setattr(workers.torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(workers, 'run_workers', lambda *args: ran.append(args) or 3)
    with pytest.raises(UserError if started is None else SystemExit) as raised:
        workers.start_ddp_workers(main, ['solver=x', 'a="b c"'], asked)
    if started is None:
        assert 'at least one' in str(raised.value)
        return
    ((command, envs, where),) = ran
    assert raised.value.code == 3 and len(envs) == started and where.is_dir()
    assert command == [sys.executable, '-m', 'dora', '-P', 'my_project', '--main_module', 'train', 'run', '--',
                       'solver=x', 'a="b c"']
    assert said in capsys.readouterr().err


def test_ctrl_c_before_the_workers(monkeypatch):
    def interrupt(argv):
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as raised:
        workers.start_ddp_workers(types.SimpleNamespace(get_xp=interrupt), [], 2)
    assert raised.value.code == 130


# -- lines of a terminal --------------------------------------------------------------------------------------------

def in_thread(function):
    """Call a function in a thread, since it changes the signals that its thread blocks."""
    result = []
    thread = threading.Thread(target=lambda: result.append(function()), daemon=True)
    thread.start()
    thread.join(120)
    assert result, 'it never ended'
    return result[0]


def test_lines(monkeypatch):
    monkeypatch.setattr(terminal, 'WAIT', 0.05)
    ours, theirs = os.pipe()
    stop = threading.Event()
    with open(ours) as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)
        assert list(terminal.lines_of_terminal(stop)) == [] and not terminal.has_input()
        monkeypatch.setenv(terminal.VARIABLE, '1')
        assert terminal.has_input()
        os.write(theirs, 'save\r\nr\u00e9'.encode()[:-1])
        threading.Timer(0.2, lambda: (os.write(theirs, b'\xa9\nlast'), os.close(theirs))).start()
        assert in_thread(lambda: list(terminal.lines_of_terminal(stop))) == ['save', 'r\u00e9', 'last']


def test_lines_until_stop(monkeypatch):
    monkeypatch.setattr(terminal, 'WAIT', 0.05)
    monkeypatch.setenv(terminal.VARIABLE, '1')
    ours, theirs = os.pipe()
    stop = threading.Event()
    with open(ours) as stdin, open(theirs, 'w'):
        monkeypatch.setattr(sys, 'stdin', stdin)
        threading.Timer(0.2, stop.set).start()
        assert in_thread(lambda: list(terminal.lines_of_terminal(stop))) == []


def test_no_line_in_the_background():
    """A process in the background of a terminal is not stopped by reading; back in front it reads on."""
    script = f"""
        sys.path.insert(0, {str(ROOT)!r})
        import threading
        from audiocraft.utils import terminal
        terminal.WAIT = 0.05
        def read():
            for line in terminal.lines_of_terminal(threading.Event()):
                Path(line).touch()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        os.setpgid(0, 0)
        threading.Thread(target=read, daemon=True).start()
        for beat in range(10**6):
            Path('beat').write_text(str(beat))
            time.sleep(0.02)
            if Path('front').exists():
                os.tcsetpgrp(0, os.getpgrp())
    """
    ours, theirs = os.openpty()
    pid = os.fork()
    if not pid:
        take_terminal(theirs)
        sp.run(command(script), env={**os.environ, 'RANK': '0'})
        os._exit(0)
    try:
        os.write(ours, b'typed\n')
        wait_until(lambda: Path('beat').exists())
        for _ in range(3):
            beat = Path('beat').read_text()
            wait_until(lambda beat=beat: Path('beat').read_text() not in (beat, ''))
        assert not Path('typed').exists()
        Path('front').touch()
        wait_until(lambda: Path('typed').exists())
    finally:
        os.kill(int(Path('pid_0').read_text()), signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(theirs)
        os.close(ours)
