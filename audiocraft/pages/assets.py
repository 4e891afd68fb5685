"""Files beside a page: names that are safe everywhere, and putting them there without half-written files."""

import hashlib
import os
import re
import shutil
from pathlib import Path

# What a browser plays from a file; truth in another container is shown by its sound alone.
VIDEO = {'.mp4', '.m4v', '.webm', '.mov'}
AUDIO = {'.wav', '.flac', '.mp3', '.ogg', '.m4a'}
CONTAINERS = VIDEO | AUDIO | {'.mkv', '.avi', '.opus', '.aac'}


def safe_name(name: str) -> str:
    """A file name for any id: as is when it is plain, else its plain characters and a hash (so no two ids meet)."""
    if re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9_-]{0,79}', name):
        return name
    plain = re.sub(r'[^A-Za-z0-9_-]+', '-', name).strip('-')[:48]
    digest = hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:10]
    return f'{plain or "clip"}-{digest}'


def place(source: Path, target: Path, *, link: bool) -> None:
    """Put `source` at `target`, whole or not at all.

    Args:
        source (Path): file that exists.
        target (Path): where it goes; replaced if it is there.
        link (bool): hard link where the file system can. For files of the XP, which are replaced and never edited;
            a user's own media are copied, so that a later edit does not change an old page.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{target.name}.{os.getpid()}.tmp')
    temporary.unlink(missing_ok=True)
    try:
        _link_or_copy(source, temporary, link)
        os.replace(temporary, target)
    finally:
        # rename(2) does nothing, and leaves the temporary name, when both names are already the same file.
        temporary.unlink(missing_ok=True)


def _link_or_copy(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:
            pass  # another file system, or one without links
    shutil.copyfile(source, target)


def remove_others(folder: Path, kept: set[Path]) -> None:
    """Remove the files under `folder` that are not in `kept`, then folders that are empty."""
    for path in sorted(folder.rglob('*'), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()
