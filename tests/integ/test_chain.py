"""The main job by the user's own commands, in miniature: what they make, what they refuse, what a kill cannot spoil."""

import json
import random
import shutil
import signal
import subprocess as sp
import threading

import pytest
import torch

from audiocraft.data.audio import read_audio
from audiocraft.data.store import Store
from audiocraft.data.video import read_media_audio, read_video, video_info, write_video
from audiocraft.utils.checkpoint import list_checkpoints

from .chain import (
    CODEC,
    MODEL,
    PARTS,
    ROOT,
    SCHEDULE,
    UPDATES,
    contents,
    differences,
    make_chain,
    outcome,
    signature_in,
    store_contents,
)

pytestmark = pytest.mark.integ

CONTROLS = ['ceiling', 'frozen', 'shifted', 'neutral_caption', 'swapped_caption', 'swapped_caption/of_caption']


@pytest.fixture(scope='module')
def chain(tmp_path_factory):
    return make_chain(tmp_path_factory.mktemp('chain'))


@pytest.fixture(scope='module')
def uninterrupted(chain):
    """What the training left, before any test does something to it."""
    return outcome(chain.xp(chain.model))


# -- what there is in the end ------------------------------------------------------------------------------------------

@pytest.mark.usefixtures('uninterrupted')
def test_what_an_xp_holds(chain):
    xp = chain.xp(chain.model)
    newest = list_checkpoints(xp / 'checkpoints')[-1]
    assert newest.name == str(UPDATES)
    assert {path.name for path in newest.iterdir()} == {
        'COMMIT', 'config.yaml', 'state.pt', 'rng-rank0.pt', 'model.safetensors', 'ema.safetensors', 'best.safetensors'}
    history = json.loads((xp / 'history.json').read_text())
    assert [set(epoch) for epoch in history] == [{'train', 'valid'}] * 2 + [{'train', 'valid', 'evaluate', 'generate'}]
    lines = [json.loads(line) for line in (xp / 'metrics.jsonl').read_text().splitlines()]
    assert [line['stage'] for line in lines if line['kind'] == 'stage'] == [
        'train', 'valid', 'train', 'valid', 'train', 'valid', 'evaluate', 'generate']
    assert lines[0]['metrics'].keys() >= {'loss', 'grad_norm', 'lr'}
    assert lines[0].keys() >= {'speed', 'data_wait', 'eta'}
    log = (xp / 'solver.log.0').read_text()
    assert 'Epoch 3/3' in log and f'Finished: 3 epochs, {UPDATES} updates' in log
    assert '\x1b' not in log and '\x1b' not in ''.join(chain.outputs.values()), 'no escape codes without a terminal'


def test_scores_and_controls(chain):
    content = json.loads((chain.xp(chain.model) / 'evaluate' / f'{UPDATES}.json').read_text())
    scores = content['metrics']
    assert (content['stage'], content['update'], content['epoch']) == ('evaluate', UPDATES, 3)
    assert scores.keys() >= {'loss', 'fd_embedded', 'kl_embedded', 'isc_embedded', 'onset_f1', 'onset_f1_wrong_video',
                             'kind_accuracy', 'duration'}
    for control in CONTROLS:
        assert scores.keys() >= {f'{control}/onset_f1', f'{control}/kind_accuracy'}, control
    assert all(isinstance(value, float | int) for value in scores.values()), scores
    assert json.loads((chain.xp(chain.model) / 'history.json').read_text())[-1]['evaluate'] == scores


def test_samples_and_page(chain):
    xp = chain.xp(chain.model)
    samples = xp / 'generate' / str(UPDATES)
    page = (xp / 'samples' / 'index.html').read_text()
    assert chain.model in page
    for clip in ('clip_00000', 'clip_00001'):
        assert {path.suffix for path in samples.glob(f'{clip}.*')} == {'.wav', '.mp4', '.png', '.json'}
        wav, rate = read_audio(samples / f'{clip}.wav')
        assert (wav.shape, rate) == ((1, 64_000), 16_000) and bool(wav.isfinite().all())
        record = json.loads((samples / f'{clip}.json').read_text())
        assert record['prompt'] and record['update'] == UPDATES and record['checkpoint']
        truth = chain.folder / 'data' / 'example' / 'test' / f'{clip}.mp4'
        assert (samples / record['reference']).resolve() == truth.resolve()
        made, true = read_video(samples / f'{clip}.mp4', fps=5.), read_video(truth, fps=5.)
        assert torch.equal(made.frames[5.], true.frames[5.]) and not torch.equal(made.audio, true.audio)
        assert clip in page
    for name in {part for part in page.split('"') if part.endswith(('.png', '.mp4', '.wav'))}:
        assert (xp / 'samples' / name).is_file(), name


def test_stores_and_codec(chain):
    for part, (clips, _) in PARTS.items():
        store = Store(chain.store(part))
        assert (len(store), store.facts['codec']) == (clips, f'//sig/{chain.codec}')
    assert 'sound.' in chain.audiocraft('check', '--deep', *map(chain.store, PARTS), chain.store('train').parent)
    codec = chain.xp(chain.codec)
    assert 'mel_distance' in json.loads(next((codec / 'evaluate').glob('*.json')).read_text())['metrics']


# -- the same command again, and others about the same XP -------------------------------------------------------------

@pytest.fixture
def untouched(chain):
    """What training made may not change during the test; the checkpoints may not even be written again."""
    xp = chain.xp(chain.model)

    def state():
        kept = [xp / name for name in ('checkpoints', 'history.json', 'metrics.jsonl', 'evaluate', 'generate')]
        return contents(*kept), {str(path): path.stat().st_mtime_ns for path in kept[0].rglob('*')}

    before = state()
    yield
    assert state() == before


@pytest.mark.usefixtures('uninterrupted', 'untouched')
@pytest.mark.parametrize('launcher', [
    ['-m', 'audiocraft', 'run'], ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=1', '-m',
                                  'audiocraft.train']], ids=['audiocraft', 'torchrun'])
def test_the_same_command_only_reports(chain, launcher):
    output = chain.launch(*launcher, *MODEL)
    assert signature_in(output) == chain.model
    assert f'Nothing to do, this XP is finished: 3 epochs, {UPDATES} updates' in output
    assert 'Train |' not in output and 'onset_f1' in output


@pytest.mark.usefixtures('untouched')
def test_the_same_extraction_only_reports(chain):
    before = store_contents(chain.store('test'))
    output = chain.audiocraft('extract', *chain.extract('test', 'data/example/stores/test'))
    assert 'already complete' in output and store_contents(chain.store('test')) == before


@pytest.mark.usefixtures('untouched')
def test_show_trains_nothing(chain):
    output = chain.launch('-m', 'dora', 'run', '-f', chain.model, 'show=true')
    assert signature_in(output) == chain.model and 'MMAudioSolver on cpu' in output and 'model' in output


def test_info(chain):
    """`-t` follows the log for ever: read what it shows, then end it."""
    process = sp.Popen(chain.command('-m', 'dora', 'info', '-f', chain.model, '-m', '-t'), cwd=chain.folder, text=True,
                       env=chain.environment(), stdout=sp.PIPE, stderr=sp.STDOUT, stdin=sp.DEVNULL)
    alarm = threading.Timer(200, process.kill)
    alarm.start()
    lines = []
    for line in process.stdout:
        lines.append(line)
        if '  generate: clips 2' in line:
            break
    process.kill()
    process.communicate()
    alarm.cancel()
    output = ''.join(lines)
    assert str(chain.xp(chain.model)) in output and 'Metrics[3]' in output and '"evaluate"' in output
    assert 'Train Summary | Epoch 1' in output


# -- what is refused ---------------------------------------------------------------------------------------------------

@pytest.mark.usefixtures('untouched')
def test_a_changed_yaml_is_named(chain):
    yaml = chain.folder / 'config' / 'schedule' / 'own.yaml'
    yaml.write_text(SCHEDULE.replace('0.1', '0.2'))
    try:
        output = chain.audiocraft('run', *MODEL, code=1)
    finally:
        yaml.write_text(SCHEDULE)
    assert 'schedule.min_ratio: 0.1 -> 0.2' in output and signature_in(output) == chain.model


@pytest.mark.usefixtures('untouched')
def test_other_data_under_the_same_path_is_named(chain):
    stores = chain.store('valid').parent
    kept = stores.with_name('kept')
    stores.rename(kept)
    shutil.copytree(kept, stores)
    try:
        for suffix in ('', '.tsv', '.facts.json'):
            target, source = stores / f'valid{suffix}', kept / f'test{suffix}'
            shutil.rmtree(target) if target.is_dir() else target.unlink()
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        output = chain.audiocraft('run', *MODEL, code=1)
    finally:
        shutil.rmtree(stores)
        kept.rename(stores)
    assert 'The data of this XP has changed' in output and 'valid' in output


def test_another_data_path_is_another_xp(chain):
    output = chain.audiocraft('sig', *MODEL, 'dset.root=data/other')
    assert len(output.strip()) == 8 and output.strip() != chain.model


def cut_by_one_byte(stores):
    path = stores / 'train' / 'sync_features.memmap'
    path.chmod(0o644)
    with open(path, 'r+b') as file:
        file.truncate(path.stat().st_size - 1)
    return path


def stray_pickle(stores):
    path = stores / 'valid' / 'other.pickle'
    path.write_bytes(b"cos\nsystem\n(S'touch stolen'\ntR.")
    return path


def missing_row(stores):
    """Of the store that is only read at the very end."""
    path = stores / 'test.tsv'
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
    return path


def missing_memmap(stores):
    path = stores / 'train' / 'text_features.memmap'
    path.unlink()
    return path


@pytest.mark.parametrize('damage', [cut_by_one_byte, stray_pickle, missing_row, missing_memmap])
def test_a_damaged_store_is_refused_before_the_first_update(chain, damage):
    root = chain.folder / 'data' / damage.__name__
    shutil.copytree(chain.store('train').parent, root / 'stores')
    for part in PARTS:
        (root / part).symlink_to(chain.folder / 'data' / 'example' / part)
    file = damage(root / 'stores')
    before = contents(root / 'stores')
    output = chain.audiocraft('run', *MODEL, f'dset.root=data/{damage.__name__}', code=1)
    assert file.relative_to(chain.folder).as_posix() in output.split('error: ')[1]
    xp = chain.xp(signature_in(output))
    assert xp.name != chain.model and not (xp / 'metrics.jsonl').exists() and not (xp / 'checkpoints').exists()
    assert contents(root / 'stores') == before and not (chain.folder / 'stolen').exists()
    checked = chain.launch('-m', 'audiocraft', 'check', root / 'stores', code=1) if damage is stray_pickle else ''
    assert checked.count('\n') == (damage is stray_pickle)


# -- one stage alone; other weights ------------------------------------------------------------------------------------

def test_evaluate_in_place(chain, uninterrupted):
    output = chain.audiocraft('run', *MODEL, 'execute_only=evaluate', 'execute_inplace=true')
    assert signature_in(output) == chain.model and 'Evaluate Summary' in output and 'Train |' not in output
    assert differences(outcome(chain.xp(chain.model)), uninterrupted) == [], 'the same scores, to the bit'


def test_evaluate_in_place_needs_a_checkpoint(chain):
    output = chain.audiocraft('run', *MODEL, 'seed=99', 'execute_only=evaluate', 'execute_inplace=true',
                              f'continue_from=//sig/{chain.model}', code=1)
    assert 'no checkpoint in' in output and 'Evaluate Summary' not in output


def test_continue_from(chain, uninterrupted):
    output = chain.audiocraft('run', *MODEL, f'continue_from=//sig/{chain.model}', 'optim.epochs=1',
                              'optim.updates_per_epoch=1', 'evaluate.every=0', 'generate.every=0')
    assert f'continue_from=//sig/{chain.model}: loaded model from "best"' in output
    assert signature_in(output) != chain.model and 'Finished: 1 epochs, 1 updates' in output
    found = {name.split('.')[1] for name in differences(outcome(chain.xp(signature_in(output))), uninterrupted)}
    assert found == {'models', 'state', 'history', 'lines', 'results', 'samples'}, 'the comparison can fail'


# -- sound for any video -----------------------------------------------------------------------------------------------

def moving_square(path, seconds, fps, height, width, **audio):
    """A video of a square that crosses the picture."""
    count = round(seconds * fps)
    frames = torch.full((count, 3, height, width), 30, dtype=torch.uint8)
    for index in range(count):
        left = index * (width - 16) // count
        frames[index, 0, height // 2:height // 2 + 16, left:left + 16] = 220
    return write_video(path, frames, fps, **audio)


def test_sound_for_a_short_silent_mkv(chain):
    video = moving_square(chain.folder / 'short.mkv', 2.2, 10, 96, 64)
    assert not video_info(video).has_audio
    args = ['--xp', chain.model, '--video', video, '--prompt', 'a ball', '--steps', 2, '--seed', 3]
    chain.launch(ROOT / 'scripts' / 'generate.py', *args, '--out', 'made/short.mkv')
    sound, rate = read_media_audio(chain.folder / 'made' / 'short.mkv')
    assert rate == 16_000 and abs(sound.shape[-1] / rate - 2.2) < 0.1 and bool(sound.abs().max() > 0)
    before, after = (read_video(path, fps=10., audio=False) for path in (video, chain.folder / 'made' / 'short.mkv'))
    assert torch.equal(before.frames[10.], after.frames[10.])


def test_sound_for_a_long_video_with_sound(chain):
    """Longer than what the model was trained on: its first seconds, or those that are asked for."""
    video = moving_square(chain.folder / 'long.mp4', 5.5, 30, 120, 214, audio=0.5 * torch.randn(2, 44_100 * 5),
                          sample_rate=44_100)
    args = ['--xp', chain.xp(chain.model), '--video', video, '--steps', 2]
    chain.audiocraft('generate', *args, '--out', 'made/long.mp4')
    made = video_info(chain.folder / 'made' / 'long.mp4')
    sound, rate = read_media_audio(chain.folder / 'made' / 'long.mp4')
    assert (made.width, made.height) == (214, 120) and abs(made.duration - 4) < 0.2
    assert abs(sound.shape[-1] / rate - 4) < 0.1
    chain.audiocraft('generate', *args, '--seconds', 5, '--out', 'made/long.wav')
    wav, _ = read_audio(chain.folder / 'made' / 'long.wav')
    assert wav.shape == (1, 80_000)


def test_what_generate_refuses(chain):
    (chain.folder / 'text.mp4').write_text('not a video\n' * 100)
    good = 'data/example/test/clip_00000.mp4'
    for xp, video, message in [(chain.model, 'text.mp4', 'text.mp4: unreadable'),
                               (chain.model, 'nowhere.mp4', 'nowhere.mp4: missing'),
                               ('0123abcd', good, 'There is no XP with the signature "0123abcd"'),
                               (chain.codec, good, 'is not a video-to-audio model (it holds a MelVAE)')]:
        output = chain.audiocraft('generate', '--xp', xp, '--video', video, '--out', 'no.mp4', code=1)
        assert message in output and len(output.splitlines()) == 1
    assert not (chain.folder / 'no.mp4').exists()


# -- interrupted -------------------------------------------------------------------------------------------------------

def drawn(seed, kind, low, high):
    return f'{kind}:{random.Random(seed).randint(low, high)}'


@pytest.mark.parametrize('where, name', [
    (drawn(1, 'train', 1, UPDATES), 'SIGTERM'), (drawn(2, 'save', 1, 70), 'SIGKILL'),
    (drawn(3, 'commit', 1, 2), 'SIGKILL'), (drawn(4, 'generated', 2, 10), 'SIGTERM')],
    ids=['term_in_epoch', 'kill_in_save', 'kill_between_epochs', 'term_in_evaluate'])
def test_resumed_equals_uninterrupted(chain, uninterrupted, where, name):
    dora_dir = chain.fresh_dora_dir(f'killed_{where.replace(":", "_")}')
    chain.interrupt(where, name, 'run', *MODEL, dora_dir=dora_dir, code=143 if name == 'SIGTERM' else -signal.SIGKILL)
    xp = chain.xp(chain.model, dora_dir)
    assert not (xp / 'generate').exists(), 'it was interrupted before the end'
    output = chain.audiocraft('run', *MODEL, dora_dir=dora_dir)
    assert f'{UPDATES} updates' in output.split('Finished')[1]
    assert differences(outcome(xp), uninterrupted) == []
    assert not list((xp / 'checkpoints').glob('.t*')), 'nothing is left of the interruption'


def test_an_extraction_that_was_killed(chain):
    args = chain.extract('train', 'stores/killed')
    chain.interrupt(drawn(5, 'item', 6, 14), 'SIGKILL', 'extract', *args, code=-signal.SIGKILL)
    assert not chain.store('killed', '.').exists() and (chain.folder / 'stores' / 'killed.partial').is_dir()
    output = chain.audiocraft('extract', *args)
    done, todo = map(int, output.split('Extract | killed | ')[1].split(' ')[0].split('/'))
    assert done == todo < PARTS['train'][0], 'it went on from where it was'
    assert store_contents(chain.store('killed', '.')) == store_contents(chain.store('train'))
    assert not (chain.folder / 'stores' / 'killed.partial').exists()


def test_an_extraction_by_two_processes(chain):
    chain.launch('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', ROOT / 'scripts' / 'extract.py',
                 *chain.extract('train', 'stores/two'))
    assert store_contents(chain.store('two', '.')) == store_contents(chain.store('train'))


def test_the_codec_also_only_reports(chain):
    assert 'Nothing to do' in chain.audiocraft('run', *CODEC)
