import os

import pytest
import torch

from audiocraft.metrics.feature_cache import LAYOUT, FeatureCache, clean_sample_name
from audiocraft.metrics.frechet import NetworkFrechet
from audiocraft.metrics.inception_score import NetworkInception
from audiocraft.metrics.kl import NetworkKL
from audiocraft.metrics.networks import Panns
from audiocraft.utils.errors import UserError

from .tiny_networks import PANNS, noises, save_weights


@pytest.fixture
def network(tmp_path):
    return Panns(weights=save_weights(tmp_path)['panns'], options=PANNS, device='cpu')


def fill(folder, network, clips):
    features = {clip.id: one for clip, one in zip(clips, network(clips))}
    FeatureCache(folder).write('panns', 'audio', features)
    return features


def test_files_are_those_of_av_benchmark(tmp_path):
    """Written by us, read by torch alone."""
    cache = FeatureCache(tmp_path)
    cache.write('panns', 'audio', {'a': {'2048': torch.ones(3), 'logits': torch.ones(2)}})
    cache.write('passt', 'audio', {'a': {'embedding': torch.ones(3), 'logits': torch.zeros(2)}})
    cache.write('vggish', 'audio', {'a': {'embedding': torch.ones(2, 4)}})
    names = sorted(os.listdir(tmp_path))
    assert names == ['pann_features.pth', 'passt_features_embed.pth', 'passt_logits.pth', 'vggish_features.pth']
    tables = [torch.load(tmp_path / name, weights_only=True)['a'] for name in names]
    assert set(tables[0]) == {'2048', 'logits'} and tables[1].tolist() == [1] * 3 and tables[2].tolist() == [0] * 2
    assert tables[3].shape == (2, 4)
    assert {file for files in LAYOUT.values() for file in files} >= {
        'imagebind_audio.pth', 'imagebind_video.pth', 'synchformer_audio.pth', 'synchformer_video.pth',
        'clap_laion_audio.pth', 'clap_laion_text.pth', 'clap_ms_audio.pth', 'clap_ms_text.pth'}


def test_foreign_files_are_read(tmp_path):
    """With an axis for the batch, and in half precision."""
    torch.save({'b': {'logits': torch.ones(1, 3).half()}, 'a': {'logits': torch.zeros(3)}},
               tmp_path / 'pann_features.pth')
    found = FeatureCache(tmp_path).read('panns', 'audio')
    assert list(found) == ['b', 'a'] and found['b']['logits'].dtype == torch.float32
    assert found['b']['logits'].tolist() == [1.] * 3


@pytest.mark.parametrize('content, words', [
    (b'', 'vggish_features.pth'), (b'not a file of torch', 'vggish_features.pth'), ([1, 2], 'a list'),
    ({}, 'nothing'), ({'a': {'b': torch.ones(2)}}, 'a dict'), ({'a': torch.ones(3)}, r'shape \[3\]'),
    ({1: torch.ones(1, 2)}, 'from ids to tensors'), ({'a': torch.ones(2, 2).long()}, 'int64')])
def test_damaged_or_foreign(tmp_path, content, words):
    path = tmp_path / 'vggish_features.pth'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=words) as caught:
        FeatureCache(tmp_path).read('vggish', 'audio')
    assert str(path) in str(caught.value)


def test_pickled_objects_are_not_loaded(tmp_path):
    torch.save({'a': os.getcwd}, tmp_path / 'vggish_features.pth')
    with pytest.raises(UserError, match='pickled objects'):
        FeatureCache(tmp_path).read('vggish', 'audio')


def test_interrupted_between_two_files(tmp_path):
    cache, one = FeatureCache(tmp_path), {'embedding': torch.ones(3), 'logits': torch.zeros(2)}
    cache.write('passt', 'audio', {'a': one, 'b': one})
    torch.save({'a': torch.ones(2)}, tmp_path / 'passt_logits.pth')
    with pytest.raises(UserError, match='different ids'):
        cache.read('passt', 'audio')
    assert list(cache.read('passt', 'audio', partial=True)) == ['a']


@pytest.mark.parametrize('name, expected', [
    ('000000014_zxpo56cpUBU_000007-0', 'zxpo56cpUBU_000007'), ('zxpo56cpUBU_000007-0', 'zxpo56cpUBU_000007'),
    ('Y---g-f_I2yQ_000001_0', '---g-f_I2yQ_000001'), ('zxpo56cpUBU_000007', 'zxpo56cpUBU_000007'),
    ('foo', 'foo'), ('00008004_3', '00008004_3')])
def test_clean_sample_name(name, expected):
    assert clean_sample_name(name) == expected


class TestAsTruth:
    def test_same_numbers_as_from_media(self, tmp_path, network):
        generated, true = noises(6), noises(6, seed=1)
        fill(tmp_path / 'cache', network, true)
        results = []
        for options, references in (({}, true), ({'cache': str(tmp_path / 'cache')}, [None] * 6)):
            measures = [NetworkKL(network=network, name='KL', feature='logits', **options),
                        NetworkFrechet(network=network, name='FD', feature='2048', paired=True, **options)]
            for metric in measures:
                metric.update(generated, references)
            results.append({key: value for metric in measures for key, value in metric.compute().items()})
        assert results[0] == pytest.approx(results[1])

    def test_paired_by_id(self, tmp_path, network, caplog):
        generated, true = noises(4), noises(6, seed=1)
        features = fill(tmp_path / 'cache', network, true)
        generated[0].id, generated[1].id = 'clip1', 'clip0'
        generated[3].id = 'other'
        metric = NetworkKL(network=network, name='KL', feature='logits', cache=str(tmp_path / 'cache'))
        metric.update(generated, [None] * 4)
        results = metric.compute()
        assert results['KL_n'] == 3. and results['KL_unpaired'] == 1. and 'other' in caplog.text
        pairs = [('clip1', 0), ('clip0', 1), ('clip2', 2)]
        mine = NetworkKL(network=network, name='KL', feature='logits')
        assert results['KL'] == pytest.approx(mine.score(
            [network([generated[place]])[0]['logits'] for _, place in pairs],
            [features[id]['logits'] for id, _ in pairs])['KL'])

    def test_names_of_av_benchmark(self, tmp_path, network):
        clips = noises(2)
        clips[0].id, clips[1].id = 'zxpo56cpUBU_000007', '---g-f_I2yQ_000001'
        fill(tmp_path / 'cache', network, clips)
        generated = noises(2, seed=1)
        generated[0].id, generated[1].id = '000000014_zxpo56cpUBU_000007-0', 'Y---g-f_I2yQ_000001_0'
        counts = []
        for names in ('exact', 'av_benchmark'):
            metric = NetworkKL(network=network, name='KL', cache=str(tmp_path / 'cache'), names=names, feature='logits')
            metric.update(generated, [None] * 2)
            counts.append(metric.compute().get('KL_n'))
        assert counts == [None, 2.]

    def test_all_of_the_cache_where_unpaired(self, tmp_path, network):
        generated, true = noises(3), noises(8, seed=1)
        fill(tmp_path / 'cache', network, true)
        metric = NetworkFrechet(network=network, name='FD', feature='2048', paired=False,
                                cache=str(tmp_path / 'cache'))
        metric.update(generated, [None] * 3)
        mine = NetworkFrechet(network=network, name='FD', feature='2048')
        expected = mine.score(*([one['2048'] for one in network(clips)] for clips in (generated, true)))
        assert metric.compute()['FD'] == pytest.approx(expected['FD'])

    def test_file_that_is_not_there(self, tmp_path, network):
        metric = NetworkKL(network=network, name='KL', feature='logits', cache=str(tmp_path / 'cache'))
        metric.update(noises(2), [None] * 2)
        assert metric.compute()['KL_reason'].startswith('skipped_missing_cache: ')
        assert 'pann_features.pth' in metric.compute()['KL_reason']

    def test_damaged_file_shows_before_the_stage(self, tmp_path, network):
        (tmp_path / 'pann_features.pth').write_bytes(b'nothing')
        with pytest.raises(UserError, match='pann_features.pth'):
            NetworkKL(network=network, name='KL', cache=str(tmp_path))
        NetworkInception(network=network, name='ISC', cache=str(tmp_path))


def test_both_sides_from_caches_need_no_weights(tmp_path, network):
    generated, true = noises(6), noises(6, seed=1)
    fill(tmp_path / 'generated', network, generated)
    fill(tmp_path / 'true', network, true)
    absent = Panns(weights='nowhere.pth')
    metric = NetworkKL(network=absent, name='KL', feature='logits', cache=str(tmp_path / 'true'),
                       generated_cache=str(tmp_path / 'generated'))
    expected = NetworkKL(network=network, name='KL', feature='logits')
    expected.update(generated, true)
    assert metric.compute() == {key: value for key, value in expected.compute().items() if key != 'KL_weights'}


def test_features_of_other_networks(tmp_path, network):
    """In one file, or on one side: said with names, not multiplied."""
    clips = noises(4)
    features = fill(tmp_path / 'cache', network, clips)
    FeatureCache(tmp_path / 'mixed').write('panns', 'audio', {**features, 'x': {'2048': torch.ones(9)}})
    with pytest.raises(UserError, match='the entry "x" has features of other dims'):
        NetworkFrechet(network=network, name='FD', feature='2048', cache=str(tmp_path / 'mixed'))
    with pytest.raises(UserError, match='should hold "other", there are 2048, logits'):
        NetworkFrechet(network=network, name='FD', feature='other', cache=str(tmp_path / 'cache'))
    FeatureCache(tmp_path / 'wide').write('panns', 'audio', {id: {'2048': torch.ones(9)} for id in features})
    metric = NetworkFrechet(network=network, name='FD', feature='2048', cache=str(tmp_path / 'wide'))
    metric.update(clips, [None] * 4)
    assert 'different networks' in metric.compute()['FD_reason']


@pytest.mark.parametrize('content', ['{"x', '[]', '{"panns audio": 3}', '{"panns audio": {"seconds": 8}}'])
def test_damaged_notes(tmp_path, content):
    (tmp_path / 'audiocraft.json').write_text(content)
    with pytest.raises(UserError, match='audiocraft.json is damaged'):
        FeatureCache(tmp_path).about()
