import gc
import importlib.machinery
import logging
import sys
import types

import pytest
import torch

from audiocraft.data.samples import Clip
from audiocraft.data.video import write_video
from audiocraft.metrics import clap, imagebind, networks
from audiocraft.metrics.cosine import NetworkCosine
from audiocraft.metrics.frechet import NetworkFrechet, frechet_distance, gaussian
from audiocraft.metrics.inception_score import NetworkInception, inception_score
from audiocraft.metrics.kl import NetworkKL, kl_softmax
from audiocraft.utils.config import build
from audiocraft.utils.errors import UserError

from .tiny_networks import PANNS, VGGISH, Counting, noises, save_weights


@pytest.fixture
def files(tmp_path):
    return save_weights(tmp_path)


def tiny_panns(files, **options):
    return networks.Panns(weights=files['panns'], options=PANNS, device='cpu', **options)


def tiny_vggish(files):
    return networks.Vggish(weights=files['vggish'], options=VGGISH, device='cpu')


class TestFeatures:
    def test_panns(self, files):
        clips = noises(3)
        found = tiny_panns(files)(clips)
        assert {key: list(value.shape) for key, value in found[0].items()} == {
            '2048': [6], 'logits': [5], 'clipwise_output': [5]}
        assert torch.allclose(found[1]['clipwise_output'], found[1]['logits'].sigmoid())
        alone = tiny_panns(files, batch_size=1)(clips[1:2])
        assert torch.allclose(alone[0]['logits'], found[1]['logits'], atol=1e-5)

    def test_lengths_may_differ_and_seconds_cut(self, files):
        clips = [*noises(2), *noises(1, seconds=1.), *noises(1, seconds=0.001)]
        network = tiny_panns(files, seconds=1.)
        cut = [Clip(clip.id, clip.audio[:, :16_000], 16_000) for clip in clips]
        whole = tiny_panns(files)(cut)
        assert all(one['logits'].isfinite().all() for one in whole)
        # The mean is taken of the whole clip, as upstream does, and therefore is not quite the same.
        assert torch.allclose(network(clips)[0]['logits'], whole[0]['logits'], atol=1e-2)

    def test_vggish_has_one_for_each_window(self, files):
        found = tiny_vggish(files)([*noises(1, seconds=3.), *noises(1, seconds=0.1)])
        assert [list(one['embedding'].shape) for one in found] == [[3, 4], [1, 4]]

    def test_resampled_and_mono(self):
        wav = torch.randn(2, 8000)
        mono = networks.mono(Clip('a', wav + 3., 8000), 16_000, 0.5)
        assert mono.shape == (8000,) and abs(float(mono.mean())) < 0.02

    def test_not_made_twice_for_a_clip(self):
        network, clips = Counting(), noises(2)
        network([*clips, clips[0]])
        network(clips[1:])
        assert network.heard == 2
        network([Clip('clip0', clips[0].audio, 16_000)])
        assert network.heard == 3

    def test_forgotten_with_the_clip(self):
        network, clips = Counting(), noises(2)
        network(clips)
        del clips
        gc.collect()
        assert not network._features._kept


class TestSharing:
    def test_one_for_equal_arguments(self, files):
        first = networks.panns(weights=files['panns'], options=PANNS)
        assert networks.panns(weights=files['panns'], options=dict(PANNS)) is first
        assert networks.panns(weights=files['vggish'], options=PANNS) is not first

    def test_measures_of_one_run_share(self, files):
        node = {'_target_': 'audiocraft.metrics.networks.panns', 'weights': files['panns'], 'options': PANNS}
        kl = build({'_target_': 'audiocraft.metrics.kl.NetworkKL', 'name': 'KL', 'network': node})
        fd = build({'_target_': 'audiocraft.metrics.frechet.NetworkFrechet', 'name': 'FD', 'network': node})
        assert kl.network is fd.network


class TestMissing:
    def test_weights(self, caplog, monkeypatch, tmp_path):
        monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path))
        networks.warn_once.cache_clear()
        with caplog.at_level(logging.WARNING):
            measures = [NetworkFrechet(network=networks.Panns(), name='FD-PANN', feature='2048'),
                        NetworkInception(network=networks.Panns(), name='ISC-PANNS')]
        assert len(caplog.records) == 1
        for metric in measures:
            metric.update(noises(2), noises(2))
        results = measures[0].compute() | measures[1].compute()
        assert [results[key] for key in ('FD-PANN', 'ISC-PANNS-mean', 'ISC-PANNS-std')] == [None] * 3
        for key in ('FD-PANN', 'ISC-PANNS-std'):
            reason = results[f'{key}_reason']
            assert reason.startswith('skipped_missing_weights: ') and 'Cnn14_16k_mAP=0.438.pth' in reason
            assert 'weights fetch panns_cnn14_16k' in reason

    def test_package(self, monkeypatch):
        monkeypatch.setattr(networks.importlib.util, 'find_spec', lambda name: None)
        for network in (networks.Passt(), clap.ClapLaion(), imagebind.ImageBind()):
            assert network.missing.startswith('skipped_missing_package: '), network.name
        assert clap.ClapMs().missing.startswith('skipped_missing_package: ')

    def test_other_weights_are_refused(self, files, tmp_path):
        wrong = networks.Panns(weights=files['vggish'], options=PANNS, device='cpu')
        with pytest.raises(UserError, match='vggish.pth does not fit Cnn14'):
            wrong(noises(1))
        (tmp_path / 'damaged.pth').write_bytes(b'PK\x03\x04 not a file of weights')
        with pytest.raises(UserError, match='damaged.pth'):
            networks.Panns(weights=str(tmp_path / 'damaged.pth'))(noises(1))

    def test_moved_weights(self):
        assert 'nowhere.pth' in networks.Panns(weights='nowhere.pth').missing


class TestMeasures:
    def test_frechet_of_all_windows(self, files):
        generated, true = noises(4, seconds=3.), noises(6, seconds=2., seed=1)
        network = tiny_vggish(files)
        metric = NetworkFrechet(network=network, name='FD-VGG', paired=False)
        metric.update(generated[:2], [None, None])
        metric.update(generated[2:], [None, None])
        assert metric.compute()['FD-VGG'] is None
        metric.reset()
        metric.update(generated, true[:4])
        results = metric.compute()
        a, b = (torch.cat([one['embedding'] for one in network(clips)]) for clips in (generated, true[:4]))
        assert len(a) == 12 and len(b) == 8
        assert results['FD-VGG'] == pytest.approx(frechet_distance(*gaussian(a), *gaussian(b)))
        assert results['FD-VGG_n'] == 8. and len(results['FD-VGG_weights']) == 64

    def test_kl_of_pairs(self, files):
        generated, true = noises(3), noises(3, seed=1)
        network = tiny_panns(files)
        metric = NetworkKL(network=network, name='KL', feature='logits')
        metric.update(generated, [true[0], None, true[2]])
        results = metric.compute()
        logits = [torch.stack([network([one])[0]['logits'] for one in (clips[0], clips[2])]).double()
                  for clips in (true, generated)]
        assert results['KL'] == pytest.approx(float(kl_softmax(*logits).mean()))
        assert results['KL_n'] == 2. and results['KL_unpaired'] == 1.

    def test_only_pairs_where_asked_for(self, files):
        generated, true = noises(4), noises(4, seed=1)
        results = {}
        for paired in (True, False):
            metric = NetworkFrechet(network=tiny_panns(files), name='FD', feature='2048', paired=paired)
            metric.update(generated, [*true[:3], None])
            results[paired] = metric.compute()
        assert results[True]['FD_unpaired'] == 1. and 'FD_unpaired' not in results[False]
        assert results[True]['FD'] != results[False]['FD']

    def test_inception(self, files):
        clips, network = noises(4), tiny_panns(files)
        metric = NetworkInception(network=network, name='ISC', splits=2)
        metric.update(clips[:1], [None])
        few = metric.compute()
        assert few['ISC-mean'] is None and few['ISC-std'] is None and '2 splits' in few['ISC-std_reason']
        metric.update(clips[1:], [None] * 3)
        results = metric.compute()
        logits = torch.stack([one['logits'] for one in network(clips)])
        assert (results['ISC-mean'], results['ISC-std']) == pytest.approx(inception_score(logits, splits=2))

    def test_words(self):
        clips = noises(2)
        clips[1].caption = ''
        metric = NetworkCosine(network=Counting(), name='CLAP', true_source='text')
        metric.update(clips, [None, None])
        results = metric.compute()
        expected = torch.cosine_similarity(torch.stack([clips[0].audio.mean(), clips[0].audio.std()]),
                                           torch.tensor([7., 1.]), dim=0)
        assert results['CLAP'] == pytest.approx(float(expected), abs=1e-6)
        assert results['CLAP_n'] == 1. and results['CLAP_unpaired'] == 1.

    def test_not_finite(self):
        clips = noises(2)
        clips[0].audio[0, 0] = torch.nan
        metric = NetworkCosine(network=Counting(), name='CLAP', true_source='text')
        metric.update(clips, [None, None])
        assert metric.compute()['CLAP_reason'] == 'features are not finite'

    def test_nothing_generated(self, files):
        metric = NetworkKL(network=tiny_panns(files), name='KL')
        assert metric.compute()['KL_reason'] == 'there are no generated clips'


class TestFrontEnds:
    def test_clap_fills_by_repetition(self):
        wav = torch.arange(1., 4.)
        assert clap.fill(wav, 8).tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
        assert clap.fill(wav, 2).tolist() == [1, 2]
        assert clap.fill(wav[:0], 2).tolist() == [0, 0]
        assert clap.logmel(torch.randn(2, clap.SAMPLES)).shape == (2, 1, 1001, 64)

    def test_names_of_laion(self):
        state = {'module.audio_branch.layers.0.blocks.1.attn.qkv.weight': torch.arange(6.)[:, None],
                 'module.audio_branch.layers.0.blocks.1.attn_mask': torch.zeros(1),
                 'module.audio_branch.layers.0.blocks.1.norm2.bias': torch.zeros(1),
                 'module.audio_branch.layers.0.blocks.1.attn.proj.bias': torch.zeros(1),
                 'module.audio_branch.bn0.weight': torch.zeros(1), 'module.text_projection.2.bias': torch.zeros(1),
                 'module.text_branch.encoder.layer.0.attention.self.key.bias': torch.zeros(1),
                 'module.text_transform.sequential.0.weight': torch.zeros(1),
                 'module.logit_scale_a': torch.zeros(1)}
        found = clap.from_laion(state)
        block = 'audio_model.audio_encoder.layers.0.blocks.1.'
        assert set(found) == {*(f'{block}attention.self.{part}.weight' for part in ('query', 'key', 'value')),
                              f'{block}layernorm_after.bias', f'{block}attention.output.dense.bias',
                              'audio_model.audio_encoder.batch_norm.weight', 'text_projection.linear2.bias',
                              'text_model.encoder.layer.0.attention.self.key.bias', 'logit_scale_a'}
        assert found[f'{block}attention.self.key.weight'].flatten().tolist() == [2, 3]

    def test_imagebind_hears_three_clips(self):
        assert imagebind.clip_starts(8.) == [0., 3., 6.]
        assert imagebind.clip_starts(1.) == [0., 0., 0.]
        wav = torch.randn(16_000 * 8)
        found = imagebind.sound(wav)
        assert found.shape == (3, 1, 128, 204)
        assert torch.allclose(found[1], (imagebind.mel(wav[48_000:80_000]) - imagebind.MEAN) / imagebind.STD)

    @pytest.mark.parametrize('height, width', [(30, 40), (40, 30), (30, 30)])
    def test_imagebind_sees_pairs_through_three_squares(self, height, width):
        frames = torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8)
        found = imagebind.pictures(frames, side=16)
        assert found.shape == (9, 3, 2, 16, 16)
        assert torch.equal(found[0][:, 1], found[3][:, 0])
        assert torch.equal(found[0], found[2]) == (height == width)


class TestPackages:
    """The adapters call the packages of others as they are; the packages are stood in for."""

    @pytest.fixture
    def passt(self, monkeypatch, tmp_path):
        calls = []

        class Net(torch.nn.Linear):
            embed_dim = 768

        class Wrapper(torch.nn.Module):
            def __init__(self, *, mel, net, mode):
                super().__init__()
                self.net = net

            def forward(self, wav):
                calls.append(tuple(wav.shape))
                print('as the package does')
                return wav.mean(1, keepdim=True).expand(len(wav), 527 + 768)

        def get_model(**options):
            calls.append(options)
            return Net(2, 1)
        for name, values in {'': {}, '.models': {}, '.models.passt': {'get_model': get_model},
                             '.models.preprocess': {'AugmentMelSTFT': dict}, '.wrapper': {'PasstBasicWrapper': Wrapper}
                             }.items():
            module = types.ModuleType(f'hear21passt{name}')
            module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        torch.save(Net(2, 1).state_dict(), tmp_path / 'passt.pt')
        return networks.Passt(weights=str(tmp_path / 'passt.pt'), device='cpu'), calls

    def test_passt(self, passt, capsys):
        network, calls = passt
        assert network.missing == ''
        found = network([*noises(1, seconds=1.), *noises(1, seconds=11.)])
        assert calls == [{'arch': 'passt_s_swa_p16_128_ap476', 'pretrained': False}, (2, 320_000)]
        assert [list(found[0][key].shape) for key in ('logits', 'embedding')] == [[527], [768]]
        assert capsys.readouterr().out == ''

    def test_imagebind(self, monkeypatch, tmp_path):
        class Net(torch.nn.Linear):
            def forward(self, inputs):
                return {key: value.flatten(1)[:, :4] for key, value in inputs.items()}

        models = types.SimpleNamespace(imagebind_huge=lambda pretrained: Net(1, 1))
        for name, values in {'imagebind': {}, 'imagebind.models': {'imagebind_model': models}}.items():
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            vars(module).update(values)
            monkeypatch.setitem(sys.modules, name, module)
        torch.save(Net(1, 1).state_dict(), tmp_path / 'imagebind.pth')
        network = imagebind.ImageBind(weights=str(tmp_path / 'imagebind.pth'), device='cpu')
        assert network.missing == '' and network(noises(2))[0]['embedding'].shape == (4,)
        write_video(tmp_path / 'a.mp4', torch.randint(0, 256, (60, 3, 32, 48), dtype=torch.uint8), 10.)
        clips = [Clip('a', torch.zeros(1, 0), 16_000, media=tmp_path / 'a.mp4'), *noises(1)]
        found = network(clips, 'video')
        assert found[0]['embedding'].shape == (4,) and found[1] is None
