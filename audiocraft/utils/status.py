"""`status.json` in the folder of an XP: how far its run is, for those who look from outside."""
import json
import logging
import os
import socket
import time
import typing as tp
from pathlib import Path

from . import lock
from .files import write_atomic
from .logging import jsonable

logger = logging.getLogger(__name__)

NAME = 'status.json'
STATES = ('running', 'finished', 'stopped', 'failed')
DEAD = 'dead'  # read, never written: it says that it is running, and its process is no more


def write_status(folder: str | Path, *, state: str, epoch: int, epochs: int, update: int,
                 best: tp.Mapping[str, tp.Any] | None, world_size: int, **more: tp.Any) -> None:
    """Write how far a run is; one process does. Where it cannot be written there is a log line, and the run goes on.

    Args:
        folder (Path): of the XP.
        state (str): one of `STATES`.
        epoch, epochs (int): the epoch that is going on, or the last one; how many there will be.
        update (int): updates that are done.
        best (dict or None): `metric`, `score`, `update` and `epoch` of the best state.
        world_size (int): how many processes train.
        more: further plain values.
    """
    if state not in STATES:
        raise ValueError(f'The state of a run is one of {", ".join(STATES)}, not {state!r}.')
    content = {'state': state, 'epoch': epoch, 'epochs': epochs, 'update': update, 'best': best,
               'world_size': world_size, **more, 'host': socket.gethostname(), 'pid': os.getpid(), 'time': time.time()}
    try:
        write_atomic(Path(folder) / NAME, json.dumps(jsonable(content), indent=2, allow_nan=False))
    except OSError as error:
        logger.warning('%s could not be written: %s', Path(folder) / NAME, error)


def read_json(path: Path) -> tp.Any:
    """The content of a JSON file, None when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None


def read_status(folder: str | Path) -> dict[str, tp.Any] | None:
    """Return what `write_status` wrote, None when there is nothing that can be read.

    The state is `dead` when it says `running` and its process, on this machine, was killed.
    """
    content = read_json(Path(folder) / NAME)
    if not isinstance(content, dict) or content.get('state') not in STATES:
        return None
    for key in ('epoch', 'epochs', 'update'):
        content[key] = content[key] if type(content.get(key)) is int else 0
    best = content.get('best')
    content['best'] = best if isinstance(best, dict) and isinstance(best.get('score'), (int, float)) else None
    if content['state'] == 'running' and _is_dead(Path(folder), content):
        content['state'] = DEAD
    return content


def _is_dead(folder: Path, content: tp.Mapping[str, tp.Any]) -> bool:
    pid = content.get('pid')
    if content.get('host') != socket.gethostname() or type(pid) is not int or _is_alive(pid):
        return False
    try:
        return lock.holder(folder) is None
    except OSError:
        return False


def _is_alive(pid: int) -> bool:
    """Whether there is a process with this id; where that cannot be asked without harm (Windows), say yes."""
    if os.name != 'posix' or pid <= 0:
        return pid > 0
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it belongs to somebody else
    return True
