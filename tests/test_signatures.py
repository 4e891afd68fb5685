"""Signatures stay what they were: a yaml or code edit that moved one would cut users off from their XPs.

    python tests/test_signatures.py    # prints the list, to be compared with RECORDED
"""

import pytest

from audiocraft.cli.overview import solver_variants
from audiocraft.environment import AudioCraftEnvironment
from audiocraft.train import main

# A line is only ever added. One that has to be changed means that folders of users' XPs are no longer found.
RECORDED = {
    'solver=compression/debug': 'ea5ff7e7',
    'solver=compression/mel_vae_debug': '37ac2466',
    'solver=compression/encodec_audiogen_16khz': '9de4739b',
    'solver=compression/encodec_base_24khz': 'fd10b18f',
    'solver=compression/encodec_musicgen_32khz': 'b7c771d4',
    'solver=compression/speech_debug': '6fd054b9',
    'solver=compression/vae_melodyflow_32khz_mono': '3175c3ec',
    'solver=compression/vae_melodyflow_48khz_stereo': 'e7c21be0',
    'solver=compression/vae_melodyflow_debug': 'f29811a4',
    'solver=mmaudio/debug': '7ac7ead2',
    'solver=mmaudio/default': 'af3ce5a1',
    'solver=mmaudio/debug dset=example': '325818c2',
    'solver=mmaudio/default mixture=mmaudio': 'edc0b8c0',
    'solver=mmaudio/default dset=example dset.root=data/mine optim.lr=1e-4 seed=7': 'ad1cc77c',
    'solver=mmaudio/debug dset=example dset.root=data/mine': '609ca5b8',
    'solver=mmaudio/debug dset=example dataset.batch_size=32': 'da8c5f2c',
    'solver=mmaudio/debug schedule=constant optim.max_norm=1. optim.epochs=3': '32121c3e',
    'solver=mmaudio/debug model.depth=2 model.hidden_dim=64 null_condition.probability=0.2': 'd96359fd',
    'solver=compression/encodec_base_24khz dataset.batch_size=64 optim.updates_per_epoch=1000': 'd84af6ff',
    'solver=compression/mel_vae_debug dset=example model.width=16': '534f4b62',
    'solver=mmaudio/debug continue_from=//sig/0123abcd autocast=false': 'c2f6afcf',
    'solver=compression/mel_vae_16k': 'e6fd7286',
    'solver=compression/mel_vae_44k': '31b8aabb',
    'solver=compression/mel_vae_mp_debug': 'ffebd42b',
    'solver=mmaudio/small_16k': 'c04445d3',
    'solver=mmaudio/small_44k': 'ca632868',
    'solver=mmaudio/medium_44k': 'c8360dbd',
    'solver=mmaudio/large_44k': 'b7f8288b',
    'solver=mmaudio/large_44k_v2': '236ddefd',
}
# What neither changes the trained result nor the signature.
NEUTRAL = [
    ['logging.level=DEBUG', 'logging.log_updates=1', 'logging.tensorboard=true', 'logging.wandb=true'],
    ['checkpoint.save_every=7', 'checkpoint.keep_last=5', 'checkpoint.keep_every=100'],
    ['checkpoint.asynchronous=false'], ['watchdog.timeout=5'], ['watchdog.timeout=null'],
    ['metric=none'], ['distrib=fsdp'], ['distrib=none'], ['distrib.timeout=60'], ['optim.accumulate=4'],
    ['dataset.num_workers=8'], ['dataset.check_finite=false'], ['max_skipped=3'],
    ['evaluate.every=1'], ['generate.every=5'], ['dataset.evaluate.num_samples=3', 'dataset.generate.num_samples=3'],
    ['device=cpu', 'num_threads=1', 'compile=true', 'activation_checkpointing=true'],
    ['execute_only=evaluate', 'execute_inplace=true'], ['show=true'], ['allow_config_change=true'],
]
# What makes another XP.
COUNTED = ['dset.root=data/other', 'dset=none', 'dataset.batch_size=32', 'optim.lr=1e-5', 'optim.epochs=7', 'seed=1',
           'schedule=constant', 'autocast=false', 'dataset.train.num_samples=10', 'weight_dtype=bfloat16']
EXAMPLE = ['solver=mmaudio/debug', 'dset=example']


def signature(*argv: str) -> str:
    return main.get_xp(list(argv)).sig


@pytest.mark.parametrize('argv', RECORDED)
def test_recorded(argv):
    assert signature(*argv.split()) == RECORDED[argv]


@pytest.mark.parametrize('more', NEUTRAL, ids=' '.join)
def test_what_does_not_count(more):
    assert signature(*EXAMPLE, *more) == signature(*EXAMPLE) == RECORDED[' '.join(EXAMPLE)]
    codec = 'solver=compression/debug'
    assert signature(codec, *more) == RECORDED[codec]


def test_what_counts():
    found = [signature(*EXAMPLE), *(signature(*EXAMPLE, override) for override in COUNTED)]
    assert len(set(found)) == len(found), dict(zip(['nothing', *COUNTED], found))


def test_the_order_of_overrides_does_not_count():
    assert signature('optim.lr=1e-3', *EXAMPLE, 'seed=1') == signature('seed=1', *EXAMPLE, 'optim.lr=1e-3')


def test_every_solver_is_in_the_list():
    assert {f'solver={variant}' for variant in solver_variants()} <= RECORDED.keys()


@pytest.mark.parametrize('variable, value', [('TEAM', 'labs'), ('CLUSTER', 'darwin'), ('DORA_DIR', 'elsewhere'),
                                             ('REFERENCE_DIR', 'elsewhere')])
def test_neither_the_team_nor_the_machine_counts(monkeypatch, tmp_path, variable, value):
    monkeypatch.setenv(f'AUDIOCRAFT_{variable}', value if variable in ('TEAM', 'CLUSTER') else str(tmp_path / value))
    AudioCraftEnvironment.reset()
    monkeypatch.setattr(main, '_bases', {}, raising=False)
    try:
        for argv in RECORDED:
            assert signature(*argv.split()) == RECORDED[argv]
    finally:
        monkeypatch.undo()
        AudioCraftEnvironment.reset()


if __name__ == '__main__':
    for line in RECORDED:
        print(f'    {line!r}: {signature(*line.split())!r},')
