"""A folder of videos, good and bad, whose extraction is killed: by one process or two; see `test_extraction.py`."""

import json
import random
import signal
import subprocess as sp
import time
from pathlib import Path

from features.media import codec, make_video, make_videos

from audiocraft.utils.checkpoint import save_checkpoint

from .chain import ROOT, Chain, contents, store_contents

CLIPS, BAD = 14, 4
PATIENCE = 300.
KILLED = -signal.SIGKILL


class Extraction(Chain):
    """`args(name)` are those of an extraction to `stores/<name>`; `whole` is one that nobody disturbs.

    Attributes:
        points (dict): how many points of each kind of `interrupt.py` the whole one passes.
        seconds (float): that it took.
    """

    def __init__(self, folder: Path):
        super().__init__(folder)
        make_videos(folder / 'media', CLIPS)
        for name in ('b', 'u8', 'v05', 'z'):  # somewhere between the others
            (folder / 'media' / f'{name}.mp4').write_text('no film')
        make_video(folder / 'media' / 'v3.mkv', 1)
        model = codec()
        save_checkpoint(folder / 'codec' / 'checkpoints', 1, models={'model': model.state_dict()},
                        state={'models': {'model': model.build_cfg}})
        start = time.monotonic()
        output = self.interrupt('-', '-', 'extract', *self.args('whole'), code=0)
        self.seconds = time.monotonic() - start
        self.points: dict[str, int] = json.loads(output.split('passed: ')[-1].splitlines()[0])

    def args(self, name: str) -> list[str]:
        """Arguments of the command."""
        return ['--data_dir', 'media', '--captions_tsv', 'captions.tsv', '--output_dir', f'stores/{name}', '--codec',
                'codec', '--batch_size', '3', 'duration=1', 'extractors.image.grid=2', 'extractors.motion.grid=4']

    def start(self, name: str, where: str = '-', rank: int = 0, world_size: int = 1) -> sp.Popen[bytes]:
        """One of several processes, which kills itself at a point; its journal is synced every 3 items."""
        env = {**self.environment(), 'RANK': str(rank), 'WORLD_SIZE': str(world_size)}
        command = self.command(ROOT / 'tests' / 'integ' / 'interrupt.py', where, '-' if where == '-' else 'SIGKILL',
                               'extract', *self.args(name))
        return sp.Popen(command, cwd=self.folder, env=env, stdin=sp.DEVNULL, stdout=sp.DEVNULL, stderr=sp.DEVNULL)

    def found(self, name: str) -> dict[str, str]:
        """sha256 of every file of a store, and of the table of what was left out."""
        store = self.folder / 'stores' / name
        rejected = contents(store.with_name(f'{name}.rejected.tsv'))
        return {**store_contents(store), 'rejected': next(iter(rejected.values()))}

    def partial(self, name: str) -> Path:
        """The folder of a store that is not finished."""
        return self.folder / 'stores' / f'{name}.partial'

    def journaled(self, name: str) -> int:
        """Lines of its journals so far."""
        return sum(path.read_bytes().count(b'\n') for path in self.partial(name).glob('journal-*'))

    def kill_from_outside(self, name: str, lines: int) -> int:
        """Kill an extraction once its journals have so many lines; returns its status, 0 if it was done before."""
        process = self.start(name)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and self.journaled(name) < lines and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        return process.wait()

    def kill_at_random(self, name: str, dice: random.Random) -> str:
        """Kill one process of one or two at some time or point; the other one, if any, ends or is ended."""
        world_size, victim = dice.randint(1, 2), dice.randint(0, 1)
        kind = dice.choice(('clock', 'item', 'finish'))
        place = dice.uniform(0.3, 1.) * self.seconds if kind == 'clock' else dice.randint(1, self.points[kind])
        where = '-' if kind == 'clock' else f'{kind}:{place}'
        processes = [self.start(name, where if rank == victim % world_size else '-', rank, world_size)
                     for rank in range(world_size)]
        try:
            processes[victim % world_size].wait(place if kind == 'clock' else PATIENCE)
        except sp.TimeoutExpired:
            pass
        for process in processes:
            process.kill()
            process.wait()
        return f'{kind}:{place:.3g} of process {victim % world_size} of {world_size}'
