"""A model that was trained is given away: the folder is whole, loads without the XP, and can be trained on."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from audiocraft.cli import dispatch
from audiocraft.models.loaders import load_compression_model, load_model
from audiocraft.models.published.audiocraft import load_codec
from audiocraft.optim import PostHocEMA
from audiocraft.solvers.state import continue_from
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build

CODEC = {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': 800,
         'seanet': {'n_filters': 2, 'ratios': [4, 2], 'norm': 'weight_norm', 'lstm': 1},
         'quantizer': {'_target_': 'audiocraft.quantization.rvq.ResidualVectorQuantizer', 'dimension': 6, 'n_q': 2,
                       'bins': 8}}
CONTINUOUS = {**CODEC, 'quantizer': {'_target_': 'audiocraft.quantization.gaussian.GaussianBottleneck',
                                     'dimension': 3}}
MEL_VAE = {'_target_': 'audiocraft.models.mel_vae.MelVAE', 'latent_dim': 4, 'width': 16, 'depth': 1}
EVERYTHING = {'README.md', 'config.yaml', 'model.json', 'model.safetensors'}
FACTS = {'train': {'media': {'files': 6, 'sha256': 'x'}}, 'valid': {'0 a': {'name': 'vggsound', 'rows': 32}}}


def make_xp(folder: Path, node: dict, sig: str = 'c0ffee00') -> Path:
    """The folder of an XP after two epochs: its best weights are those of the model plus 1."""
    model = build(node)
    last = model.state_dict()
    best = {key: value + 1 if value.is_floating_point() else value for key, value in last.items()}
    xp = folder / 'xps' / sig
    epochs = [{'train': {'loss': 2.}, 'valid': {'loss': 3.25}}, {'train': {'loss': 1.}, 'valid': {'loss': 1.5}}]
    save_checkpoint(xp / 'checkpoints', 50, models={'model': last, 'best': best}, config='seed: 7\n',
                    state={'sig': sig, 'models': {'model': model.build_cfg}, 'history': epochs, 'data_facts': FACTS})
    epochs[1]['evaluate'] = {'sisnr': 12.375, 'duration': 99.5, 'visqol': None}
    (xp / 'history.json').write_text(json.dumps(epochs))
    (xp / '.argv.json').write_text('["solver=compression/debug", "seed=7"]')
    return xp


@pytest.fixture
def xp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv('AUDIOCRAFT_DORA_DIR', str(tmp_path))
    return make_xp(tmp_path, CODEC)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_export(xp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.main(['export', 'c0ffee00']) == 0
    out = xp / 'export'
    assert capsys.readouterr().out == f'{out}\n'
    assert names(out) == EVERYTHING | {'compression_state_dict.bin'}
    assert {path.name for path in xp.iterdir()} == {'checkpoints', 'export', 'history.json', '.argv.json'}
    best = load_model(xp).state_dict()
    for loaded in (load_compression_model(out), load_codec(out)):
        assert all(torch.equal(value, best[key]) for key, value in loaded.state_dict().items())
    description = json.loads((out / 'model.json').read_text())
    assert (description['sig'], description['update'], description['build']) == ('c0ffee00', 50, CODEC)
    assert yaml.safe_load((out / 'config.yaml').read_text()) == {'seed': 7}


def test_the_card(xp: Path) -> None:
    assert dispatch.main(['export', str(xp), '--out', str(xp / 'given')]) == 0
    text = (xp / 'given' / 'README.md').read_text()
    for words in ('# EncodecModel c0ffee00', 'trained for 50 updates', 'dora run solver=compression/debug seed=7',
                  '800 Hz, 1 channel\n', '2 codebooks with 8 entries', '100 frames a second', 'media (6 files)',
                  'vggsound (32 rows)', '`evaluate`, after epoch 2', '| sisnr | 12.38 |', 'load_compression_model',
                  'continue_from=', '## Licence'):
        assert words in text, words
    assert '99.5' not in text and 'visqol' not in text


def test_other_weights_and_the_scores_of_valid(xp: Path) -> None:
    (xp / 'history.json').unlink()
    assert dispatch.main(['export', str(xp), '--weights', 'model']) == 0
    key = 'encoder.model.0.conv.conv.bias'
    last = load_model(xp, which='model').state_dict()[key]
    assert torch.equal(load_model(xp / 'export').state_dict()[key], last)
    assert '| loss | 1.5 |' in (xp / 'export' / 'README.md').read_text()


def test_nothing_is_overwritten_without_force(xp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = xp / 'given'
    out.mkdir()
    (out / 'mine').write_text('precious')
    assert dispatch.main(['export', str(xp), '--out', str(out)]) == 1
    assert 'exists already' in capsys.readouterr().err and names(out) == {'mine'}
    assert dispatch.main(['export', str(xp), '--out', str(out), '--force']) == 0
    assert names(out) == EVERYTHING | {'compression_state_dict.bin'}


def test_a_failed_load_test_leaves_nothing(xp: Path, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    from audiocraft.cli import _exporting
    (xp / 'given').mkdir()
    (xp / 'given' / 'mine').write_text('precious')
    before = names(xp)
    written = _exporting.write_exported

    def damaged(folder: Path, state: dict, *args, **kwargs) -> None:
        written(folder, {key: value + 1e-3 for key, value in state.items()}, *args, **kwargs)
    monkeypatch.setattr(_exporting, 'write_exported', damaged)
    assert dispatch.main(['export', str(xp), '--out', str(xp / 'given'), '--force']) == 1
    assert 'model.safetensors, loaded again, differs' in capsys.readouterr().err
    assert names(xp) == before and names(xp / 'given') == {'mine'}


def test_only_the_file_of_audiocraft(xp: Path) -> None:
    assert dispatch.main(['export', str(xp), '--format', 'audiocraft']) == 0
    assert names(xp / 'export') == {'README.md', 'compression_state_dict.bin'}


def test_continuous_codec_keeps_its_statistics(tmp_path: Path) -> None:
    xp = make_xp(tmp_path, CONTINUOUS)
    assert dispatch.main(['export', str(xp)]) == 0
    loaded = load_model(xp / 'export').state_dict()
    assert torch.equal(loaded['quantizer.latent_mean'], torch.ones(3))
    assert torch.equal(load_codec(xp / 'export').state_dict()['quantizer.latent_mean'], torch.zeros(3))


def test_a_model_that_audiocraft_does_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xp = make_xp(tmp_path, MEL_VAE)
    assert dispatch.main(['export', str(xp), '--format', 'audiocraft']) == 1
    assert 'AudioCraft reads no MelVAE' in capsys.readouterr().err and not (xp / 'export').exists()
    assert dispatch.main(['export', str(xp)]) == 0
    assert names(xp / 'export') == EVERYTHING


def test_what_cannot_be_exported(xp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.main(['export', str(xp), '--out', str(tmp_path / 'first')]) == 0
    cases = {str(tmp_path / 'first'): 'is no XP', 'deadbeef': 'deadbeef', str(tmp_path / 'none'): 'no such XP'}
    for reference, message in cases.items():
        assert dispatch.main(['export', reference]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize('kind', ['export', 'its weights', 'AudioCraft file', 'XP'])
def test_a_training_goes_on_from_it(kind: str, xp: Path) -> None:
    assert dispatch.main(['export', str(xp)]) == 0
    reference = {'export': xp / 'export', 'its weights': xp / 'export' / 'model.safetensors',
                 'AudioCraft file': xp / 'export' / 'compression_state_dict.bin', 'XP': xp}[kind]
    owner = SimpleNamespace(model=build(CODEC), extra=torch.nn.Linear(2, 2))
    sources = {name: SimpleNamespace(owner=owner, name=name) for name in ('model', 'extra')}
    continue_from(SimpleNamespace(stateful=SimpleNamespace(sources=sources)), str(reference))
    best = load_model(xp).state_dict()
    assert all(torch.equal(value, best[key]) for key, value in owner.model.state_dict().items())


NETWORK = {'_target_': 'audiocraft.models.mmaudio.MMAudio', 'latent_dim': 4, 'clip_dim': 5, 'sync_dim': 6,
           'text_dim': 7, 'hidden_dim': 64, 'depth': 2, 'fused_depth': 1, 'num_heads': 1, 'latent_seq_len': 10,
           'clip_seq_len': 4, 'sync_seq_len': 8, 'text_seq_len': 3, 'latent_mean': [0.] * 4, 'latent_std': [1.] * 4}


@pytest.mark.parametrize('node', [NETWORK, {'_target_': 'audiocraft.models.mp_mel_vae.MPMelVAE', 'width': 8}])
def test_as_mmaudio_reads_it(tmp_path: Path, node: dict) -> None:
    xp = make_xp(tmp_path, node)
    assert dispatch.main(['export', str(xp), '--format', 'mmaudio']) == 0
    assert names(xp / 'export') == {'mmaudio.pth', 'README.md'}
    written = torch.load(xp / 'export' / 'mmaudio.pth', weights_only=True)
    best = load_model(xp).state_dict()
    assert written.keys() == best.keys() and all(torch.equal(written[key], best[key]) for key in best)
    loaded = load_model(xp / 'export' / 'mmaudio.pth').state_dict()
    assert all(torch.equal(loaded[key], best[key]) for key in best)


def test_another_width_of_the_average(tmp_path: Path) -> None:
    model = build(NETWORK)
    xp = tmp_path / 'xps' / 'c0ffee00'
    ema = PostHocEMA({'model': model}, snapshot_every=2, folder=xp / 'ema')
    for _ in range(4):
        for parameter in model.parameters():
            parameter.data.add_(0.1)
        ema.step()
    (xp / 'ema' / '0.6.safetensors').write_text('of a run that goes on')
    save_checkpoint(xp / 'checkpoints', 4, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}, 'ema': ema.state_dict()})
    assert dispatch.main(['export', str(xp), '--sigma_rel', '0.08']) == 0
    expected = ema.synthesize(0.08)['model']
    assert all(torch.equal(value, expected[key]) for key, value in load_model(xp / 'export').state_dict().items())
    assert (xp / 'ema' / '0.6.safetensors').exists()


def test_there_is_one_width_only(xp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch.main(['export', str(xp), '--sigma_rel', '0.08']) == 1
    assert 'not post-hoc' in capsys.readouterr().err
