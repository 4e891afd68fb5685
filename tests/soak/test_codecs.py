"""The light codec in full: what it learns, a codebook that collapsed, and discriminators; every figure is printed.

    make soak                                                       # about 15 minutes on 2 cores
    AUDIOCRAFT_SOAK_SHORT=1 python -m pytest -s -m soak tests/soak/test_codecs.py   # a few updates, no targets
"""

import json
import math
import os
import typing as tp

import pytest
from integ.chain import Chain
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.soak

SHORT = bool(os.environ.get('AUDIOCRAFT_SOAK_SHORT'))
CLIPS = {'train': 8, 'valid': 4, 'test': 4} if SHORT else {'train': 300, 'valid': 32, 'test': 32}
CODEC = ['solver=compression/debug', 'dset.root=data', 'dataset.evaluate.num_samples=32']
TINY = ['optim.epochs=1', 'optim.updates_per_epoch=4', 'dataset.batch_size=4'] if SHORT else []
AGAIN = ['optim.epochs=1', f'optim.updates_per_epoch={4 if SHORT else 200}', 'optim.lr=1e-3']
LEFT = 4  # entries of each codebook that are in use after the collapse


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    """A folder with sounds, other ones in each part, and a codec trained on them."""
    chain = Chain(tmp_path_factory.mktemp('codecs'))
    for seed, (part, clips) in enumerate(CLIPS.items(), 11):
        chain.launch('-m', 'audiocraft', 'make_example', '--kind', 'audio', '--out', f'data/{part}', '--clips', clips,
                     '--seed', seed, '--seconds', 4)
    chain.codec = train(chain, *CODEC, *TINY)
    return chain


def train(chain: Chain, *overrides: str) -> str:
    """Train an XP to its end; its signature."""
    chain.launch('-m', 'audiocraft', 'run', *overrides)
    return chain.launch('-m', 'audiocraft', 'sig', *overrides).split()[-1]


def folder_of(chain: Chain, signature: str):
    return chain.folder / 'outputs' / 'xps' / signature


def scores(chain: Chain, signature: str) -> dict[str, tp.Any]:
    """The results of the last evaluation of an XP."""
    newest = max((folder_of(chain, signature) / 'evaluate').glob('*.json'), key=lambda path: int(path.stem))
    return json.loads(newest.read_text())['metrics']


def test_unseen_sounds_are_reconstructed(chain):
    found = scores(chain, chain.codec)
    seconds = sum(epoch['train']['duration'] for epoch in json.loads(
        (folder_of(chain, chain.codec) / 'history.json').read_text()))
    print(f'\nSI-SNR {found["si_snr"]:.2f} dB (worst {found["si_snr_worst"]:.2f}), untrained '
          f'{found["untrained/si_snr"]:.2f}; use of codebooks {found["codebook_use"]:.3f}, '
          f'{found["bitrate"]:.1f} kb/s; {seconds:.0f} s of training')
    if not SHORT:
        assert found['si_snr'] > max(0., found['untrained/si_snr'] + 10)
        assert found['codebook_use'] > 0.9


def test_a_collapsed_codebook_recovers_with_expiry_only(chain):
    chain.launch('-m', 'audiocraft', 'export', chain.codec, '--out', 'whole', '--force')
    state = load_file(chain.folder / 'whole' / 'model.safetensors')
    for key in [key for key in state if key.endswith('_codebook.embed')]:
        # The other entries go where no vector is; their running means follow.
        for name in (key, f'{key}_avg'):
            state[name][LEFT:] += 1e4
    save_file(state, chain.folder / 'collapsed.safetensors')
    found = {}
    for expiry in (0.5, 0.):
        signature = train(chain, *CODEC, *TINY, *AGAIN, 'continue_from=collapsed.safetensors',
                          f'model.quantizer.threshold_ema_dead_code={expiry}')
        found[expiry] = scores(chain, signature)
        print(f'\nexpiry {expiry}: use of codebooks {found[expiry]["codebook_use"]:.3f}, SI-SNR '
              f'{found[expiry]["si_snr"]:.2f} dB')
    if not SHORT:
        assert found[0.5]['codebook_use'] > 0.9 and found[0.]['codebook_use'] < 0.1
        assert found[0.5]['si_snr'] > found[0.]['si_snr']


def test_discriminators_do_not_upset_it(chain):
    signature = train(chain, *CODEC, *TINY, *AGAIN, 'losses=waveform', 'adversarial=msstftd_tiny')
    lines = [json.loads(line) for line in (folder_of(chain, signature) / 'metrics.jsonl').read_text().splitlines()]
    steps = [line['metrics'] for line in lines if line['kind'] == 'step' and line['stage'] == 'train']
    for name in ('d_loss', 'msspec', 'l1', 'adv_msstftd', 'feat_msstftd'):
        values = [step[name] for step in steps if name in step]
        print(f'\n{name}: ' + ' '.join(f'{value:.3f}' for value in values[::max(1, len(values) // 10)]), end='')
        assert values and all(map(math.isfinite, values))
    if not SHORT:
        assert steps[-1]['msspec'] < 0.5 * steps[0]['msspec']
        # 2 is a discriminator that tells nothing, 0 one that has won.
        assert all(0.1 < step['d_loss'] < 2.5 for step in steps if 'd_loss' in step)
        assert sum(step['skipped'] for step in steps) == 0
