"""From `python -m audiocraft VERB ...` to the module of the verb; nothing heavy is imported before that is known."""

import difflib
import errno
import importlib
import logging
import os
import sys
import typing as tp

from ..utils.errors import UserError
from .overview import overview
from .verbs import DORA_VERBS, all_verbs

# What an operating system refuses for reasons that lie outside of this program.
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR,
           errno.EEXIST, errno.ENAMETOOLONG, errno.EMFILE, errno.EIO)


def _find_verb(word: str) -> str:
    verb, verbs = word.replace('-', '_'), all_verbs()
    if verb in verbs:
        return verb
    close = difflib.get_close_matches(verb, verbs, n=1)
    hint = f': did you mean "{close[0]}"?' if close else '.'
    raise UserError(f'There is no command "{word}"{hint}\nThe commands are {", ".join(verbs)}.')


def _run(verb: str, arguments: list[str]) -> int:
    if verb in DORA_VERBS:
        return importlib.import_module('.forward', __package__).forward(verb, arguments)
    module = importlib.import_module(f'.{verb}', __package__)
    parser = module.parser()
    parser.prog = f'python -m audiocraft {verb}'
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)
    return module.main(args) or 0


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ('-h', '--help', 'help'):
        print(overview())
        return 0
    if argv[0] in ('-V', '--version'):
        from .. import __version__
        print(__version__)
        return 0
    return _run(_find_verb(argv[0]), argv[1:])


def main(argv: tp.Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; wrong use prints what to do, without a traceback."""
    try:
        status = _dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (`... | head`); Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        where = f'{error.filename}: ' if error.filename else ''
        print(f'error: {where}{error.strerror}', file=sys.stderr)
        return 1
