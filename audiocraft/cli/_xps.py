"""The XPs that there are, newest first: what `xps` prints, and `info` when it is not told which one."""

import difflib
import os
import time
import typing as tp
from dataclasses import asdict, dataclass
from pathlib import Path

from ..environment import AudioCraftEnvironment, resolve_path
from ..utils.errors import UserError
from ..utils.secrets import hide
from ..utils.status import read_json, read_status

LIMIT = 50  # XPs that are shown when not all are asked for
_LIVE = ('metrics.jsonl', 'solver.log.0', 'history.json', 'status.json', '.argv.json')  # what tells when it last moved


@dataclass(frozen=True)
class Row:
    """One XP.

    Args:
        sig, folder (str): its signature and where it is.
        state (str): `running`, `finished`, `stopped`, `failed`, `dead`; `-` when no status was written.
        epoch, epochs (int): epochs so far, and how many there will be (0: nobody knows).
        best (dict or None): `metric`, `score`, `update` and `epoch` of the best state.
        changed (float): when its log, metrics or history was last written to, in seconds since 1970.
        overrides (list of str): what it was started with.
    """
    sig: str
    folder: str
    state: str
    epoch: int
    epochs: int
    best: dict[str, tp.Any] | None
    changed: float
    overrides: list[str]

    def has(self, words: tp.Sequence[str]) -> bool:
        """Whether each of the words is in the signature or the overrides."""
        text = ' '.join([self.sig, *self.overrides])
        return all(word in text for word in words)

    def cells(self, now: float) -> list[str]:
        """The texts of its line; those of a column get the same width."""
        best = self.best and f'{self.best.get("metric")} {self.best["score"]:.4g} (epoch {self.best.get("epoch")})'
        epochs = f'{self.epoch}/{self.epochs} epochs' if self.epochs else f'{self.epoch} epochs'
        return [self.sig, self.state, f'{age(now - self.changed)} ago', best or '-', epochs,
                ' '.join(self.overrides)]


def age(seconds: float) -> str:
    """A time that has passed in its largest unit: `5 s`, `12 min`, `3 h`, `40 d`."""
    for unit, size in (('d', 86400), ('h', 3600), ('min', 60)):
        if seconds >= 2 * size:
            return f'{seconds / size:.0f} {unit}'
    return f'{max(seconds, 0.):.0f} s'


def xps_root() -> Path:
    """The folder of all XPs."""
    return AudioCraftEnvironment.get_dora_dir() / 'xps'


def _list_of_json(path: Path) -> list[tp.Any]:
    content = read_json(path)
    return content if isinstance(content, list) else []


def overrides_of(folder: Path) -> list[str]:
    """The overrides of an XP, secrets hidden."""
    return [hide(str(override)) for override in _list_of_json(folder / '.argv.json')]


def history_of(folder: Path) -> list[dict[str, tp.Any]]:
    """The stages of each epoch of an XP; empty when there is no history or it is damaged."""
    return [epoch if isinstance(epoch, dict) else {} for epoch in _list_of_json(folder / 'history.json')]


def last_change(folder: Path) -> float:
    """When an XP last wrote its log, metrics or history, in seconds since 1970; 0 when it never did."""
    times = [0.]
    for name in _LIVE:
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times)


def _row(folder: Path, changed: float) -> Row:
    status = read_status(folder) or {'state': '-', 'epoch': len(history_of(folder)), 'epochs': 0, 'best': None}
    return Row(sig=folder.name, folder=str(folder), changed=changed, overrides=overrides_of(folder),
               **{key: status[key] for key in ('state', 'epoch', 'epochs', 'best')})


def find_rows(words: tp.Sequence[str] = (), state: str | None = None) -> tp.Iterator[Row]:
    """The XPs with these words and in this state, the one that moved last first."""
    try:
        folders = [Path(entry.path) for entry in os.scandir(xps_root())]
    except OSError:
        return
    changed = {folder: last_change(folder) for folder in folders if (folder / '.argv.json').exists()}
    for folder in sorted(changed, key=lambda folder: changed[folder], reverse=True):
        row = _row(folder, changed[folder])
        if row.has(words) and state in (None, row.state):
            yield row


def list_xps(words: tp.Sequence[str] = (), state: str | None = None, limit: int | None = LIMIT) -> str:
    """One line per XP: signature, state, when it last moved, its best score, epochs, overrides."""
    rows = list(find_rows(words, state))
    if not rows:
        return f'No XPs in {xps_root()} ' + ('are like this.' if words or state else 'yet.')
    now = time.time()
    lines = [f'XPs in {xps_root()}:', *table([row.cells(now) for row in rows[:limit]], right=(2, 4))]
    if limit is not None and len(rows) > limit:
        lines.append(f'  ... and {len(rows) - limit} older ones (xps --all).')
    return '\n'.join(lines)


def as_plain(rows: tp.Iterable[Row]) -> list[dict[str, tp.Any]]:
    """The same as plain values, for tools."""
    return [asdict(row) for row in rows]


def table(rows: tp.Sequence[tp.Sequence[str]], right: tp.Collection[int] = ()) -> list[str]:
    """Lines with the cells of each column below each other; the columns in `right` are flush on that side."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return ['  ' + '  '.join(cell.rjust(width) if column in right else cell.ljust(width)
                             for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]


def find_xp(word: str) -> Path:
    """The folder of an XP from its signature, `//sig/SIG` or the folder itself.

    Raises:
        UserError: there is none; signatures that are alike are named.
    """
    root = xps_root()
    if word.startswith('//'):
        return resolve_path(word)
    if word not in ('', '.', '..') and '/' not in word and (root / word).is_dir():
        return root / word
    if word and (Path(word) / '.argv.json').exists():
        return Path(word).absolute()
    known = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    hint = f' Did you mean {" or ".join(close)}?' if close else ''
    raise UserError(f'There is no XP "{word}" in {root}.{hint} `python -m audiocraft xps` lists them.')
