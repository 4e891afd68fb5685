"""`feature_cache` and `score`, as a user runs them, with tiny networks in the place of the published ones."""

import dataclasses
import json

import pytest
import torch
from metrics.tiny_networks import PANNS, VGGISH, noises, save_weights

from audiocraft.cli.dispatch import main
from audiocraft.data.audio import write_audio
from audiocraft.metrics.feature_cache import FeatureCache
from audiocraft.metrics.network_metric import AV_BENCHMARK


def write_clips(folder, clips, suffix='.wav'):
    for clip in clips:
        write_audio(folder / f'{clip.id}{suffix}', clip.audio.clamp(-1, 1), clip.sample_rate)
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with media and a project's own `config/metric/tiny.yaml`: the packaged measures."""
    monkeypatch.chdir(tmp_path)
    files, options = save_weights(tmp_path), {'panns': PANNS, 'vggish': VGGISH}
    used = {'fd_vgg': 'vggish', 'fd_pann': 'panns', 'kl_pann': 'panns', 'isc_pann': 'panns'}
    nodes = {name: {'network': {'weights': files[network], 'options': options[network]}}
             for name, network in used.items()}
    config = {'defaults': [*used, '_self_'],
              'evaluate': {'metrics': {**nodes, 'isc_pann': {**nodes['isc_pann'], 'splits': 2}}}}
    (tmp_path / 'config' / 'metric').mkdir(parents=True)
    (tmp_path / 'config' / 'metric' / 'tiny.yaml').write_text(f'# @package _global_\n{json.dumps(config)}\n')
    write_clips(tmp_path / 'true', noises(5, seed=1))
    write_clips(tmp_path / 'generated', noises(5), '.flac')
    return tmp_path


def run(*arguments):
    return main([*map(str, arguments), '--metric', 'tiny', '--device', 'cpu', '--batch_size', '2', '--seconds', '2'])


def results(folder):
    return json.loads((folder / 'output_metrics.json').read_text())


def test_cache_and_media_give_the_same(place, capsys):
    assert run('score', '--generated', 'generated', '--data_dir', 'true') == 0
    from_media = results(place / 'generated')
    assert run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache') == 0
    assert 'panns of audio: 5 clips' in capsys.readouterr().out
    assert run('score', '--generated', 'generated', '--cache', 'cache') == 0
    from_cache = results(place / 'generated')
    assert list(from_cache) == list(from_media)
    for name, value in from_cache.items():
        assert (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value) == from_media[name]
    names = list(from_cache)
    assert names[:5] == [name for name in AV_BENCHMARK if name in names]
    assert all(from_cache[name] > 0 for name in names[:4]) and from_cache['ISC-PANNS-std'] >= 0
    assert from_cache['generated'] == 5 and from_cache['KL-PANNS-softmax_n'] == 5 and from_cache['unreadable'] == 0
    out = capsys.readouterr().out
    assert 'KL-PANNS-softmax' in out and 'of 5' in out and 'output_metrics.json' in out


def test_caches_of_both_sides(place):
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    run('feature_cache', '--data_dir', 'generated', '--output_dir', 'made', '--side', 'generated')
    assert run('score', '--generated_cache', 'made', '--cache', 'cache') == 0
    assert run('score', '--generated', 'generated', '--cache', 'cache', '--out', 'other.json') == 0
    other = json.loads((place / 'other.json').read_text())
    mine = results(place / 'made')
    assert {key: mine[key] for key in mine if key in AV_BENCHMARK} == pytest.approx(
        {key: other[key] for key in other if key in AV_BENCHMARK})


def test_resumed_by_id(place, monkeypatch, capsys):
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'whole')
    first, seen = sorted((place / 'true').iterdir())[0], []
    first.rename(place / first.name)
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    (place / first.name).rename(first)
    from audiocraft.cli import _measures
    read = _measures.read_whole
    monkeypatch.setattr(_measures, 'read_whole', lambda path, **more: seen.append(path.stem) or read(path, **more))
    assert run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache') == 0
    assert seen == ['clip0']
    first.rename(place / first.name)
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    assert '1 clips of cache are not in true and count all the same: clip0' in capsys.readouterr().out
    for network in ('panns', 'vggish'):
        whole, cache = (FeatureCache(place / name).read(network, 'audio') for name in ('whole', 'cache'))
        assert list(whole) == list(cache)
        for id in whole:
            assert all(torch.allclose(whole[id][key], cache[id][key], atol=1e-5) for key in whole[id])


def test_what_was_made_is_kept_when_it_is_stopped(place, monkeypatch):
    from audiocraft.cli import _measures
    read = _measures.read_whole

    def stopped(path, **more):
        if path.stem == 'clip3':
            raise KeyboardInterrupt
        return read(path, **more)
    monkeypatch.setattr(_measures, 'read_whole', stopped)
    assert run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache') == 130
    assert list(FeatureCache(place / 'cache').read('panns', 'audio')) == ['clip0', 'clip1']


def test_features_of_other_weights_are_not_mixed(place, capsys):
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    torch.save({key: value + 1 for key, value in torch.load(place / 'vggish.pth', weights_only=True).items()},
               place / 'vggish.pth')
    assert run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache') == 1
    assert 'audio features of vggish were made with' in capsys.readouterr().err


def test_unreadable_files_are_named_and_left_out(place, capsys):
    (place / 'generated' / 'clip1.flac').write_bytes(b'no sound')
    (place / 'true' / 'clip2.wav').write_bytes(b'')
    assert run('score', '--generated', 'generated', '--data_dir', 'true') == 0
    found = results(place / 'generated')
    assert found['generated'] == 4 and found['unreadable'] == 2
    assert [path.split('/')[-1] for path in found['unreadable_files']] == ['clip1.flac', 'clip2.wav']
    assert found['KL-PANNS-softmax_n'] == 3 and found['KL-PANNS-softmax_unpaired'] == 1
    assert run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache') == 0
    assert 'clip2' in capsys.readouterr().out
    assert 'clip2' not in FeatureCache(place / 'cache').read('panns', 'audio')


def test_unpaired(place):
    (place / 'generated' / 'clip0.flac').rename(place / 'generated' / 'nobody.flac')
    assert run('score', '--generated', 'generated', '--data_dir', 'true', '--unpaired') == 0
    found = results(place / 'generated')
    assert found['KL-PANNS-softmax'] is None and found['KL-PANNS-softmax_reason'].startswith('skipped_unpaired')
    assert found['FD-PANN'] is not None and found['ISC-PANNS-mean'] is not None


def test_without_weights_every_number_is_null(place, monkeypatch, capsys):
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(place / 'nothing'))
    assert main(['score', '--generated', 'generated', '--data_dir', 'true', '--device', 'cpu']) == 0
    found = results(place / 'generated')
    assert [found[name] for name in AV_BENCHMARK] == [None] * len(AV_BENCHMARK)
    assert all(found[f'{name}_reason'].startswith('skipped_missing_') for name in AV_BENCHMARK)
    assert main(['feature_cache', '--data_dir', 'true', '--output_dir', 'cache', '--device', 'cpu']) == 1
    out = capsys.readouterr()
    assert 'not made: panns of audio: skipped_missing_weights' in out.out and 'None of the networks' in out.err


def test_wrong_use(place, capsys):
    for arguments, words in [
        (['score', '--generated', 'generated'], 'What are the true clips'),
        (['score', '--generated', 'nowhere', '--data_dir', 'true'], 'nowhere'),
        (['score', '--generated', 'generated', '--data_dir', 'true', 'fd_pann.netwrok.weights=x'], 'netwrok'),
    ]:
        assert run(*arguments) == 1
        assert words in capsys.readouterr().err
    assert main(['score', '--generated', 'generated', '--data_dir', 'true', '--metric', 'av_bench']) == 1
    assert 'av_benchmark' in capsys.readouterr().err


def test_all_true_clips_are_one_side_of_a_distance(place):
    """With a cache or with media, whether or not they have a generated clip, and each once."""
    for suffix in ('-0', '-1'):  # two of one name
        write_clips(place / 'part', [dataclasses.replace(clip, id=f'zxpo56cpUBU_00000{i}{suffix}')
                                     for i, clip in enumerate(noises(3, seed=len(suffix)))])
    for i in range(5):
        (place / 'true' / f'clip{i}.wav').rename(place / 'true' / f'zxpo56cpUBU_00000{i}.wav')
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    for more in ((), ('--unpaired',)):
        found = []
        for truth in (('--cache', 'cache'), ('--data_dir', 'true')):
            assert run('score', '--generated', 'part', *truth, '--names', 'av_benchmark', *more) == 0
            scores = results(place / 'part')
            found.append({key: scores[key] for key in AV_BENCHMARK if scores.get(key) is not None})
        assert found[0] == pytest.approx(found[1], rel=1e-4) and found[0]['FD-PANN'] > 0


def test_what_makes_no_sense_is_refused(place, capsys):
    run('feature_cache', '--data_dir', 'true', '--output_dir', 'cache')
    (place / 'bad').mkdir()
    (place / 'bad' / 'a.wav').write_text('text')
    scored = ('score', '--generated', 'generated', '--metric', 'tiny', '--seconds', '2')
    cached = ('feature_cache', '--metric', 'tiny', '--data_dir')
    for arguments, said in (
            ((*scored, '--cache', 'nowhere'), 'no such folder of features'),
            ((*scored, '--cache', 'cache', '--batch_size', '0'), '--batch_size 0'),
            ((*scored, '--cache', 'cache', '--seconds', '3'), 'are of 2 s of each clip'),
            ((*scored, '--cache', 'cache', 'fd_pann.network.weights=other.pth'), 'make them again'),
            ((*cached, 'bad', '--output_dir', 'x'), 'none of its 1 files could be read'),
            ((*cached, 'true', '--output_dir', 'x', '--save_every', '0'), '--save_every 0')):
        if 'other.pth' in str(arguments):
            state = torch.load(place / 'panns.pth', weights_only=True)['model']
            torch.save({key: value + 1 for key, value in state.items()}, place / 'other.pth')
        assert main(list(arguments)) == 1
        assert said in capsys.readouterr().err, arguments
