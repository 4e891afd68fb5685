"""Many seeded interruptions of a training and of an extraction: nothing of them may be seen in what comes out.

    make soak                                                                    # 20 of each
    AUDIOCRAFT_SOAK_POINTS=2 python -m pytest -s -m soak tests/soak/test_interruptions.py
"""

import json
import os
import random
import shutil
import signal
import subprocess as sp
import time

import pytest
from integ.chain import MODEL, ROOT, Chain, differences, make_chain, outcome, store_contents

pytestmark = pytest.mark.soak

COUNT = int(os.environ.get('AUDIOCRAFT_SOAK_POINTS', 20))
EXITS = {'SIGTERM': 143, 'SIGKILL': -signal.SIGKILL}
# What a training is interrupted in. `clock`: from outside, at any time between its start and its end.
KINDS = [('train', 'SIGTERM'), ('save', 'SIGKILL'), ('train', 'SIGKILL'), ('generated', 'SIGTERM'),
         ('clock', 'SIGKILL'), ('valid', 'SIGKILL'), ('save', 'SIGTERM'), ('commit', 'SIGKILL'),
         ('generated', 'SIGKILL'), ('valid', 'SIGTERM')]


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    return make_chain(tmp_path_factory.mktemp('soak'))


@pytest.fixture(scope='module')
def expected(chain):
    return outcome(chain.xp(chain.model))


def passed(output: str) -> dict[str, float]:
    """How often each kind of point was passed."""
    return json.loads(output.split('passed: ')[-1].splitlines()[0])


@pytest.fixture(scope='module')
def points(chain, expected):
    """How many points there are of each kind in a training and an extraction, and the seconds that a training takes.

    To count them must change nothing.
    """
    dora_dir = chain.fresh_dora_dir('counted')
    start = time.monotonic()
    found = passed(chain.interrupt('-', '-', 'run', *MODEL, dora_dir=dora_dir, code=0))
    found['clock'] = time.monotonic() - start
    assert differences(outcome(chain.xp(chain.model, dora_dir)), expected) == []
    output = chain.interrupt('-', '-', 'extract', *chain.extract('train', 'stores/counted'), code=0)
    return {**found, **passed(output)}


def kill_after(chain: Chain, seconds: float, dora_dir: str) -> None:
    """Start a training and kill it from outside."""
    process = sp.Popen(chain.command('-m', 'audiocraft', 'run', *MODEL), cwd=chain.folder, stdin=sp.DEVNULL,
                       env=chain.environment(dora_dir), stdout=sp.DEVNULL, stderr=sp.DEVNULL)
    try:
        process.wait(seconds)
    except sp.TimeoutExpired:
        process.kill()
    assert process.wait() in (0, -signal.SIGKILL)


@pytest.mark.parametrize('seed', range(COUNT))
def test_training(chain, expected, points, seed):
    """One to three interruptions of one training, the first of the kind that is due."""
    dice, dora_dir, told = random.Random(seed), chain.fresh_dora_dir(f'killed_{seed}'), []
    for number in range(dice.randint(1, 3)):
        kind, name = KINDS[seed % len(KINDS)] if number == 0 else dice.choice(KINDS)
        if kind == 'clock':
            place = dice.uniform(0.2, 1.) * points[kind]
            kill_after(chain, place, dora_dir)
        else:
            place = dice.randint(1, points[kind])
            # A later process has less to do and may end before it gets there; a stop may come after the last batch.
            chain.interrupt(f'{kind}:{place}', name, 'run', *MODEL, dora_dir=dora_dir, code=(0, EXITS[name]))
        told.append(f'{kind}:{place:.4g} {name}')
    chain.audiocraft('run', *MODEL, dora_dir=dora_dir)
    found = differences(outcome(chain.xp(chain.model, dora_dir)), expected)
    print(f'training {seed}: {", ".join(told)}: {"DIFFERENT" if found else "the same"}', flush=True)
    assert found == []
    shutil.rmtree(chain.folder / dora_dir)


@pytest.mark.parametrize('seed', range(COUNT))
def test_extraction(chain, points, seed):
    """The same of extractions; every fourth one goes on with two processes."""
    dice, told = random.Random(seed), []
    args = chain.extract('train', f'stores/killed_{seed}')
    for number in range(dice.randint(1, 2)):
        kind = ('item', 'finish')[(seed + number) % 2]
        place = dice.randint(1, points[kind])
        chain.interrupt(f'{kind}:{place}', 'SIGKILL', 'extract', *args, code=(0, EXITS['SIGKILL']))
        told.append(f'{kind}:{place}')
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'] if seed % 4 == 3 else []
    chain.launch(*launcher, ROOT / 'scripts' / 'extract.py', *args)
    same = store_contents(chain.store(f'killed_{seed}', '.')) == store_contents(chain.store('train'))
    print(f'extraction {seed}: {", ".join(told)}: {"the same" if same else "DIFFERENT"}', flush=True)
    assert same and not (chain.folder / 'stores' / f'killed_{seed}.partial').exists()
