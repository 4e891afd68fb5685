"""Commands to a run that is going on, typed in its terminal or sent by `python -m audiocraft control SIG COMMAND`."""

import difflib
import json
import logging
import math
import queue
import re
import threading
import typing as tp
from dataclasses import dataclass, replace
from pathlib import Path

from ..utils import terminal
from ..utils.errors import UserError
from ..utils.mailbox import Mailbox

logger = logging.getLogger(__name__)

COMMANDS = {
    'save': 'write a checkpoint',
    'quit': 'save and end; the same command line goes on from there',
    'lr': 'say the learning rate; "lr 1e-4" sets it from now on',
    'eval': 'evaluate the weights of now',
    'export': 'write the weights of now to `exports/<update>` in the folder of the XP',
    'time': 'say how far the run is and when it will end',
    'help': 'say this',
}
_LONGEST = 200  # characters
_NUMBER = re.compile(r'[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?')
_UPDATE = re.compile(r'[0-9]{1,15}')


def usage() -> str:
    """The commands, one line each."""
    lines = [f'  {name.ljust(7)} {text}' for name, text in COMMANDS.items()]
    return '\n'.join(['Commands:', *lines, '  ...@N   any of them, once N updates are done: save@5000, lr 1e-4@2000'])


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        name (str): one of `COMMANDS`.
        value (float or None): the learning rate of `lr X`.
        update (int or None): how many updates are done before it is due; None: now.
        text (str): the command as people write it.
        sender (str): id of the message that it came in; empty when it was typed.
    """
    name: str
    value: float | None
    update: int | None
    text: str
    sender: str = ''


def _shown(text: str) -> str:
    """A text of unknown origin for a message: short, and without control characters."""
    text = ' '.join(text[:_LONGEST].split())
    return json.dumps(text if len(text) <= 40 else f'{text[:40]}...')


def parse(text: str) -> Command:
    """Read one command: `NAME`, `lr X`, and either with `@UPDATE` behind it.

    Raises:
        UserError: it is none; the message is one line.
    """
    words, at, when = text.strip().partition('@')
    name, *values = words.split() or ['']
    name = name.lower()
    if name not in COMMANDS or len(text) > _LONGEST:
        close = difflib.get_close_matches(name[:20], COMMANDS, n=1)
        hint = f': did you mean "{close[0]}"?' if close else '.'
        raise UserError(f'There is no command {_shown(text)}{hint} The commands are {", ".join(COMMANDS)}, '
                        'and each with @UPDATE, like save@5000.')
    if at and not _UPDATE.fullmatch(when.strip()):
        raise UserError(f'{_shown(text)}: expected the number of an update after @, like {name}@5000.')
    if values and (name != 'lr' or len(values) > 1):
        raise UserError(f'{_shown(text)}: {"expected one number, like lr 1e-4" if name == "lr" else "takes no value"}.')
    value = _rate(values[0], text) if values else None
    update = int(when) if at else None
    written = ' '.join([name, *values]) + (f'@{update}' if at else '')
    return Command(name, value, update, written)


def _rate(word: str, text: str) -> float:
    value = float(word) if _NUMBER.fullmatch(word) else math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f'{_shown(text)}: a learning rate is a finite number above 0, like lr 1e-4.')
    return value


class Control:
    """Collects commands on one process, and keeps on all of them those that are due later.

    `poll` gives what has come as self-contained texts; they are sent to all processes, and `accept` makes the same
    commands of them everywhere. Nothing that is typed or sent raises.

    Args:
        folder (Path): of the XP.
        listen (bool): whether this process takes commands and answers them; one does.
    """

    def __init__(self, folder: str | Path, listen: bool) -> None:
        self.listen = listen
        self.pending: list[Command] = []  # by update, then by arrival
        self._mailbox = Mailbox(folder)
        self._typed: queue.Queue[str] = queue.Queue(maxsize=100)
        self._stop = threading.Event()
        self._reader: threading.Thread | None = None

    # -- listening ---------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin to listen; commands that were sent before are dropped."""
        if not self.listen:
            return
        self._mailbox.clear()
        if terminal.has_input():
            self._stop.clear()
            self._reader = threading.Thread(target=self._read_lines, name='commands', daemon=True)
            self._reader.start()

    def close(self) -> None:
        """Listen no more; who sent a command too late is told."""
        if not self.listen:
            return
        self._stop.set()
        self._lines()  # the reader may wait for room
        if self._reader is not None:
            self._reader.join(timeout=1.)
            self._reader = None
        self._mailbox.clear('the run has stopped')

    def __enter__(self) -> 'Control':
        self.open()
        return self

    def __exit__(self, *exc_info: tp.Any) -> None:
        self.close()

    def _read_lines(self) -> None:
        try:
            for line in terminal.lines_of_terminal(self._stop):
                self._typed.put(line[:_LONGEST + 1])
        except (OSError, ValueError) as error:
            logger.debug('No more commands from the terminal: %s', error)

    def poll(self) -> list[str]:
        """What was typed or sent since the last call; for `accept` on all processes. Cheap, to be called often."""
        if not self.listen:
            return []
        typed = [('', line) for line in self._lines() if line.strip()]
        return [json.dumps(pair) for pair in [*typed, *self._mailbox.take()]]

    def _lines(self) -> list[str]:
        return [self._typed.get() for _ in range(self._typed.qsize())]

    # -- the same on all processes -----------------------------------------------------------------------------------

    def accept(self, texts: tp.Sequence[str], update: int) -> list[Command]:
        """Return the commands that are due now, in order: those that waited for this update, then the new ones.

        `help` is answered here, and so is what is no command.

        Args:
            texts (list of str): what `poll` returned on the listening process.
            update (int): how many updates are done.
        """
        due = [command for command in self.pending if _update_of(command) <= update]
        self.pending = self.pending[len(due):]
        for text in texts:
            command = self._understand(text, update)
            if command is not None and (command.update is None or command.update == update):
                due.append(command)
            elif command is not None:
                self._file(command)
        for command in due:
            if command.name == 'help':
                self.answer(command, usage())
        return [command for command in due if command.name != 'help']

    def _understand(self, text: str, update: int) -> Command | None:
        """The command of a text of `poll`; None, once that is answered, when there is none or it comes too late."""
        sender, line = json.loads(text)
        try:
            command = replace(parse(line), sender=sender)
        except UserError as error:
            self.answer(Command('', None, None, _shown(line), sender), f'error: {error}')
            return None
        if command.update is not None and command.update < update:
            self.answer(command, f'error: update {command.update} is past, {update} updates are done.')
            return None
        return command

    def _file(self, command: Command) -> None:
        self.answer(command, f'noted, for when {command.update} updates are done')
        self.pending.append(replace(command, sender=''))  # by then its sender no longer waits
        self.pending.sort(key=_update_of)

    def due(self, update: int) -> bool:
        """Whether a command waited for this update; all processes agree."""
        return bool(self.pending) and _update_of(self.pending[0]) <= update

    def answer(self, command: Command, text: str) -> None:
        """Say what became of a command, in the log and to whoever sent it; a refusal begins with `error: `."""
        if not self.listen:
            return
        logger.info('> %s: %s', command.text, text)
        if command.sender:
            self._mailbox.answer(command.sender, text)

    def state_dict(self) -> list[str]:
        """Return the commands that wait for their update, as texts."""
        return [command.text for command in self.pending]

    def load_state_dict(self, state: tp.Sequence[str]) -> None:
        """Wait for the commands that `state_dict` returned."""
        self.pending = sorted((parse(text) for text in state), key=_update_of)


def _update_of(command: Command) -> int:
    return command.update or 0
