"""Checks of what the networks of evaluation are shown, on recorded numbers, and of their full-size state dicts."""

import torch

from audiocraft.metrics import imagebind
from audiocraft.utils.config import build

from .base import Fixture, Report
from .synchformer import check_synchformer_audio

NETS = 'audiocraft.features.nets'


def check_frontends(fixture: Fixture, report: Report) -> None:
    """Windows of VGGish, decibels of PANNs, filter banks of ImageBind and segments of Synchformer, of one waveform."""
    wav = fixture['wave16k']
    expected = fixture['vggish.examples']
    vggish = build({'_target_': f'{NETS}.vggish.VGGish', 'dims': [2], 'pools': [0], 'hidden': 2, 'dim': 2,
                    'frames': expected.shape[1], 'n_mels': expected.shape[2]})
    report.close('vggish.examples', vggish.examples(wav), expected)
    expected = fixture['panns.logmel']
    panns = build({'_target_': f'{NETS}.panns.Cnn14', 'dims': [2, 2], 'classes': 2, 'n_mels': expected.shape[1]})
    report.close('panns.logmel', panns.logmel(wav[None])[0], expected)
    expected = fixture['imagebind.mel_clip0_unnormalized']
    first = wav[:round(imagebind.CLIP_SECONDS * imagebind.SAMPLE_RATE)]
    found = imagebind.mel(first, n_mels=expected.shape[1], frames=expected.shape[2])
    report.close('imagebind.mel', found, expected)
    mean, std = imagebind.MEAN, imagebind.STD
    report.close('imagebind.sound', imagebind.sound(first)[0] * std + mean, expected)
    check_synchformer_audio(fixture, report)


def check_manifest(fixture: Fixture, report: Report) -> None:
    """The full-size network on the meta device: every name, shape and dtype, and their sums."""
    manifest = fixture.json
    target = {'panns_cnn14_16k': 'panns.Cnn14', 'vggish': 'vggish.VGGish'}[fixture.kind]
    front = manifest.get('frontend', {})
    names = {'window': 'window', 'hop': 'hop', 'mel_bins': 'n_mels', 'fmin': 'fmin', 'fmax': 'fmax'}
    with torch.device('meta'):
        model = build({'_target_': f'{NETS}.{target}', **{names[key]: front[key] for key in names if key in front}})
    state, trainable = model.state_dict(), {key: p.requires_grad for key, p in model.named_parameters()}
    report.equal('names', sorted(state), sorted(manifest['state_dict']))
    for key, entry in manifest['state_dict'].items():
        found = dict(shape=list(state[key].shape), dtype=str(state[key].dtype).removeprefix('torch.'),
                     requires_grad=trainable.get(key, True))
        report.equal(key, found, {'requires_grad': True, **{k: v for k, v in entry.items() if k != 'buffer'}})
    sizes = {key: value.numel() for key, value in model.named_parameters()}
    report.equal('num_entries', len(state), manifest['num_entries'])
    report.equal('num_params', sum(sizes.values()), manifest['num_params'])
    report.equal('num_trainable', sum(size for key, size in sizes.items() if trainable[key]), manifest['num_trainable'])
    report.equal('state_dict_bytes', sum(v.numel() * v.element_size() for v in state.values()),
                 manifest['state_dict_bytes'])
    if front:
        _check_front_end(model, front, report)


def _check_front_end(model: torch.nn.Module, front: dict, report: Report) -> None:
    """That the constants of the spectrogram are those of the manifest."""
    with torch.device('cpu'):
        cnn = build({'_target_': f'{NETS}.panns.Cnn14', 'dims': [2, 2], 'classes': 2})
    spec = cnn.spectrogram_extractor
    report.equal('window and hop', [spec.window, spec.hop], [front['window'], front['hop']])
    report.equal('mel bands', cnn.logmel_extractor.melW.shape[1], front['mel_bins'])
    silence = cnn.logmel(torch.zeros(1, 4 * front['window']))
    report.close('silence', silence.max(), 10 * torch.tensor(front['amin'] / front['ref']).log10())
    flat = torch.ones(1, 1, front['window'] // 2 + 1)
    mel = (flat @ cnn.logmel_extractor.melW) / front['ref']
    report.close('decibels', cnn.logmel_extractor(flat), 10 * mel.log10())


CHECKS = {'mmaudio/eval_frontends': check_frontends, 'mmaudio/panns_cnn14_16k': check_manifest,
          'mmaudio/vggish': check_manifest}
