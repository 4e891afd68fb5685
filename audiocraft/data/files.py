"""Files that another library writes, whole or not there at all."""

import os
import typing as tp
from contextlib import contextmanager
from pathlib import Path

from ..utils.errors import UserError


@contextmanager
def replaced(path: tp.Union[str, Path]) -> tp.Iterator[Path]:
    """Give a temporary path beside `path`, which replaces it when the block ends well and goes away when it fails."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (FileExistsError, NotADirectoryError, PermissionError, IsADirectoryError) as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None
