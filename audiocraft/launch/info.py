"""What `dora info` says beside the overrides of an XP: the logs of all processes, and with -v the whole config."""

import logging
import re
import typing as tp
from pathlib import Path

from dora.log import simple_log
from dora.shep import Sheep, Shepherd
from omegaconf import OmegaConf

_LOG = re.compile(r'solver\.log\.(?P<solver>\d+)|worker_(?P<worker>\d+)\.log')


def logs(sheep: Sheep) -> dict[int, list[Path]]:
    """The logs of each process: what it logged, and what it printed here (`dora run -d`) or in its last job."""
    found: dict[int, list[Path]] = {}
    for path in sorted(sheep.xp.folder.glob('*')):
        if (match := _LOG.fullmatch(path.name)) is not None:
            found.setdefault(int(match['solver'] or match['worker']), []).append(path)
    job = sheep.current_job_id
    for path in sorted(sheep.xp.submitit.glob(f'{job}_*_log.out')) if job else []:
        found.setdefault(int(path.name.removeprefix(f'{job}_').split('_')[0]), []).append(path)
    return dict(sorted(found.items()))


class InfoShepherd(Shepherd):
    """Says more than Dora's own, which tells the main log alone."""

    def get_sheep_from_argv(self, argv: tp.Sequence[str]) -> Sheep:
        """As Dora's; prints by the way."""
        sheep = super().get_sheep_from_argv(argv)
        if logging.getLogger('dora').level == logging.DEBUG:  # -v
            print(OmegaConf.to_yaml(sheep.xp.cfg, resolve=True), end='', flush=True)
        for rank, paths in logs(sheep).items():
            simple_log('Info:', f'Process {rank} logs to', ', '.join(map(str, paths)))
        return sheep

    def get_sheep_from_job_id(self, job_id: str) -> Sheep | None:
        """The same for `dora info -j JOB`."""
        sheep = super().get_sheep_from_job_id(job_id)
        return None if sheep is None else self.get_sheep_from_argv(sheep.xp.argv)
