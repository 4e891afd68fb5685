"""A real SLURM cluster on this machine alone, for tests: several nodes, GPUs that do nothing, accounting.

    python tests/integ/slurm_cluster.py up DIR [--nodes 4]     # as root; what is up already stays as it is
    export SLURM_CONF=DIR/etc/slurm.conf                       # all that SLURM's commands need
    python tests/integ/slurm_cluster.py status DIR
    python tests/integ/slurm_cluster.py down DIR               # cancels its jobs; leaves DIR/log

`with Cluster(folder) as cluster:` is the same from Python. The daemons belong to the folder, which holds their pid
files: two clusters in two folders do not see each other. `setup.sh` installs the packages.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess as sp
import sys
import time
import typing as tp
from pathlib import Path

COMMANDS = ('munged', 'slurmctld', 'slurmd', 'squeue', 'slurmdbd', 'mariadbd')  # what setup.sh has to install
PARTITION, URGENT = 'learnlab', 'high'  # the default one, and the one whose jobs send those of the default away
SQL = Path('/usr/share/mysql')
SYSTEM_TABLES = ('mysql_system_tables.sql', 'mysql_performance_tables.sql', 'mysql_system_tables_data.sql')

# `cred_expire` is also how long a job that is requeued waits. No cgroups and no systemd: a container has neither. The
# declared size of the nodes is believed, so that a small machine holds them all.
CONFIG = """ClusterName=test
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket,cred_expire=5
CredType=cred/munge
{binding}
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/run/slurmctld.pid
SlurmdPidFile={dir}/run/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
PropagateResourceLimits=NONE
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={dbd_port}
AccountingStoragePass={dir}/munge/socket
AccountingStorageTRES=gres/gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
KillWait=5
MessageTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
{nodes}
PartitionName={partition} Nodes=ALL Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName={urgent} Nodes=ALL DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""
ACCOUNTING = """AuthType=auth/munge
AuthInfo=socket={dir}/munge/socket
DbdHost={host}
DbdAddr={address}
DbdPort={dbd_port}
SlurmUser=root
LogFile={dir}/log/slurmdbd.log
PidFile={dir}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=accounting
"""


class ClusterError(RuntimeError):
    """The cluster cannot be brought up here: what is missing, or the end of the log of what failed."""


def until(condition: tp.Callable[[], tp.Any], seconds: float, what: str) -> tp.Any:
    """The first true value of a condition; `ClusterError` when it stays false for so long."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise ClusterError(f'{what}: not within {seconds:.0f} s')
        time.sleep(0.1)
    return value


def free_ports(count: int) -> int:
    """The first of some consecutive ports that nobody uses, below those that the system gives to others by itself."""
    for first in random.sample(range(10000, 20000, 20), 100):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(('', port))
            return first
    raise ClusterError('There are no free ports.')


class Cluster:
    """The cluster of a folder.

    Args:
        folder (Path): holds all that belongs to it; at most 80 characters (it has sockets), without blanks.
        nodes (int): virtual nodes `vn1`, `vn2`...
        gpus, cpus, memory (int): of each node, in MB; declared, not real.
    """

    def __init__(self, folder: Path, nodes: int = 4, gpus: int = 8, cpus: int = 128, memory: int = 1_000_000):
        self.folder = Path(folder).resolve()
        self.nodes = [f'vn{index + 1}' for index in range(nodes)]
        self.gpus, self.cpus, self.memory = gpus, cpus, memory
        self.host = socket.gethostname().split('.')[0]
        self.config = self.folder / 'etc' / 'slurm.conf'
        self._hosts_tag = f'# test cluster {self.folder}'

    def __enter__(self) -> 'Cluster':
        self.up()
        return self

    def __exit__(self, *exc_info: tp.Any) -> None:
        self.down()

    # -- commands ----------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that its commands and daemons need."""
        return {'SLURM_CONF': str(self.config), 'PATH': f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'}

    def _environment(self) -> dict[str, str]:
        outer = {name: value for name, value in os.environ.items() if not name.startswith('SLURM_')}
        return outer | self.variables

    def ask(self, *command: str, check: bool = True) -> str:
        """What a command of SLURM prints, stripped; with `check`, `ClusterError` when it fails."""
        try:
            done = sp.run(command, env=self._environment(), text=True, capture_output=True, timeout=30)
        except sp.TimeoutExpired as error:
            if check:
                raise ClusterError(f'{" ".join(command)}: no answer') from error
            return ''
        if done.returncode and check:
            raise ClusterError(f'{" ".join(command)}: {done.stderr.strip()}')
        return done.stdout.strip() if not done.returncode else ''

    def _start(self, name: str, *command: str, stdin: str = '', **variables: str) -> None:
        """Run a daemon's command, which returns once the daemon is in the background."""
        log = self.folder / 'log' / f'{name}.err'
        with log.open('a') as file:
            done = sp.run(command, env=self._environment() | variables, input=stdin, text=True, stdout=file,
                          stderr=sp.STDOUT, timeout=120)
        if done.returncode:
            raise ClusterError(f'{command[0]} ended with {done.returncode}')

    # -- daemons -----------------------------------------------------------------------------------------------------

    def _pid_file(self, name: str) -> Path:
        return self.folder / 'run' / f'{name}.pid'

    def pid(self, name: str) -> int | None:
        """The process of a daemon (`munged`, `slurmd-vn1`...), None when it is not there.

        A number in a file may be anybody's by now: the program and its SLURM_CONF have to be the right ones.
        """
        with contextlib.suppress(OSError, ValueError):
            pid = int(self._pid_file(name).read_text())
            program = Path(os.readlink(f'/proc/{pid}/exe').removesuffix(' (deleted)')).name.removesuffix('-wlm')
            if program == name.split('-')[0] and f'SLURM_CONF={self.config}' in variables_of(pid):
                return pid
        return None

    @property
    def daemons(self) -> list[str]:
        """Names in the order in which they start."""
        return ['munged', 'mariadbd', 'slurmdbd', 'slurmctld', *(f'slurmd-{node}' for node in self.nodes)]

    def up(self) -> None:
        """Start what is not running, and wait for the nodes. When that fails nothing is left but the logs."""
        self._check()
        try:
            if self.pid('slurmctld') is None:
                self._end()
                self._write_files()
            self._write_hosts(f'127.0.0.1 {" ".join(self.nodes)} {self._hosts_tag}')
            for name in self.daemons:
                if self.pid(name) is None:
                    getattr(self, '_start_' + name.split('-')[0])(*name.split('-')[1:])
            until(self.is_up, 60, 'the nodes are idle')
        except BaseException as error:
            tails = self._tails()
            self._end()
            if isinstance(error, (ClusterError, sp.SubprocessError, OSError)):
                raise ClusterError(f'The cluster did not come up: {error}\n{tails}') from error
            raise

    def is_up(self) -> bool:
        """Whether all daemons run and all nodes can take jobs."""
        if any(self.pid(name) is None for name in self.daemons):
            return False
        states = self.ask('sinfo', '-h', '-N', '-p', PARTITION, '-o', '%N %t', check=False).splitlines()
        usable = {node for node, state in (line.split() for line in states) if state in ('idle', 'mix', 'alloc')}
        return usable == set(self.nodes)

    def _check(self) -> None:
        missing = [name for name in COMMANDS if shutil.which(name, path=self.variables['PATH']) is None]
        if missing:
            raise ClusterError(f'{", ".join(missing)}: not found; "sh tests/integ/setup.sh" installs what is missing.')
        if os.geteuid() != 0:
            raise ClusterError('The cluster needs root: its daemons start jobs as their users.')
        if len(str(self.folder)) > 80 or any(mark in str(self.folder) for mark in ' \t,'):
            raise ClusterError(f'{self.folder}: 80 characters at most, please, and no blanks.')

    def _tails(self) -> str:
        logs = sorted((self.folder / 'log').glob('*'))
        return '\n'.join(f'{path.name}: {line}' for path in logs
                         for line in path.read_text(errors='replace').splitlines()[-5:])

    def _start_munged(self) -> None:
        key, pid = self.folder / 'munge' / 'key', self._pid_file('munged')
        self._start('munged', 'munged', '--force', f'--key-file={key}', f'--socket={self.folder}/munge/socket',
                    f'--pid-file={pid}', f'--log-file={self.folder}/log/munged.log', f'--seed-file={key}.seed')
        until(lambda: self.ask('munge', '-S', f'{self.folder}/munge/socket', '-n', check=False), 20, 'munged answers')

    def _start_mariadbd(self) -> None:
        data = self.folder / 'db'
        options = ['mariadbd', '--no-defaults', '--user=root', f'--datadir={data}', f'--tmpdir={self.folder}/tmp',
                   f'--lc-messages-dir={SQL}', '--innodb-log-file-size=16M', '--innodb-buffer-pool-size=64M',
                   '--innodb-flush-log-at-trx-commit=0', '--innodb-use-native-aio=0']
        # The package's own command for this needs a program of another package.
        tables = ['create database mysql;', 'use mysql;', 'set @auth_root_socket=null;', 'set @skip_auth_anonymous=1;',
                  *((SQL / name).read_text() for name in SYSTEM_TABLES)]
        if not (data / 'mysql').exists():
            self._start('mariadbd', *options, '--bootstrap', stdin='\n'.join(tables))
        self._start('mariadbd', 'setsid', '--fork', *options, f'--socket={self.folder}/run/db', '--skip-networking',
                    f'--pid-file={self._pid_file("mariadbd")}', '--innodb-lock-wait-timeout=900')
        until(lambda: self.pid('mariadbd') and (self.folder / 'run' / 'db').exists(), 60, 'mariadbd is there')

    def _start_slurmdbd(self) -> None:
        self._start('slurmdbd', 'slurmdbd', MYSQL_UNIX_PORT=f'{self.folder}/run/db',
                    MARIADB_UNIX_PORT=f'{self.folder}/run/db')
        until(lambda: self.pid('slurmdbd') and self._knows_cluster(), 60, 'slurmdbd answers')

    def _knows_cluster(self) -> bool:
        listed = self.ask('sacctmgr', '-n', 'list', 'cluster', 'test', 'format=cluster', check=False)
        return bool(listed or self.ask('sacctmgr', '-i', 'add', 'cluster', 'test', check=False))

    def _start_slurmctld(self) -> None:
        self._start('slurmctld', 'slurmctld', '-i')
        until(lambda: 'UP' in self.ask('scontrol', 'ping', check=False), 60, 'slurmctld answers')

    def _start_slurmd(self, node: str) -> None:
        self._start(f'slurmd-{node}', 'slurmd', '-N', node)

    # -- files -------------------------------------------------------------------------------------------------------

    def _write_files(self) -> None:
        for name in ('etc', 'run', 'log', 'state', 'munge', 'db', 'tmp', 'dev', *(f'spool/{n}' for n in self.nodes)):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in (self.folder, self.folder / 'munge'):
            path.chmod(0o755)
        # The daemons listen where the name of the machine leads, or everywhere: then nobody without the key is heard.
        address = socket.gethostbyname(socket.gethostname())
        inner = address.startswith('127.')
        first = free_ports(len(self.nodes) + 2)
        fields = {'dir': self.folder, 'host': self.host, 'port': first, 'dbd_port': first + 1,
                  'address': address if inner else '127.0.0.1', 'partition': PARTITION, 'urgent': URGENT,
                  'binding': 'CommunicationParameters=NoInAddrAny,NoCtldInAddrAny' if inner else ''}
        gres = f' Gres=gpu:{self.gpus}' if self.gpus else ''
        nodes = '\n'.join(f'NodeName={node} NodeHostname={self.host} NodeAddr={fields["address"]} Port={port} '
                          f'CPUs={self.cpus} RealMemory={self.memory}{gres}'
                          for port, node in enumerate(self.nodes, start=first + 2))
        etc = self.folder / 'etc'
        self.config.write_text(CONFIG.format(nodes=nodes, **fields))
        # With any other plugin slurmd looks for cgroups or for systemd.
        (etc / 'cgroup.conf').write_text('CgroupPlugin=cgroup/v1\n')
        (etc / 'slurmdbd.conf').write_text(ACCOUNTING.format(**fields))
        (etc / 'slurmdbd.conf').chmod(0o600)
        (etc / 'gres.conf').write_text(self._fake_gpus())
        key = self.folder / 'munge' / 'key'
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))

    def _fake_gpus(self) -> str:
        """SLURM wants a device file for each GPU, no two the same; links to the same one are welcome."""
        if not self.gpus:
            return ''
        for index in range(self.gpus):
            (self.folder / 'dev' / f'gpu{index}').symlink_to('/dev/null')
        return (f'AutoDetect=off\nNodeName=vn[1-{len(self.nodes)}] Name=gpu '
                f'File={self.folder}/dev/gpu[0-{self.gpus - 1}]\n')

    def _write_hosts(self, line: str = '') -> None:
        """Jobs look each other up by the names of the nodes. In place: in a container this file cannot be replaced."""
        hosts = Path('/etc/hosts')
        old = hosts.read_text()
        kept = [entry for entry in old.splitlines() if not entry.endswith(self._hosts_tag)]
        new = '\n'.join([*kept, *([line] if line else [])]) + '\n'
        if new != old:
            hosts.write_text(new)

    # -- the end -----------------------------------------------------------------------------------------------------

    def jobs(self) -> list[str]:
        """Ids of all jobs that are not over."""
        return sorted(set(self.ask('squeue', '-h', '-o', '%A', check=False).split()))

    def down(self) -> None:
        """Cancel the jobs, end the daemons, remove all but the logs. Does nothing where nothing is."""
        if self.pid('slurmctld') is not None and (jobs := self.jobs()):
            self.ask('scancel', *jobs, check=False)
            with contextlib.suppress(ClusterError):
                until(lambda: not self.jobs(), 20, 'the jobs end')
        self._end()

    def _end(self) -> None:
        """End what runs, in the opposite order, and remove the files."""
        pid_files = sorted((self.folder / 'run').glob('slurmd-*.pid'))
        self._stop([path.stem for path in pid_files])
        for pid in self._left_by_jobs():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in ('slurmctld', 'slurmdbd', 'mariadbd', 'munged'):
            self._stop([name])
        self._write_hosts()
        for path in self.folder.glob('*') if self.folder.is_dir() else []:
            if path.name in ('etc', 'run', 'state', 'spool', 'munge', 'db', 'tmp', 'dev'):
                shutil.rmtree(path)

    def _stop(self, names: list[str]) -> None:
        """TERM, and KILL for what is still there after a while."""
        for number, seconds in ((signal.SIGTERM, 20.), (signal.SIGKILL, 10.)):
            for pid in filter(None, map(self.pid, names)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(ClusterError):
                until(lambda: not any(map(self.pid, names)), seconds, 'they end')

    def _left_by_jobs(self) -> list[int]:
        """Processes of this cluster's jobs, which outlive a daemon that was killed."""
        found = []
        for entry in Path('/proc').glob('[0-9]*'):
            with contextlib.suppress(OSError):
                own = variables_of(int(entry.name))
                steps = Path(os.readlink(entry / 'exe')).name.startswith('slurmstepd')
                in_job = steps or any(variable.startswith('SLURM_JOB_ID=') for variable in own)
                if f'SLURM_CONF={self.config}' in own and in_job:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid()]


def variables_of(pid: int) -> list[str]:
    """The environment with which a process was started, as NAME=VALUE."""
    return Path(f'/proc/{pid}/environ').read_bytes().decode(errors='replace').split('\0')


def main() -> int:
    parser = argparse.ArgumentParser(description='A SLURM cluster on this machine, for tests.')
    parser.add_argument('action', choices=('up', 'down', 'status'))
    parser.add_argument('folder', type=Path, metavar='DIR')
    parser.add_argument('--nodes', type=int, default=4)
    args = parser.parse_args()
    cluster = Cluster(args.folder, args.nodes)
    try:
        if args.action != 'status':
            getattr(cluster, args.action)()
    except ClusterError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    if args.action == 'down':
        return 0
    for name in cluster.daemons:
        print(f'{name}: {cluster.pid(name) or "not running"}')
    print(f'export SLURM_CONF={cluster.config}')
    return 0 if cluster.is_up() else 3


if __name__ == '__main__':
    sys.exit(main())
