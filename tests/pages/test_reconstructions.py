"""The page of a compression model: every sound beside what the model made of it."""

import json

import pytest
import torch

from audiocraft.data.audio import write_audio
from audiocraft.data.samples import Clip, SampleWriter
from audiocraft.pages import cards, samples

from .fake_xp import RATE, SECONDS, sound
from .test_samples import Page

METRICS = {'loss': 0.4, 'si_snr': 9.25, 'si_snr_worst': 1.5, 'untrained/si_snr': -20.5, 'codebook_use': 0.975,
           'codebook_use_0': 1., 'visqol': None, 'visqol_reason': 'the program visqol is not installed'}


@pytest.fixture
def codec_xp(tmp_path):
    """Two clips without pictures; the truth is longer than what was reconstructed, and at a higher rate."""
    xp, media = tmp_path / 'xps' / '5e6f7a8b', tmp_path / 'media'
    (xp / 'evaluate').mkdir(parents=True)
    media.mkdir()
    (xp / 'evaluate' / '300.json').write_text(json.dumps(METRICS))
    writer = SampleWriter(xp / 'generate' / '300')
    for index, suffix in enumerate(('.wav', '.flac')):
        wav = torch.from_numpy(sound([0.3, 1.2], 300 * (index + 1), index))[None]
        path = write_audio(media / f'hit{index}{suffix}', torch.cat([wav, wav], dim=1).expand(2, -1), 3 * RATE)
        writer.add(Clip(f'hit{index}', 0.9 * wav, RATE), reference=Clip(f'hit{index}', wav, RATE, media=path),
                   prompt='', label='Reconstruction', update=300)
    return xp


def test_truth_and_reconstruction_are_side_by_side_with_spectrograms(codec_xp):
    path = samples.write_page(codec_xp)
    page, text = Page(path), path.read_text()
    assert page.names.count('article') == text.count('class="pair"') == 2
    assert page.names.count('audio') == page.names.count('img') == 4 and page.names.count('video') == 0
    for article in text.split('<article')[1:]:
        assert article.index('Reconstruction</h3>') < article.index('Truth</h3>')
        assert article.count('data-seconds="2.0"') == 2  # one time axis
    assert 'hit0' in page.text and 'hit1' in page.text and 'Generated' not in page.text
    assert f'#t=0,{SECONDS:g}' in text  # the truth stops where the reconstruction does


def test_spectrograms_have_one_frequency_axis(codec_xp, monkeypatch):
    drawn = []

    def record(wav, sample_rate, path, **options):
        drawn.append((sample_rate, wav.shape[-1]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')

    monkeypatch.setattr(cards.plots, 'spectrogram_png', record)
    samples.write_page(codec_xp)
    assert drawn == [(RATE, round(RATE * SECONDS))] * 4


def test_scores_are_explained(codec_xp):
    text = Page(samples.write_page(codec_xp)).text
    for words in ('9.250', 'untrained -20.500', 'worst 1.500', 'before any training', '0.975',
                  'the program visqol is not installed', 'Share of the entries'):
        assert words in text, words
