"""What the readers and writers of media share: the error of an unusable file, and which suffix is what."""

import typing as tp
from pathlib import Path

from ..utils.errors import UserError

VIDEO_SUFFIXES = ('.mp4', '.mov', '.mkv', '.webm', '.m4v', '.avi')
AUDIO_SUFFIXES = ('.wav', '.flac', '.ogg', '.mp3', '.opus', '.aiff')
CONTAINER_AUDIO_SUFFIXES = ('.m4a', '.aac', '.mka', '.wma')
"""Audio that libsndfile cannot read and FFmpeg can."""
MEDIA_SUFFIXES = (*AUDIO_SUFFIXES, *CONTAINER_AUDIO_SUFFIXES, *VIDEO_SUFFIXES)
"""Everything that may hold sound."""

REASONS = ('missing', 'empty', 'unreadable', 'no audio track', 'no video track', 'too short', 'silent', 'channels',
           'not finite')


class MediaError(UserError):
    """A media file that cannot be used.

    Args:
        path (str or Path): the file.
        reason (str): one of `REASONS`, for tables of rejected items.
        detail (str): what was found and what was needed.
    """

    def __init__(self, path: tp.Union[str, Path], reason: str, detail: str = ''):
        super().__init__(f'{path}: {reason}' + (f': {detail}' if detail else ''))
        self.path = Path(path)
        self.reason = reason
        self.detail = detail

    def __reduce__(self):
        # The default would rebuild it from the message alone, which fails across processes.
        return type(self), (self.path, self.reason, self.detail)


def require_file(path: tp.Union[str, Path]) -> Path:
    """Return `path` if it is a file with something in it, else raise `MediaError` ('missing' or 'empty')."""
    path = Path(path)
    if not path.is_file():
        raise MediaError(path, 'missing', 'it is a folder' if path.is_dir() else 'there is no such file')
    if path.stat().st_size == 0:
        raise MediaError(path, 'empty', 'the file has 0 bytes')
    return path
