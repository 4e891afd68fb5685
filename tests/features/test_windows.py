"""Stores of codes and latents of whole audio files, cut into windows."""
import logging
import shutil
from pathlib import Path

import pytest
import soundfile
import torch

from audiocraft.cli import extract as command
from audiocraft.data.audio import read_audio, write_audio
from audiocraft.data.audio_manifest import AudioMeta, write_manifest
from audiocraft.data.loaders import StoreLoader
from audiocraft.data.manifest import read_table, write_table
from audiocraft.data.mixture import Mixture
from audiocraft.data.store import Store, check_store
from audiocraft.features import extract as extraction
from audiocraft.features import windows as listing
from audiocraft.features.codec import Codec
from audiocraft.features.extract import extract
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build
from audiocraft.utils.errors import UserError

from .codecs import HOP, RATE, Counter, counting
from .media import CODEC, EXTRACTORS, codec, make_audio, make_videos

SECONDS = 10 * HOP / RATE  # ten frames


def run(data: Path | None, out: Path, **options) -> Store:
    """Windows of ten frames, of which the last one has three or more."""
    settings = dict(codec=Counter(), duration=SECONDS, min_duration=3 * HOP / RATE, windows=True, batch_size=3,
                    normalize_audio=False)
    extract(data_dir=data, output_dir=out, **{**settings, **options})
    return Store(out)


def contents(store: Store) -> dict[str, bytes]:
    """The bytes of every file of a store but the facts."""
    inside = {path.name: path.read_bytes() for path in store.files.folder.iterdir()}
    return {**inside, 'tsv': store.files.tsv.read_bytes()}


@pytest.fixture(scope='module')
def sounds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('audio') / 'sounds'
    counting(folder / 'a.wav', 1, 25)
    counting(folder / 'deep' / 'er' / 'b.flac', 101, 10)
    counting(folder / 'deep' / 'c.wav', 201, 4.25)
    counting(folder / 'd.wav', 301, 32)
    write_table(folder.parent / 'captions.tsv', [{'id': 'a', 'caption': 'bells'}, {'id': 'd#2', 'caption': 'the end'},
                                                 {'id': 'c', 'caption': ''}], ['id', 'caption'])
    return folder


def numbers(store: Store, row: int) -> list[int]:
    """The first codebook of an item."""
    return store.item('codes', row)[:, 0].tolist()


def test_codes_of_whole_files(sounds: Path, tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.INFO):
        store = run(sounds, tmp_path / 'out', captions_tsv=sounds.parent / 'captions.tsv')
    assert check_store(tmp_path / 'out', deep=True) == []
    assert store.ids == ['a#0', 'a#1', 'a#2', 'd#0', 'd#1', 'd#2', 'c', 'b']
    assert store.keys == {'codes': ((None, 1), torch.int16)}
    first = {'a#0': 1, 'a#1': 11, 'a#2': 21, 'd#0': 301, 'd#1': 311, 'd#2': 321, 'c': 201, 'b': 101}
    lengths = {'a#2': 5, 'c': 5}
    for row, id in enumerate(store.ids):
        assert numbers(store, row) == list(range(first[id], first[id] + lengths.get(id, 10))), id
    assert store.captions == ['bells'] * 3 + ['', '', 'the end', '', '']
    table = {row['id']: row for row in store.rows}
    assert table['a#2'] == {'id': 'a#2', 'caption': 'bells', 'duration': '0.0625', 'start': '0.25', 'path': 'a.wav'}
    assert (table['c']['duration'], table['b']['path']) == ('0.053125', 'deep/er/b.flac')
    facts = store.facts
    assert (facts['sample_rate'], facts['frame_rate'], facts['duration']) == (RATE, RATE / HOP, SECONDS)
    assert (facts['num_codebooks'], facts['codebook_size'], facts['channels']) == (1, 1024, 1)
    assert facts['lengths'] == {'codes': {'total': 70, 'min': 5, 'max': 10}} and facts['min_duration'] == 0.0375
    assert 'the ends of 1 files are left out, 0.0 s' in caplog.text, 'two frames of d'


def test_short_windows_go_alone(sounds: Path, tmp_path: Path) -> None:
    model = Counter()
    run(sounds, tmp_path / 'out', codec=model)
    assert sorted(model.sizes) == [(1, 1, 425), (1, 1, 500), (3, 1, 1000), (3, 1, 1000)]


def test_batches_are_padded_codes(sounds: Path, tmp_path: Path) -> None:
    store = run(sounds, tmp_path / 'out')
    batch = next(iter(StoreLoader(Mixture([store]), batch_size=8, padding={'codes': -1}, windows={'codes': 7})))
    assert batch.tensors['codes'].shape == (8, 7, 1) and batch.lengths['codes'].tolist() == [7, 7, 5, 7, 7, 7, 5, 7]
    assert batch.tensors['codes'][2, :, 0].tolist() == [21, 22, 23, 24, 25, -1, -1]


def test_channels_are_those_of_the_codec(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    counting(audio / 'two.wav', 1, 5, channels=2)
    counting(audio / 'one.wav', 51, 5)
    stereo, mono = (run(audio, tmp_path / str(n), codec=Counter(channels=n)) for n in (2, 1))
    assert stereo.item('codes', 1).tolist() == [[n, n + 1000] for n in range(1, 6)]
    assert stereo.item('codes', 0).tolist() == [[n, n] for n in range(51, 56)], 'a mono file gives copies'
    assert numbers(mono, 1) == [n + 500 for n in range(1, 6)] and stereo.facts['channels'] == 2


def test_levels_on_demand(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    counting(audio / 'two.wav', 1, 20, channels=2)
    loud = run(audio, tmp_path / 'out', codec=Counter(channels=2), normalize_audio=True)
    highest = max(int(loud.item('codes', row).max()) for row in (0, 1))
    assert highest == round(0.95 * 32768), 'of the loudest channel, over the whole file'


def test_other_rates_give_whole_windows(tmp_path: Path) -> None:
    for rate in (11_025, 16_000, 44_100, 48_000):
        make_audio(tmp_path / 'audio' / f'{rate}.wav', 1, 2.5 * SECONDS, rate, channels=2)
    lengths = run(tmp_path / 'audio', tmp_path / 'out').lengths('codes').tolist()
    assert lengths == [10, 10, 5] * 4


def test_latents_are_ragged_too(sounds: Path, tmp_path: Path) -> None:
    store = run(sounds, tmp_path / 'out', codec=Counter(discrete=False), extractors={'text': EXTRACTORS['text']})
    assert store.keys == {'mean': ((None, 1), torch.float32), 'std': ((None, 1), torch.float32),
                          'text_features': ((4, 8), torch.float32)}
    assert store.lengths('std').tolist() == [10, 10, 5, 10, 10, 10, 5, 10] and 'num_codebooks' not in store.facts
    frames = torch.cat([store.item('mean', row) for row in range(8)])
    assert len(frames) == 70 and store.facts['latent_mean'] == pytest.approx(frames.mean(0).tolist())
    assert store.facts['latent_std'] == pytest.approx(frames.std(0).tolist())


def test_codes_of_videos_have_one_length(tmp_path: Path) -> None:
    media = make_videos(tmp_path / 'media', 2)
    extract(data_dir=media, output_dir=tmp_path / 'out', codec=Counter(codebook_size=40_000), duration=1.)
    assert Store(tmp_path / 'out').keys == {'codes': ((80, 1), torch.int32)}


def test_unusable_files_are_listed(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    counting(audio / 'fine.wav', 1, 12)
    counting(audio / 'short.wav', 1, 2)
    write_audio(audio / 'still.wav', torch.zeros(1, 1000), RATE)
    (audio / 'broken.wav').write_bytes(b'no sound')
    (audio / 'empty.flac').write_bytes(b'')
    wrong = torch.zeros(1000).index_fill(0, torch.tensor(7), float('nan'))
    soundfile.write(audio / 'nan.wav', wrong.numpy(), RATE, subtype='FLOAT')
    store = run(audio, tmp_path / 'out')
    assert store.ids == ['fine'] and store.lengths('codes').tolist() == [10]
    reasons = {row['id']: row['reason'].split(':')[0] for row in read_table(store.files.rejected)}
    assert reasons == {'short': 'too short', 'still': 'silent', 'broken': 'unreadable', 'empty': 'empty',
                       'nan': 'not finite'}


@pytest.mark.parametrize('name', ['data.jsonl', 'list.jsonl.gz'])
def test_a_manifest(sounds: Path, tmp_path: Path, monkeypatch, name: str) -> None:
    expected = run(sounds, tmp_path / 'folder')
    folder = tmp_path / 'moved'
    shutil.copytree(sounds, folder)
    metas = [AudioMeta(str(folder / path), seconds, RATE) for path, seconds in
             (('a.wav', 25 * HOP / RATE), ('gone.wav', 1.), ('deep/c.wav', 0.05))]
    manifest = write_manifest(folder / name, metas)
    monkeypatch.setattr(listing, 'read_metas', None)  # the lengths are known
    store = run(None, tmp_path / 'out', manifest=manifest)
    assert store.ids == ['a#0', 'a#1', 'a#2', 'c'] and store.rows[3]['path'] == 'deep/c.wav'
    assert [numbers(store, row) for row in range(3)] == [numbers(expected, row) for row in range(3)]
    rejected = read_table(store.files.rejected)
    assert rejected[0]['id'] == 'gone#0' and {row['reason'].split(':')[0] for row in rejected} == {'missing'}


def test_names_that_repeat(tmp_path: Path) -> None:
    audio = tmp_path / 'audio'
    for number, name in enumerate(('x/01.wav', 'y/01.wav', 'y/01.flac')):
        counting(audio / name, 100 * number + 1, 12)
    store = run(audio, tmp_path / 'out')
    assert len(set(store.ids)) == 3 and {row['path'] for row in store.rows} == {'x/01.wav', 'y/01.wav', 'y/01.flac'}
    counting(tmp_path / 'clash' / 'a.wav', 1, 20)
    counting(tmp_path / 'clash' / 'a#1.wav', 1, 5)
    with pytest.raises(UserError, match='"a#1": rename one'):
        run(tmp_path / 'clash', tmp_path / 'other')


@pytest.mark.parametrize('total, expected', [
    (30., [(0., 10.), (10., 10.), (20., 10.)]), (30.9, [(0., 10.), (10., 10.), (20., 10.)]),
    (11., [(0., 10.), (10., 1.)]), (9., [(0., 9.)]), (0.5, [(0., 0.5)]), (0., [(0., 0.)])])
def test_cut(total: float, expected: list) -> None:
    assert listing.cut(total, 10., 1.) == expected


# -- stopping, going on, several processes ---------------------------------------------------------------------------

@pytest.mark.parametrize('fail_at', ['a#2', 'd#1', 'b'])
def test_resumed_equals_uninterrupted(sounds: Path, tmp_path: Path, monkeypatch, fail_at: str) -> None:
    expected = contents(run(sounds, tmp_path / 'whole'))
    load = extraction._load

    def failing(reader, item):
        if item.id == fail_at:
            raise KeyboardInterrupt
        return load(reader, item)

    monkeypatch.setattr(extraction, '_load', failing)
    with pytest.raises(KeyboardInterrupt):
        run(sounds, tmp_path / 'out', num_workers=1)
    assert not (tmp_path / 'out').exists()
    monkeypatch.setattr(extraction, '_load', load)
    assert contents(run(sounds, tmp_path / 'out')) == expected


@pytest.mark.parametrize('model', [Counter, codec])
def test_several_processes_and_other_cuts(sounds: Path, tmp_path: Path, model) -> None:
    """Also the latents of a real network have the same bits, wherever batches were cut."""
    expected = contents(run(sounds, tmp_path / 'whole', codec=model()))
    options = dict(data_dir=sounds, output_dir=tmp_path / 'out', codec=model(), duration=SECONDS, windows=True,
                   min_duration=3 * HOP / RATE, batch_size=3, normalize_audio=False)
    extract(**options, rank=2, world_size=3)
    for rank in (1, 0):
        extract(**options, rank=rank, world_size=2)
    assert contents(Store(tmp_path / 'out')) == expected


def test_the_second_time_there_is_nothing_to_do(sounds: Path, tmp_path: Path, monkeypatch) -> None:
    before = contents(run(sounds, tmp_path / 'out'))
    monkeypatch.setattr(extraction, 'Reader', None)
    assert contents(run(sounds, tmp_path / 'out')) == before
    with pytest.raises(UserError, match='holds something else.*min_duration'):
        run(sounds, tmp_path / 'out', min_duration=0.05)


# -- codecs ----------------------------------------------------------------------------------------------------------

ENCODEC = {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': RATE, 'channels': 2,
           'seanet': {'n_filters': 2, 'ratios': [5, 4], 'dimension': 8, 'lstm': 0},
           'quantizer': {'_target_': 'audiocraft.quantization.rvq.ResidualVectorQuantizer', 'dimension': 8, 'n_q': 3,
                         'bins': 16, 'kmeans_init': False}}


def test_encodec_from_the_command_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ENCODEC).eval()
    make_audio(tmp_path / 'audio' / 'x.wav', 3, 0.33, RATE, channels=2)
    wav, _ = read_audio(tmp_path / 'audio' / 'x.wav')
    frames = model.encoder(wav[None])[0].mT.detach()
    for i, layer in enumerate(model.quantizer.vq.layers):
        layer._codebook.embed.copy_(frames[i::8][:16] / 2 ** i)
    save_checkpoint(tmp_path / 'xp' / 'checkpoints', 1, models={'model': model.state_dict()},
                    state={'models': {'model': ENCODEC}})
    arguments = ['--config', 'audio_codes', '--data_dir', f'{tmp_path}/audio', '--output_dir', f'{tmp_path}/out',
                 '--codec', f'{tmp_path}/xp', 'duration=0.2', 'min_duration=0.1', 'batch_size=2']
    assert command.main(command.parser().parse_args(arguments)) == 0
    store = Store(tmp_path / 'out')
    assert store.keys == {'codes': ((None, 3), torch.int16)} and store.lengths('codes').tolist() == [80, 52]
    codes = model.encode(wav[None, :, 1600:]).codes[0].mT
    assert torch.equal(store.item('codes', 1).long(), codes) and len(codes[:, 0].unique()) > 3


def test_a_volume_has_no_place_in_a_store(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match='EncodecModel divides audio by its volume.*renormalize'):
        Codec(build({**ENCODEC, 'renormalize': True}))
    with pytest.raises(UserError, match='volume'):
        run(sounds, tmp_path / 'out', codec=Counter(scaled=True))


def test_messages(sounds: Path, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / 'm.jsonl', [AudioMeta(str(sounds / 'a.wav'), 0.3, RATE)])
    (tmp_path / 'nothing').mkdir()
    clips = tmp_path / 'clips.tsv'
    for options, said in (
            ({'data_dir': None}, 'either data_dir.*or manifest'), ({'manifest': manifest}, 'either data_dir'),
            ({'data_dir': None, 'manifest': manifest, 'windows': False}, 'audio_codes'),
            ({'clips_tsv': clips}, 'not both'), ({'min_duration': 0.}, 'min_duration=0 '),
            ({'min_duration': 2.}, 'at most duration=0.125'), ({'data_dir': tmp_path / 'nothing'}, 'no media file'),
            ({'data_dir': tmp_path / 'nowhere'}, 'no such folder'),
            ({'data_dir': None, 'manifest': tmp_path / 'x.jsonl'}, 'x.jsonl')):
        data = options.pop('data_dir', sounds)
        with pytest.raises(UserError, match=said):
            run(data, tmp_path / 'out', **options)


def test_the_config_of_a_codec_is_a_fact(sounds: Path, tmp_path: Path) -> None:
    store = run(sounds, tmp_path / 'out', codec=codec())
    assert store.facts['extractors']['codec']['build_cfg'] == CODEC
    assert store.facts['extractors']['codec']['keys'] == ['mean', 'std']
