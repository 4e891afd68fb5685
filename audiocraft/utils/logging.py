"""What a run says: lines on the terminal and in a file, a progress bar, and numbers for machines."""

import json
import logging
import math
import re
import sys
import time
import typing as tp
from pathlib import Path

from .files import write_atomic
from .secrets import hide

FORMAT = '[%(asctime)s][%(name)s][%(levelname)s] - %(message)s'
_ESCAPES = re.compile(r'\x1b\[[0-9;?]*[A-Za-z]')
_NOISY = ('matplotlib', 'PIL', 'urllib3', 'fsspec', 'git')
_CLEAR = '\r\x1b[K'
_handlers: list[logging.Handler] = []  # those of the last `setup_logging`
_bars: set[int] = set()  # the bars that are drawn now; a log line has to wipe them first


class SafeFormatter(logging.Formatter):
    """Formatter that shows no secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line with `***` in the place of passwords and the like."""
        return hide(super().format(record))


class PlainFormatter(SafeFormatter):
    """Formatter for files: no colours or other escape codes either, whoever put them into the message."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without escape codes."""
        return _ESCAPES.sub('', super().format(record))


class TerminalHandler(logging.StreamHandler):
    """Writes to stderr, after wiping a progress bar that stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        if _bars:
            self.stream.write(_CLEAR)
        super().emit(record)


def setup_logging(folder: str | Path, name: str = 'solver.log.0', level: str | int = 'INFO') -> Path:
    """Log everything to the terminal and to `<folder>/<name>`, which is appended to.

    Calling it again replaces the handlers of the call before. Returns the path of the file.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    for old in _handlers:
        root.removeHandler(old)
        old.close()
    terminal, file = TerminalHandler(sys.stderr), logging.FileHandler(path, encoding='utf-8')
    terminal.setFormatter(SafeFormatter(FORMAT, datefmt='%m-%d %H:%M:%S'))
    file.setFormatter(PlainFormatter(FORMAT))
    _handlers[:] = [terminal, file]
    for handler in _handlers:
        root.addHandler(handler)
    root.setLevel(level.upper() if isinstance(level, str) else level)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    return path


def jsonable(value: tp.Any) -> tp.Any:
    """Return metrics as strict JSON data: tensors and numpy numbers become numbers, non-finite ones None."""
    if isinstance(value, tp.Mapping):
        return {str(key): jsonable(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(part) for part in value]
    if hasattr(value, 'item'):
        value = value.item() if getattr(value, 'size', None) == 1 or not getattr(value, 'ndim', 0) else value.tolist()
        return jsonable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, appended. A last line that a kill cut short is skipped on reading."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, **entry: tp.Any) -> None:
        """Add one entry; non-finite numbers become null."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(jsonable(entry), allow_nan=False) + '\n')

    def read(self) -> list[dict[str, tp.Any]]:
        """Return all whole entries."""
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text(encoding='utf-8', errors='replace').splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                entries.append(entry)
        return entries

    def keep(self, wanted: tp.Callable[[dict[str, tp.Any]], bool]) -> None:
        """Keep the entries that are wanted: a resumed run writes again what came after its checkpoint."""
        if self.path.exists():
            kept = [entry for entry in self.read() if wanted(entry)]
            write_atomic(self.path, ''.join(json.dumps(entry) + '\n' for entry in kept))


def readable_time(seconds: float) -> str:
    """Return `h:mm:ss`, or `?` for what is not known."""
    if not math.isfinite(seconds):
        return '?'
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'


class ProgressLine:
    """Progress of one stage: a line every so many updates, and a bar below them when stderr is a terminal.

    Args:
        logger: where the lines go.
        title (str): start of each line, e.g. `Train | Epoch 2/6`.
        total (int or None): number of steps of the stage, None when it is not known.
        every (int): steps between two lines; 0 writes none.
        start (int): steps that an earlier process did.
        terminal (bool or None): draw a bar; None asks stderr.
        clock: for tests.
    """

    def __init__(self, logger: logging.Logger, title: str, *, total: int | None, every: int = 10, start: int = 0,
                 terminal: bool | None = None, clock: tp.Callable[[], float] = time.perf_counter) -> None:
        self.logger, self.title, self.total, self.every, self.clock = logger, title, total, every, clock
        self.terminal = sys.stderr.isatty() if terminal is None else terminal
        self.done = self._marked = start
        self._begin = self._drawn = clock()
        self._waiting = 0.
        self._speed = math.nan

    def wait(self, iterator: tp.Iterator[tp.Any]) -> tp.Any:
        """Return the next item, and count the time it took as waiting for data."""
        begin = self.clock()
        try:
            return next(iterator)
        finally:
            self._waiting += self.clock() - begin

    def step(self) -> bool:
        """Count one step; True when a line is due (call `line`, since its metrics cost a synchronisation)."""
        self.done += 1
        if self.terminal and self.clock() - self._drawn > 0.2:
            self._draw()
        return bool(self.every) and (self.done % self.every == 0 or self.done == self.total)

    def line(self, metrics: tp.Mapping[str, str]) -> dict[str, float]:
        """Log one line; return speed (steps/s), share of the time spent waiting for data, and seconds left."""
        now = self.clock()
        elapsed = max(now - self._begin, 1e-9)
        self._speed = (self.done - self._marked) / elapsed
        facts = {'speed': self._speed, 'data_wait': self._waiting / elapsed, 'eta': self._eta()}
        parts = [self.title, f'{self.done}/{self.total or "?"}', f'{self._speed:.3g} it/s',
                 f'data {facts["data_wait"]:.0%}', f'eta {readable_time(facts["eta"])}']
        self.logger.info(' | '.join([*parts, *(f'{name} {value}' for name, value in metrics.items())]))
        self._begin, self._marked, self._waiting = now, self.done, 0.
        if self.terminal:
            self._draw()
        return facts

    def _eta(self) -> float:
        if not self.total or not self._speed > 0:
            return math.nan
        return (self.total - self.done) / self._speed

    def _draw(self) -> None:
        self._drawn = self.clock()
        if not self._speed > 0:
            self._speed = (self.done - self._marked) / max(self._drawn - self._begin, 1e-9)
        share = self.done / self.total if self.total else 0.
        filled = int(24 * min(share, 1.))
        sys.stderr.write(f'{_CLEAR}{self.title} [{"#" * filled}{"." * (24 - filled)}] {self.done}/{self.total or "?"} '
                         f'{self._speed:.3g} it/s eta {readable_time(self._eta())}')
        sys.stderr.flush()
        _bars.add(id(self))

    def close(self) -> None:
        """Wipe the bar."""
        if id(self) in _bars:
            _bars.discard(id(self))
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
