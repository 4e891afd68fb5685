"""What the commands that score share: measures from `config/metric`, and clips from folders."""

import json
import logging
import typing as tp
from pathlib import Path

if tp.TYPE_CHECKING:
    from ..data.samples import Clip

logger = logging.getLogger(__name__)


def read_nodes(name: str, overrides: tp.Sequence[str]) -> dict[str, dict[str, tp.Any]]:
    """The nodes of the measures in `config/metric/<name>.yaml`; `overrides` are like `fd_pann.network.weights=FILE`."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from ..dora_compat import searchpath
    from ..environment import CONFIG_ROOT, config_folders
    from ..utils import overrides as overrides_
    from ..utils.config import to_plain
    from ..utils.errors import UserError
    choices = overrides_.config_choices(config_folders(), 'metric')
    if name not in choices:
        raise UserError(overrides_.unknown_choice('metric', name, choices))
    given = [f'evaluate.metrics.{one}' for one in overrides]
    try:
        with initialize_config_dir(str(CONFIG_ROOT), version_base='1.3'):
            config = to_plain(compose(overrides=[f'+metric={name}', *given, *searchpath()]))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f'{" ".join(overrides)}: {str(error).splitlines()[0]} (expected MEASURE.KEY=VALUE, as in '
                        'fd_pann.network.weights=FILE).') from error
    return {key: node for key, node in (config.get('evaluate', {}).get('metrics') or {}).items() if node}


def check_numbers(**values: float) -> None:
    """Raise `UserError` for an argument that is not above 0."""
    from ..utils.errors import UserError
    for name, value in values.items():
        if not 0 < value < float('inf'):
            raise UserError(f'--{name} {value:g}: expected more than 0')


def settle(node: dict[str, tp.Any], *, device: str, batch_size: int | None, **values: tp.Any) -> dict[str, tp.Any]:
    """A node with values for the keys that its class takes, and where its network runs."""
    import inspect

    from ..utils.config import locate

    def takes(target: str, key: str) -> bool:
        return key in inspect.signature(locate(target)).parameters

    def placed(inner: dict[str, tp.Any]) -> dict[str, tp.Any]:
        own = {'device': None if device == 'auto' else device, 'batch_size': batch_size}
        return {**inner, **{key: value for key, value in own.items() if value and takes(inner['_target_'], key)}}

    node = {**node, **{key: value for key, value in values.items() if value and takes(node['_target_'], key)}}
    node = {key: placed(value) if isinstance(value, dict) and '_target_' in value else value
            for key, value in node.items()}
    return placed(node)


def media_by_id(folder: str | Path, *, videos_first: bool = False) -> dict[str, Path]:
    """The media of a folder by stem, sorted. Of several of one stem, sound comes before video, or after it."""
    from ..data.media import MEDIA_SUFFIXES, VIDEO_SUFFIXES
    from ..utils.errors import UserError
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f'{folder}: there is no such folder of media')

    def rank(path: Path) -> tuple[str, bool, int]:
        suffix = path.suffix.lower()
        return path.stem, (suffix in VIDEO_SUFFIXES) != videos_first, MEDIA_SUFFIXES.index(suffix)

    files = sorted((path for path in folder.iterdir() if path.suffix.lower() in MEDIA_SUFFIXES), key=rank)
    found: dict[str, Path] = {}
    for path in files:
        found.setdefault(path.stem, path)
    if not found:
        raise UserError(f'{folder} holds no media ({" ".join(MEDIA_SUFFIXES)})')
    return found


def read_whole(path: Path, *, caption: str = '', id: str | None = None) -> 'Clip':
    """The clip of a file, at its own rate and length. Raises `MediaError`."""
    from ..data.audio import read_audio
    from ..data.samples import Clip
    wav, sample_rate = read_audio(path)
    return Clip(id or path.stem, wav, sample_rate, caption=caption, media=path)


def prompt_of(path: Path) -> str:
    """The words that a clip of `generate` was made from: of the JSON beside it, '' without one."""
    try:
        record = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))
        return str(record.get('prompt') or record.get('caption') or '')
    except (OSError, ValueError, AttributeError):
        return ''


class Rejected(dict[str, str]):
    """Files that could not be used, and why; each is named in the log."""

    def add(self, path: Path, error: Exception) -> None:
        """Leave a file out."""
        self[str(path)] = str(error)
        logger.warning('left out: %s', error)


def in_batches(items: tp.Sequence[tp.Any], size: int) -> tp.Iterator[tp.Sequence[tp.Any]]:
    """Yield `size` items at a time."""
    for start in range(0, len(items), size):
        yield items[start:start + size]
