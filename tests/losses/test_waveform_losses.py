"""Losses of waveforms: what they must be zero for, grow with, refuse, and leave alone."""

import math
import warnings

import pytest
import torch

from audiocraft.losses.base import power
from audiocraft.losses.mel import MelLoss, MelSpectrogram, MultiScaleMelLoss, htk_filters
from audiocraft.losses.sisnr import SISNRLoss, si_snr
from audiocraft.losses.stft import MultiResolutionSTFTLoss

RATE = 8000
LOSSES = {
    'mel': lambda: MelLoss(sample_rate=RATE, n_fft=256, hop_length=64, n_mels=20),
    'mel_linear': lambda: MelLoss(sample_rate=RATE, n_fft=256, hop_length=64, win_length=200, n_mels=20, log=False,
                                  normalized=True),
    'msspec': lambda: MultiScaleMelLoss(sample_rate=RATE, range_start=5, range_end=8, n_mels=20),
    'mrstft': lambda: MultiResolutionSTFTLoss(n_ffts=(128, 256), hop_lengths=(30, 60), win_lengths=(100, 256)),
    'sisnr': lambda: SISNRLoss(sample_rate=RATE, segment=0.1),
    'sisnr_whole': lambda: SISNRLoss(sample_rate=RATE, segment=None),
    'sisnr_joint': lambda: SISNRLoss(sample_rate=RATE, segment=None, joint=True, epsilon=1e-12)}
SPECTRAL = [name for name in LOSSES if not name.startswith('sisnr')]


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def tone(batch=2, channels=1, length=1600):
    time = torch.arange(length) / RATE
    pitches = torch.tensor([220., 440., 1000., 2500.])[:batch * channels].view(batch, channels, 1)
    return 0.3 * torch.sin(2 * math.pi * pitches * time)


def test_grows_with_noise_and_gradients_lead_back(loss):
    target = tone(channels=2)
    noise = torch.randn_like(target)
    values = [loss(target + scale * noise, target) for scale in (0.003, 0.01, 0.1)]
    assert values[0] < values[1] < values[2]
    assert all(value.shape == () and value.dtype == torch.float32 for value in values)
    output = (target + 0.1 * noise).requires_grad_()
    before = loss(output, target)
    gradient, = torch.autograd.grad(before, output)
    assert loss(output - 1e-3 * gradient / gradient.norm(), target) < before


def test_each_channel_counts_alike(loss):
    target = tone(batch=1, channels=2)
    output = target + 0.05 * torch.randn_like(target)
    swapped = loss(output.flip(1), target.flip(1))
    torch.testing.assert_close(swapped, loss(output, target))
    if not (isinstance(loss, MultiResolutionSTFTLoss) or getattr(loss, 'joint', False)):  # these see the batch as one
        torch.testing.assert_close(loss(output.transpose(0, 1), target.transpose(0, 1)), swapped)
        alone = torch.stack([loss(output[:, [i]], target[:, [i]]) for i in range(2)])
        torch.testing.assert_close(alone.mean(), swapped)


@pytest.mark.parametrize('name', SPECTRAL)
def test_nothing_for_the_same(name):
    target = tone()
    output = target.clone().requires_grad_()
    value = LOSSES[name]()(output, target)
    assert value == 0
    value.backward()
    assert output.grad.isfinite().all()


@pytest.mark.parametrize('silent', ['output', 'target', 'both'])
def test_silence_has_a_finite_gradient(loss, silent):
    output, target = tone(), tone()
    output = (output * (silent == 'target')).requires_grad_()
    value = loss(output, target * (silent == 'output'))
    value.backward()
    assert value.isfinite() and output.grad.isfinite().all()


def test_target_gets_no_gradient(loss):
    output, target = tone().requires_grad_(), (tone() + 0.1).requires_grad_()
    loss(output, target).backward()
    assert target.grad is None and output.grad is not None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_fp32_inside(loss, dtype):
    target = tone()
    output = (target + 0.05 * torch.randn_like(target)).to(dtype)
    expected = loss(output.float(), target.to(dtype).float())
    with torch.autocast('cpu', torch.bfloat16):
        found = loss(output, target.to(dtype))
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_nothing_in_checkpoints_and_all_on_one_device(loss):
    assert not loss.state_dict() and not list(loss.parameters())
    wav = tone()
    with torch.device('meta'):  # where a tensor is made that does not follow the input
        assert loss(wav + 0.1, wav).isfinite()
    assert all(buffer.is_meta for buffer in loss.to('meta').buffers())


def test_shortest_waveform(loss):
    target = tone(length=loss.min_samples)
    assert loss(target + 0.1 * torch.randn_like(target), target).isfinite()
    with pytest.raises(ValueError, match=f'{type(loss).__name__} needs at least {loss.min_samples} samples, got'):
        loss(target[..., 1:], target[..., 1:])


@pytest.mark.parametrize('output, target', [((2, 1, 800), (2, 1, 801)), ((2, 800), (2, 800)),
                                            ((2, 1, 800), (1, 1, 800))])
def test_shapes_that_do_not_fit(loss, output, target):
    with pytest.raises(ValueError, match='waveforms .B, C, T. of one shape'):
        loss(torch.zeros(output), torch.zeros(target))


@pytest.mark.parametrize('make, message', [
    (lambda: MultiScaleMelLoss(sample_rate=RATE, range_start=6, range_end=6), 'range_start'),
    (lambda: MultiResolutionSTFTLoss(n_ffts=(128,)), 'one number for each resolution'),
    (lambda: SISNRLoss(sample_rate=RATE, segment=1e-4), 'two samples')])
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class TestMelSpectrogram:
    @pytest.mark.parametrize('length', [97, 128, 129, 800])
    def test_a_frame_for_each_hop(self, length):
        mel = MelSpectrogram(sample_rate=RATE, n_fft=256, hop_length=64, n_mels=20)
        assert mel.min_samples == 97
        assert mel(torch.randn(2, 3, length)).shape == (2, 3, 20, math.ceil(length / 64))

    def test_normalized_divides_by_the_energy_of_the_window(self):
        sizes = dict(sample_rate=RATE, n_fft=256, hop_length=64, win_length=192, n_mels=20)
        wav = torch.randn(1, 1, 800)
        plain, normalized = MelSpectrogram(**sizes)(wav), MelSpectrogram(**sizes, normalized=True)(wav)
        torch.testing.assert_close(normalized, plain / torch.hann_window(192).square().sum())

    def test_tone_is_in_its_band(self):
        mel = MelSpectrogram(sample_rate=RATE, n_fft=512, hop_length=128, n_mels=20, f_min=0.)
        edges = 2595 * math.log10(1 + 1000 / 700), 2595 * math.log10(1 + 4000 / 700)
        band = round(edges[0] / edges[1] * 21) - 1
        assert mel(tone(batch=3)[2:]).mean(dim=-1).argmax() == band

    def test_empty_filters_do_not_warn(self):
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            filters = htk_filters(sample_rate=24000, n_fft=64, n_mels=64, f_min=64., f_max=None)
        assert (filters.sum(dim=1) == 0).any()


def test_log_and_linear_share_a_transform(monkeypatch):
    calls = []
    stft = torch.stft
    monkeypatch.setattr(torch, 'stft', lambda *args, **kwargs: calls.append(args[0].requires_grad) or stft(
        *args, **kwargs))
    LOSSES['msspec']()(tone().requires_grad_(), tone())
    assert calls == [True, False] * 3


def test_alphas_and_normalisation_weigh_the_terms():
    target = tone()
    output = target + 0.1 * torch.randn_like(target)
    sizes = dict(sample_rate=RATE, range_start=6, range_end=7, n_mels=10, normalized=False)
    mel = MelSpectrogram(sample_rate=RATE, n_fft=64, hop_length=16, n_mels=10)
    linear = (mel(output) - mel(target)).abs().mean()
    log = ((mel(output) + 1e-5).log10() - (mel(target) + 1e-5).log10()).square().mean()
    torch.testing.assert_close(MultiScaleMelLoss(**sizes)(output, target), linear + log)
    torch.testing.assert_close(MultiScaleMelLoss(**sizes, alphas=True)(output, target), linear + 63 ** 0.5 * log)


def test_power():
    spec = torch.tensor([3 + 4j, 0j], requires_grad=True)
    power(spec).sum().backward()
    assert power(spec).tolist() == [25, 0] and spec.grad.tolist() == [6 + 8j, 0j]


class TestSISNR:
    def test_known_ratio(self):
        reference = tone(batch=1)
        error = torch.cos(torch.arange(1600) / RATE * 2 * math.pi * 220).view(1, 1, -1)  # orthogonal to the tone
        estimate = 0.5 * (reference + 0.03 * error) + 0.2
        assert si_snr(estimate, reference).tolist() == pytest.approx([20.], abs=1e-3)
        assert SISNRLoss(sample_rate=RATE, segment=None)(estimate, reference).item() == pytest.approx(-20., abs=0.05)

    def test_scale_and_offset_do_not_count(self):
        reference = tone()
        estimate = reference + 0.02 * torch.randn_like(reference)
        expected = si_snr(estimate, reference)
        assert expected.shape == (2,)
        torch.testing.assert_close(si_snr(0.01 * estimate + 0.1, 5 * reference - 1), expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(si_snr(-estimate, reference), expected)
        torch.testing.assert_close(si_snr(estimate[:, 0], reference[:, 0]), expected)

    def test_limits(self):
        reference = tone(batch=1)
        assert si_snr(reference, reference).tolist() == pytest.approx([120.])
        assert si_snr(torch.zeros_like(reference), reference).tolist() == pytest.approx([-120.])
        assert si_snr(reference, torch.zeros_like(reference)).isnan().all()
        assert si_snr(reference * float('nan'), reference).isnan().all()

    def test_mean_over_channels(self):
        reference = tone(batch=1, channels=2)
        estimate = reference + torch.tensor([[[0.01], [0.1]]]) * torch.randn_like(reference)
        each = [si_snr(estimate[:, i], reference[:, i]) for i in range(2)]
        torch.testing.assert_close(si_snr(estimate, reference), (each[0] + each[1]) / 2)

    def test_joint_takes_the_batch_as_one_signal(self):
        target = tone(channels=2) * torch.tensor([1., 0.]).view(2, 1, 1)  # the second item is silent
        output = target + 0.02 * torch.randn_like(target)
        joint = SISNRLoss(sample_rate=RATE, segment=None, joint=True, epsilon=1e-12)(output, target)
        assert joint.item() == pytest.approx(-si_snr(output.reshape(1, -1), target.reshape(1, -1)).item(), abs=1e-3)
        apart = SISNRLoss(sample_rate=RATE, segment=None, epsilon=1e-12)(output, target)
        assert apart > joint + 20
        with pytest.raises(ValueError, match='set segment to null'):
            SISNRLoss(sample_rate=RATE, segment=1., joint=True)

    def test_frames_overlap_by_half(self):
        loss = SISNRLoss(sample_rate=RATE, segment=0.05)
        assert loss._frames(torch.randn(2, 1, 1600)).shape == (2, 1, 8, 400)
        assert loss._frames(torch.randn(2, 1, 1601)).shape == (2, 1, 9, 400)
        assert loss._frames(torch.randn(2, 1, 10)).shape == (2, 1, 1, 400)
        torch.testing.assert_close(loss._frames(torch.randn(2, 1, 1600)).mean(-1), torch.zeros(2, 1, 8), atol=1e-6,
                                   rtol=0)
