"""Where things are: the team, the cluster, and the folders that belong to them.

A *team* is a file `config/teams/<team>.yaml`. Its top-level keys are *clusters*, each with `dora_dir`,
`reference_dir`, `partitions` and, if wanted, `slurm_exclude`, `dataset_mappers`, `launcher` and `local_workers`. Five
variables choose and override:

- `AUDIOCRAFT_TEAM`: the team (`default` when it is not set);
- `AUDIOCRAFT_CLUSTER`: the cluster (detected when it is not set);
- `AUDIOCRAFT_CONFIG`: the path of a team file, in place of the team;
- `AUDIOCRAFT_DORA_DIR`: where the XPs go, in place of `dora_dir`;
- `AUDIOCRAFT_REFERENCE_DIR`: what `//reference/` stands for, in place of `reference_dir`.
"""

import functools
import getpass
import logging
import os
import platform
import re
import subprocess as sp
import tempfile
import typing as tp
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import weights
from .utils.errors import UserError

logger = logging.getLogger(__name__)

_HERE = Path(__file__).resolve().parent
# The checkout's folder first: in editable mode the packaged copy does not exist. The marker file guards against
# a `config` folder of somebody else beside the installed package.
CONFIG_ROOT = next((folder for folder in (_HERE.parent / 'config', _HERE / '_config')
                    if (folder / 'teams' / 'default.yaml').exists()), _HERE / '_config')



def config_folders() -> list[Path]:
    """Where the yaml files of the config groups are: ours, then `./config` of the launch folder if it holds groups.

    A project that uses the installed package keeps its own `config/solver/mine.yaml`, `config/dset/mine.yaml` there.
    """
    here = Path('config').resolve()
    groups = [path.name for path in CONFIG_ROOT.iterdir() if path.is_dir()] if CONFIG_ROOT.is_dir() else []
    if here == CONFIG_ROOT.resolve() or not any((here / group).is_dir() for group in groups):
        return [CONFIG_ROOT]
    return [CONFIG_ROOT, here]


# What can stand under a cluster in a team file.
_FIELDS = {'dora_dir', 'reference_dir', 'partitions', 'slurm_exclude', 'dataset_mappers', 'launcher',
           'local_workers'}
_VARIABLES = {'team': 'AUDIOCRAFT_TEAM', 'cluster': 'AUDIOCRAFT_CLUSTER', 'config': 'AUDIOCRAFT_CONFIG',
              'dora_dir': 'AUDIOCRAFT_DORA_DIR', 'reference_dir': 'AUDIOCRAFT_REFERENCE_DIR'}


def _variable(name: str) -> str | None:
    """The value of one of the five variables; an empty one counts as not set."""
    return os.environ.get(_VARIABLES[name]) or None


def launch_folder() -> Path:
    """Where the command was started: with `git_save` a run works in a clone of the code, which holds no data."""
    return Path(os.environ.get('_DORA_ORIGINAL_DIR') or '.').absolute()


def user_name() -> str:
    """The name of the user, or `uid<number>` where there is none (a container, cron)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return f'uid{getattr(os, "getuid", int)()}'  # Windows has none


def detect_cluster() -> str:
    """The name of the cluster that this machine belongs to, `default` when it is none that we know."""
    uname = platform.uname()
    if uname.system == 'Darwin':
        return 'darwin'
    if uname.release.endswith('-aws'):
        return 'aws'
    for name in ('rsc', 'fair'):
        if re.search(rf'(^|[.-]|dev){name}', uname.node):
            return name
    return 'default'


def _load_team_file(path: Path) -> dict[str, tp.Any]:
    """Read a team file, with `${oc.env:USER}` understood also when the variable is not set."""
    added = not os.environ.get('USER')
    if added:
        os.environ['USER'] = user_name()
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f'{path}: {str(error).splitlines()[0]}') from error
    except Exception as error:  # the yaml reader has its own family of errors
        raise UserError(f'{path} is not a readable yaml file: {" ".join(str(error).split())}') from error
    finally:
        if added:
            del os.environ['USER']
    if not isinstance(content, dict) or not all(isinstance(value, dict) for value in content.values()):
        raise UserError(f'{path} must hold one block for each cluster (for instance "default: {{dora_dir: ...}}").')
    clusters = tp.cast(dict[str, dict[str, tp.Any]], content)
    for cluster, fields in clusters.items():
        for field in sorted(set(fields) - _FIELDS):
            raise UserError(f'{path}: unknown key "{cluster}.{field}"; the keys are {", ".join(sorted(_FIELDS))}.')
    return clusters


def teams() -> list[str]:
    """The teams that there are."""
    return sorted(path.stem for path in (CONFIG_ROOT / 'teams').glob('*.yaml'))


class AudioCraftEnvironment:
    """The team's settings on this cluster. Read once; `reset()` forgets them (the variables are then read again)."""

    _instance: tp.Optional['AudioCraftEnvironment'] = None

    def __init__(self) -> None:
        self.team = _variable('team') or 'default'
        self.path = self._team_file()
        clusters = _load_team_file(self.path)
        self.cluster = self._choose_cluster(clusters)
        self.settings: dict[str, tp.Any] = clusters[self.cluster]
        self._warned = False

    def _team_file(self) -> Path:
        config = _variable('config')
        if config is not None:
            path = Path(config).expanduser()
            if not path.is_file():
                raise UserError(f'AUDIOCRAFT_CONFIG={config}: there is no such file.')
            return path
        path = CONFIG_ROOT / 'teams' / f'{self.team}.yaml'
        if self.team not in teams():
            raise UserError(f'AUDIOCRAFT_TEAM={self.team}: unknown team, expected one of {", ".join(teams())} '
                            f'(the files of {path.parent}).')
        return path

    def _choose_cluster(self, clusters: dict[str, tp.Any]) -> str:
        known = ', '.join(sorted(clusters))
        named = _variable('cluster')
        if named is not None:
            if named not in clusters:
                raise UserError(f'AUDIOCRAFT_CLUSTER={named}: {self.path} does not list it, expected one of {known}.')
            return named
        detected = detect_cluster()
        if detected in clusters:
            return detected
        if 'default' not in clusters:
            raise UserError(f'{self.path} lists neither the detected cluster "{detected}" nor "default": '
                            f'choose one of {known} with AUDIOCRAFT_CLUSTER.')
        logger.warning('This machine looks like the cluster "%s", which %s does not list: using its "default".',
                       detected, self.path)
        return 'default'

    @classmethod
    def instance(cls) -> 'AudioCraftEnvironment':
        """The one environment of this process."""
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    @classmethod
    def reset(cls) -> None:
        """Forget the environment, so that the next use reads the variables again."""
        cls._instance = None
        _slurm_answers.cache_clear()

    @classmethod
    def get_team(cls) -> str:
        """The name of the team."""
        return cls.instance().team

    @classmethod
    def get_cluster(cls) -> str:
        """The name of the cluster."""
        return cls.instance().cluster

    def _folder(self, name: str) -> Path:
        value = _variable(name) or self.settings.get(name)
        if not value:
            raise UserError(f'{self.path}: "{self.cluster}.{name}" is not set; set it there '
                            f'or in {_VARIABLES[name]}.')
        return launch_folder() / Path(value).expanduser()

    @classmethod
    def get_dora_dir(cls) -> Path:
        """The folder of all XPs (absolute; it may not exist yet)."""
        return cls.instance()._folder('dora_dir')

    @classmethod
    def get_reference_dir(cls) -> Path:
        """What `//reference/` stands for (absolute). Raises `UserError` when the folder does not exist."""
        folder = cls.instance()._folder('reference_dir')
        if not folder.is_dir():
            raise UserError(f'The reference folder {folder} does not exist: make it, or name another one '
                            'in AUDIOCRAFT_REFERENCE_DIR.')
        return folder

    @classmethod
    def warn_if_temporary(cls) -> None:
        """Warn, once, when results go to a temporary folder that nobody chose."""
        self = cls.instance()
        if self._warned or _variable('dora_dir') is not None:
            return
        self._warned = True
        folder = cls.get_dora_dir()
        if folder.is_relative_to('/tmp') or folder.is_relative_to(tempfile.gettempdir()):
            logger.warning('Results go to the default folder %s, which may be emptied at the next start: '
                           'set AUDIOCRAFT_DORA_DIR to keep them.', folder)

    @classmethod
    def get_slurm_partitions(cls, types: tp.Sequence[str] | None = None) -> str | None:
        """The SLURM partitions of the given types (`global` when not given), separated by commas; None without any."""
        self = cls.instance()
        partitions = self.settings.get('partitions') or {}
        names = []
        for kind in types or ['global']:
            if kind not in partitions and types is not None:
                raise UserError(f'{self.path}: "{self.cluster}.partitions" has no type "{kind}"; '
                                f'it has {", ".join(sorted(partitions)) or "none"}.')
            if partitions.get(kind):
                names.append(str(partitions[kind]))
        return ','.join(names) or None

    @classmethod
    def get_slurm_exclude(cls) -> str | None:
        """The SLURM nodes to stay away from, None without any."""
        return cls.instance().settings.get('slurm_exclude') or None

    @classmethod
    def get_launcher(cls) -> str:
        """What runs the jobs of grids: `slurm`, or `local` for this machine.

        With `auto` (the default) it is SLURM when a cluster answers: its tools may be installed without one.
        """
        self = cls.instance()
        launcher = self.settings.get('launcher') or 'auto'
        if launcher not in ('auto', 'local', 'slurm'):
            raise UserError(f'{self.path}: "{self.cluster}.launcher" is {launcher!r}, expected auto, local or slurm.')
        return ('slurm' if _slurm_answers() else 'local') if launcher == 'auto' else launcher

    @classmethod
    def get_local_workers(cls) -> int | None:
        """How many processes jobs may use at a time on the CPU of this machine; None: as many as it has cores."""
        self = cls.instance()
        workers = self.settings.get('local_workers')
        if workers is not None and (type(workers) is not int or workers < 1):
            raise UserError(f'{self.path}: "{self.cluster}.local_workers" is {workers!r}, expected a whole number of '
                            'at least 1, or null.')
        return workers

    @classmethod
    def resolve_reference_path(cls, path: str | Path) -> Path:
        """Replace a leading `//reference` by the reference folder; other paths come back as they are."""
        rest = _after_prefix(path, 'reference')
        if rest is None:
            return Path(path)
        return _inside(cls.get_reference_dir(), rest, path)

    @classmethod
    def apply_dataset_mappers(cls, path: str) -> str:
        """Rewrite a path found in a manifest with the cluster's `dataset_mappers` (regex to replacement, in order)."""
        self = cls.instance()
        for pattern, replacement in (self.settings.get('dataset_mappers') or {}).items():
            try:
                path = re.sub(pattern, replacement, path)
            except re.error as error:
                raise UserError(f'{self.path}: "{self.cluster}.dataset_mappers" holds {pattern!r} -> {replacement!r}, '
                                f'which is not a valid substitution: {error}.') from error
        return path


@functools.cache
def _slurm_answers(seconds: float = 5.) -> bool:
    """Whether there is a cluster with at least one partition."""
    try:
        found = sp.run(['sinfo', '-h', '-o', '%P'], capture_output=True, text=True, timeout=seconds)
    except (OSError, sp.TimeoutExpired):
        return False
    return found.returncode == 0 and bool(found.stdout.strip())


def _after_prefix(path: str | Path, name: str) -> str | None:
    """What follows `//name/`, '' for `//name` alone, None when `path` does not start with it (nor `//nameless`)."""
    # `Path('//x')` keeps its two slashes on POSIX, so both types are welcome here.
    match = re.fullmatch(rf'//{name}(?:/(.*))?', str(path))
    return None if match is None else (match.group(1) or '').lstrip('/')


def _inside(root: Path, rest: str, path: str | Path) -> Path:
    """`root/rest` with its `..` taken out, as long as it does not leave the root; links in it are the user's business.

    A config or a command line that comes from elsewhere reaches no file that its owner did not mean.
    """
    found = Path(os.path.normpath(root / rest))
    if not found.is_relative_to(os.path.normpath(root)):
        raise UserError(f'"{path}" leads out of {root}: give an ordinary path for what lies elsewhere.')
    return found


def xp_folder(sig: str) -> Path:
    """The folder of the XP with this signature. Raises `UserError` when there is none."""
    root = AudioCraftEnvironment.get_dora_dir() / 'xps'
    folder = root / sig
    if not re.fullmatch(r'[0-9a-zA-Z_]+', sig) or not folder.is_dir():
        raise UserError(f'There is no XP with the signature "{sig}" in {root}.')
    return folder


def resolve_path(path: str | Path) -> Path:
    """Turn `//reference/x`, `//sig/SIG[/x]`, `//pretrained/NAME` or an ordinary path into a path on this machine.

    Raises `UserError` for an unknown `//` prefix, an unknown signature or a weight that is not there.
    """
    reference, sig, name = (_after_prefix(path, prefix) for prefix in ('reference', 'sig', 'pretrained'))
    if reference is not None:
        return AudioCraftEnvironment.resolve_reference_path(path)
    if sig is not None:
        head, _, rest = sig.partition('/')
        if not head:
            raise UserError(f'"{path}" names no signature: expected //sig/SIGNATURE, like //sig/0a1b2c3d.')
        return _inside(xp_folder(head), rest.lstrip('/'), path)
    if name is not None:
        return weights.find(name)
    if str(path).startswith('//'):
        raise UserError(f'"{path}": expected //reference/PATH, //sig/SIGNATURE, //pretrained/NAME or an ordinary path.')
    path = Path(path).expanduser()
    return launch_folder() / path if '_DORA_ORIGINAL_DIR' in os.environ else path
