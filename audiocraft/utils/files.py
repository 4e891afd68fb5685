"""Files that are whole or not there at all."""
import hashlib
import os
import uuid
from pathlib import Path


def fsync_dir(path: str | Path) -> None:
    """Make the renames inside a folder durable; does nothing where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse to sync a folder: the files themselves are synced
    finally:
        os.close(descriptor)


def fsync_file(path: str | Path) -> None:
    """Make the content of a file that another library wrote durable."""
    with open(path, 'rb+') as file:
        os.fsync(file.fileno())


def open_to_others(path: str | Path) -> None:
    """Give a file the mode that `open` would have given it: safetensors makes files that only their owner may read."""
    mask = os.umask(0)  # there is no other way to ask for it
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new one, never a part.

    Args:
        path (str or Path): the file; its folder is made if needed.
        content (str or bytes): all of the content; text is written as utf-8.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode('utf-8') if isinstance(content, str) else content
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        with open(temporary, 'wb') as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)


def sha256_of(path: str | Path) -> str:
    """Return the sha256 of a file in hexadecimal, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()
