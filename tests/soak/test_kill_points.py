"""Many kills (-9) at seeded points: of trainings that write a checkpoint, see tests/integ/test_reliability.py, and of
extractions at any time, by one process or two, see tests/integ/test_extraction.py.

    make soak                                                                    # 20 of each
    AUDIOCRAFT_SOAK_POINTS=3 python -m pytest -s -m soak tests/soak/test_kill_points.py
"""

import os
import random

import pytest
from integ.chain import differences
from integ.extraction import Extraction
from integ.faults import SAVE_EVERY, Project

pytestmark = pytest.mark.soak

COUNT = int(os.environ.get('AUDIOCRAFT_SOAK_POINTS', 20))
HEAD = f'\n{"seed":>4} {"act":>4} {"updates done":>13} {"came back":>10} {"lost":>5}  outcome'


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp('kill_points'))
    project.run('expected')
    print(HEAD, flush=True)
    return project


@pytest.mark.parametrize('seed', range(COUNT))
def test_kill_point(project, seed):
    killed = project.kill_while_saving(f'killed_{seed}', seed)
    found = differences(project.outcome(f'killed_{seed}'), project.outcome('expected'))
    print(f'{seed:>4} {killed.place:>4} {killed.done:>13} {killed.came_back:>10} {killed.done - killed.came_back:>5}  '
          + ('DIFFERENT' if found else 'the same'), flush=True)
    assert found == [] and killed.done - killed.came_back <= 2 * SAVE_EVERY


@pytest.fixture(scope='module')
def extraction(tmp_path_factory):
    return Extraction(tmp_path_factory.mktemp('killed_extractions'))


@pytest.mark.parametrize('seed', range(COUNT))
def test_killed_extraction(extraction, seed):
    """One to three kills, each of one process of one or two; then the command once more."""
    dice, name = random.Random(seed), f'killed_{seed}'
    told = [extraction.kill_at_random(name, dice) for _ in range(dice.randint(1, 3))]
    extraction.audiocraft('extract', *extraction.args(name))
    same = extraction.found(name) == extraction.found('whole')
    print(f'extraction {seed}: {", ".join(told)}: {"the same" if same else "DIFFERENT"}', flush=True)
    assert same and not extraction.partial(name).exists()
