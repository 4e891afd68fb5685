"""What holds for all tests: no network, few threads, and nothing written to the user's folders."""

import os
import socket
import typing as tp

os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['WANDB_MODE'] = 'offline'

import pytest

_connect = socket.socket.connect
_LOOPBACK = ('127.', '::1', 'localhost')


def _guarded(self: socket.socket, address: tp.Any) -> None:
    inet = self.family in (socket.AF_INET, socket.AF_INET6)
    if inet and not str(address[0]).startswith(_LOOPBACK):
        raise RuntimeError(f'Tests may not use the network, yet one connects to {address[0]}.')
    _connect(self, address)


@pytest.fixture(autouse=True, scope='session')
def no_network() -> tp.Iterator[None]:
    """Refuse connections other than to this machine."""
    socket.socket.connect = _guarded  # type: ignore[method-assign]
    yield
    socket.socket.connect = _connect  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send XPs to a temporary folder, whatever the variables of the person who runs the tests."""
    for name in ('TEAM', 'CLUSTER', 'CONFIG', 'REFERENCE_DIR', 'WEIGHTS'):
        monkeypatch.delenv(f'AUDIOCRAFT_{name}', raising=False)
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path_factory.mktemp('dora')))
    from audiocraft.environment import AudioCraftEnvironment
    AudioCraftEnvironment.reset()


# Reasons for a skip that are fine on the machine that checks everything.
_FINE = ('GPU', 'CUDA')


def pytest_terminal_summary(terminalreporter: tp.Any, exitstatus: int, config: pytest.Config) -> None:
    """With AUDIOCRAFT_CI=1 a test that is skipped because something is missing counts as failed."""
    if not os.environ.get('AUDIOCRAFT_CI'):
        return
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get('skipped', [])
               if isinstance(report.longrepr, tuple)]
    missing = sorted({reason for reason in reasons if not any(word in reason for word in _FINE)})
    if missing:
        terminalreporter.write_line('failed, since these tests were skipped: ' + '; '.join(missing), red=True)
        terminalreporter._session.exitstatus = pytest.ExitCode.TESTS_FAILED
