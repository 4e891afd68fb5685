"""Sound from a video, a picture and words, of any length."""

from pathlib import Path

import pytest
import torch

from audiocraft.data.media import MediaError
from audiocraft.data.video import read_video, write_video
from audiocraft.features import video_to_audio
from audiocraft.features.controls import Conditions
from audiocraft.features.online import OnlineFeatures
from audiocraft.features.video_to_audio import VideoToAudio
from audiocraft.flow import samplers
from audiocraft.models.mmaudio import MMAudio
from audiocraft.models.published import mmaudio as published
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.errors import UserError

from .generation import MMAUDIO, SECONDS, STEPS, facts, make_xp, moving_square, picture, random_codec, random_model

RATES = (16_000, 44_100)


def sound(rate: int = 16_000, **options) -> VideoToAudio:
    return VideoToAudio(random_model(rate), random_codec(rate), OnlineFeatures(facts(rate)), **options)


@pytest.fixture(scope='module')
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('media')
    moving_square(folder / 'a.mp4', 9.5)
    moving_square(folder / 'b.mp4', 2., left=20)
    picture(folder / 'x.png')
    picture(folder / 'y.jpg', 90)
    return folder


@pytest.fixture(scope='module')
def model() -> VideoToAudio:
    return sound()


def different(*wavs: torch.Tensor) -> bool:
    return all((a - b).abs().max() > 1e-3 for i, a in enumerate(wavs) for b in wavs[:i])


@pytest.mark.parametrize('rate', RATES)
@pytest.mark.parametrize('seconds', [1., 4., 8., 9.3])
def test_lengths(media: Path, rate: int, seconds: float) -> None:
    model = sound(rate)
    clip, sync = round(8 * seconds), int(24 * seconds) // 8 * 8
    latent = -(-round(seconds * rate) // (512 if rate == 16_000 else 1024))
    for given in (dict(video=media / 'a.mp4'), dict(prompt='a ball'), dict(image=media / 'x.png')):
        wav = model(**given, seconds=seconds, steps=1)
        assert wav.shape == (1, 1, round(seconds * rate)) and bool(wav.isfinite().all()) and bool(wav.any())
        network = model.model
        assert (network.latent_seq_len, network.clip_seq_len, network.sync_seq_len) == (latent, clip, sync), given


def test_lengths_of_the_published_models_without_video(model: VideoToAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of 16 frames at 25 a second; 24 of them in the 8 s of the training."""
    monkeypatch.setattr(model, '_trained', (64, 192))
    monkeypatch.setattr(model, 'duration', 8.)
    monkeypatch.setattr(OnlineFeatures, 'rates', {'sync_features': 25.})
    lengths = {seconds: tuple(model._lengths_without(seconds).values()) for seconds in (1., 4., 8., 9.3)}
    assert lengths == {1.: (8, 16), 4.: (32, 88), 8.: (64, 192), 9.3: (74, 224)}


def test_the_length_is_that_of_the_training_by_default(model: VideoToAudio) -> None:
    assert model(steps=1).shape[-1] == SECONDS * 16_000


def test_everything_that_is_given_matters(model: VideoToAudio, media: Path) -> None:
    video, options = media / 'a.mp4', dict(steps=STEPS, seconds=1.)
    assert different(*(model(**given, **options) for given in (
        {}, dict(prompt='a ball'), dict(prompt='a drum'), dict(video=video), dict(video=media / 'b.mp4'),
        dict(video=video, prompt='a ball'), dict(video=video, motion_only=True), dict(image=media / 'x.png'),
        dict(image=media / 'y.jpg'), dict(image=media / 'x.png', prompt='a ball'), dict(prompt='a ball', guidance=1.),
        dict(prompt='a ball', negative_prompt='rain'), dict(prompt='a ball', seed=43),
        dict(prompt='a ball', method='midpoint'))))


def test_a_seed_gives_the_same_sound_again(model: VideoToAudio, media: Path) -> None:
    given = dict(video=media / 'b.mp4', prompt='a ball', steps=STEPS, seconds=1.)
    first = model(**given)
    model(prompt='something else', steps=1, seconds=2.)
    assert torch.equal(model(**given), first)


def by_hand(media: Path, prompt: str, negative: str, scale: float) -> torch.Tensor:
    """Euler's steps with two calls of the network for each; the latents `[1, C, N]`."""
    network, features = random_model(), OnlineFeatures(facts())
    made = features([Conditions('', features.read(media / 'a.mp4', SECONDS), prompt, '')], SECONDS).tensors
    with torch.no_grad():
        full = network.preprocess_conditions(*(made[f'{name}_features'] for name in ('clip', 'sync', 'text')))
        empty = network.empty_conditions(1, features.text(negative)[None] if negative else None)
        x = sound()._noise(42, 1)
        for step in range(STEPS):
            t = torch.tensor([step / STEPS])
            flow = network.predict_flow(x, t, full)
            if scale > 1:
                flow = scale * flow + (1 - scale) * network.predict_flow(x, t, empty)
            x = x + flow / STEPS
        return network.unnormalize(x).mT


class Latents(torch.nn.Module):
    """Stands for a codec whose sound is its latents."""
    sample_rate = 16_000

    def latent_shape(self, samples: int) -> tuple[int, int]:
        return random_codec().latent_shape(samples)

    def decode(self, latents: torch.Tensor, num_samples: int) -> torch.Tensor:
        return latents


def latents_of(**options) -> VideoToAudio:
    return VideoToAudio(random_model(), Latents(), OnlineFeatures(facts()), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize('method', samplers.METHODS)
def test_samples_are_those_of_their_own(media: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what it is alone, whatever the size of the batch."""
    monkeypatch.setattr(samplers, 'TOLERANCE', 1e-2)
    given = dict(video=media / 'b.mp4', prompt='a ball', steps=STEPS, seconds=0.5, method=method, guidance=1.5)
    model = latents_of()
    three, two, one = (model(**given, samples=count) for count in (3, 2, 1))
    assert different(*three)
    close = dict(rtol=0, atol=1e-5 * float(three.abs().max()))
    torch.testing.assert_close(three[:2], two, **close)
    torch.testing.assert_close(three[:1], one, **close)


@pytest.mark.parametrize('prompt, negative, scale, calls', [
    ('a ball', '', 4.5, STEPS), ('a ball', 'rain', 2., STEPS), ('', '', 4.5, STEPS), ('a ball', '', 1., STEPS)])
def test_guidance_is_one_call_and_equals_two(media: Path, prompt: str, negative: str, scale: float, calls: int,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    model = latents_of(guidance=3.)
    sizes, prepared = [], []
    predict, prepare = MMAudio.predict_flow, MMAudio.preprocess_conditions
    monkeypatch.setattr(MMAudio, 'predict_flow', lambda self, x, *rest: sizes.append(len(x)) or predict(self, x, *rest))
    monkeypatch.setattr(MMAudio, 'preprocess_conditions', lambda *a: prepared.append(1) or prepare(*a))
    got = model(media / 'a.mp4', prompt=prompt, negative_prompt=negative, guidance=scale, steps=STEPS, samples=2)
    assert sizes == [4 if scale > 1 else 2] * calls and len(prepared) == (2 if scale > 1 else 1)
    monkeypatch.undo()
    if prompt:
        torch.testing.assert_close(got[:1], by_hand(media, prompt, negative, scale), rtol=1e-4, atol=1e-4)


def test_without_words_the_null_of_the_network_stands(media: Path) -> None:
    """Not the features of an empty text, which an extractor would have to be loaded for."""
    model = sound()
    model(media / 'a.mp4', steps=1)
    assert set(model.features._loaded) == {'image', 'motion'}
    before = model(media / 'a.mp4', steps=STEPS)
    model.model.empty_string_feat.data += 1.
    assert different(before, model(media / 'a.mp4', steps=STEPS))


@pytest.mark.parametrize('given, loaded', [
    (dict(prompt='x'), {'text'}), (dict(image='x.png'), {'image'}), (dict(video='a.mp4', motion_only=True), {'motion'}),
    (dict(), set()), (dict(negative_prompt='x'), {'text'})])
def test_only_what_is_needed_is_loaded(media: Path, given: dict, loaded: set) -> None:
    model = sound()
    model(**{key: media / x if key in ('video', 'image') else x for key, x in given.items()}, steps=1, seconds=1.)
    assert set(model.features._loaded) == loaded


def test_less_memory_changes_nothing(media: Path) -> None:
    given = dict(video=media / 'b.mp4', prompt='a ball', steps=STEPS, seconds=1.)
    frugal = sound(keep_loaded=False)
    assert torch.equal(frugal(**given), sound()(**given)) and not frugal.features._loaded
    assert torch.equal(frugal(**given), sound()(**given)), 'also the second time'


def test_bfloat16_is_autocast_with_half_the_memory(media: Path) -> None:
    given = dict(video=media / 'b.mp4', prompt='a ball', steps=STEPS, seconds=1.)
    exact, half = sound(), sound(dtype='bfloat16')
    assert half.model.fused_blocks[0].linear1.weight.dtype == torch.bfloat16
    assert half.model.latent_mean.dtype == half.model.empty_clip_feat.dtype == torch.float32
    autocast = sound()
    autocast.dtype = torch.bfloat16
    wav = half(**given)
    assert torch.equal(wav, autocast(**given))
    assert 0 < (wav - exact(**given)).abs().max() < 0.1 * wav.abs().max()


def test_an_image_is_a_video_of_it_that_does_not_move(media: Path, model: VideoToAudio) -> None:
    still = model.extract(None, media / 'x.png', '', 2.)
    assert set(still) == {'clip_features'} and still['clip_features'].shape[:2] == (1, 16)
    frame = read_video(media / 'x.png', fps=1., audio=False).frames[1.][0]
    frames = frame.expand(20, *frame.shape)
    write_video(media / 'still.mkv', frames, 10., options={'crf': '0'})
    moving = model.extract(media / 'still.mkv', None, '', 2.)
    torch.testing.assert_close(still['clip_features'], moving['clip_features'], atol=0.1, rtol=0)


def test_what_is_refused(media: Path, model: VideoToAudio) -> None:
    video = media / 'b.mp4'
    for given, said in (
            (dict(video=video, seconds=4.), 'b.mp4: too short'), (dict(video=video, image=media / 'x.png'), 'not both'),
            (dict(seconds=0.), 'seconds 0'), (dict(samples=0), 'samples 0'), (dict(steps=0), 'steps 0'),
            (dict(motion_only=True), 'motion_only'), (dict(negative_prompt='x', guidance=1.), 'above 1, not 1'),
            (dict(seconds=0.1), '0.1 s are too short'), (dict(video=video, seconds=0.1), '0.1 s are too short'),
            (dict(video=media / 'no.mp4'), 'missing'), (dict(method='x'), 'euler, midpoint, adaptive')):
        with pytest.raises(UserError, match=said):
            model(**given)
    with pytest.raises(UserError, match='bfloat16'):
        sound(dtype='bfloat16')(method='adaptive')
    with pytest.raises(MediaError):
        model(video, seconds=4.)
    with pytest.raises(UserError, match='float16'):
        sound(dtype='float16')


def test_the_features_of_mmaudio(media: Path) -> None:
    """CLIP and Synchformer, small and random, through all ways."""
    pytest.importorskip('open_clip')
    model = VideoToAudio(random_model(44_100, nodes=MMAUDIO), random_codec(44_100),
                         OnlineFeatures(facts(44_100, nodes=MMAUDIO)))
    video, image, options = media / 'a.mp4', media / 'x.png', dict(steps=STEPS, seconds=1.5)
    assert different(*(model(**given, **options) for given in (
        {}, dict(prompt='a ball'), dict(video=video), dict(video=video, prompt='a ball'), dict(image=image),
        dict(video=video, motion_only=True), dict(prompt='a ball', negative_prompt='rain'))))
    for seconds, clip, sync in ((1., 8, 16), (4., 32, 88), (9.3, 74, 224)):
        for given in (dict(video=video), dict(prompt='a ball'), dict(image=image)):
            assert model(**given, seconds=seconds, steps=1).shape == (1, 1, round(44_100 * seconds))
            assert (model.model.clip_seq_len, model.model.sync_seq_len) == (clip, sync), given


# -- from what is stored ---------------------------------------------------------------------------------------------

def test_an_xp(tmp_path: Path) -> None:
    model = VideoToAudio.load(make_xp(tmp_path), device='cpu')
    assert (model.guidance, model.sample_rate, model.duration) == (3., 16_000, SECONDS)
    same = VideoToAudio(random_model(), random_codec(vocoder=False), OnlineFeatures(facts()), guidance=3.)
    assert torch.equal(model(prompt='a ball', steps=STEPS), same(prompt='a ball', steps=STEPS))
    with pytest.raises(UserError, match='not a video-to-audio model .it holds a MelVAE.'):
        VideoToAudio.load(tmp_path / 'codec')


def test_no_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xp = make_xp(tmp_path)
    monkeypatch.setattr(video_to_audio, 'from_yaml', lambda text: {})
    with pytest.raises(UserError, match='give --codec'):
        VideoToAudio.load(xp)
    assert VideoToAudio.load(xp, codec=str(tmp_path / 'codec')).guidance == 4.5, 'when the config says nothing'


def test_published_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, media: Path) -> None:
    """By name, as a file of weights alone; extractors and codec are those of the embedded kind here."""
    make_xp(tmp_path)
    monkeypatch.setenv('AUDIOCRAFT_WEIGHTS', str(tmp_path / 'weights'))
    told = facts() | {'duration': 8., 'codec': str(tmp_path / 'codec')}
    monkeypatch.setattr(published, 'published_facts', lambda rate: told)
    monkeypatch.setattr(video_to_audio, 'published_facts', lambda rate: told)
    file = tmp_path / 'weights' / 'mmaudio' / 'small_16k' / 'mmaudio_small_16k.pth'
    file.parent.mkdir(parents=True)
    torch.save(random_model().state_dict(), file)
    for reference in ('//pretrained/mmaudio/small_16k', file):
        model = VideoToAudio.load(reference, device='cpu')
        assert (model.guidance, model.duration, model._trained) == (4.5, 8., (64, 192))
        mine = VideoToAudio(random_model(), random_codec(vocoder=False), OnlineFeatures(told))
        given = dict(video=media / 'a.mp4', seconds=2., steps=STEPS)
        assert torch.equal(model(**given), mine(**given))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    xp, other = make_xp(tmp_path), random_codec(44_100, vocoder=False)
    save_checkpoint(tmp_path / 'other' / 'checkpoints', 1, models={'model': other.state_dict()},
                    state={'models': {'model': other.build_cfg}})
    with pytest.raises(UserError, match='4 dims for 16000 Hz: it has latents of 4 dims for 44100 Hz'):
        VideoToAudio.load(xp, codec=str(tmp_path / 'other'))
    model = random_model()
    save_checkpoint(tmp_path / 'bare' / 'checkpoints', 1, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}})
    with pytest.raises(UserError, match='does not say what the features'):
        VideoToAudio.load(tmp_path / 'bare')
    broken = sound()
    broken.model.latent_mean.data.fill_(float('nan'))
    with pytest.raises(UserError, match='not finite: its weights'):
        broken(prompt='x', steps=1)


@pytest.mark.parametrize('keys, names', [
    (video_to_audio.KEYS, ['mmaudio/large_44k_v2', 'clip_dfn5b', 'synchformer', 'mmaudio/vae_44k', 'bigvgan_v2_44khz']),
    (['text_features'], ['mmaudio/large_44k_v2', 'clip_dfn5b', 'mmaudio/vae_44k', 'bigvgan_v2_44khz']),
    ([], ['mmaudio/large_44k_v2', 'mmaudio/vae_44k', 'bigvgan_v2_44khz'])])
def test_all_that_is_missing_is_said_at_once(keys, names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ('AUDIOCRAFT_WEIGHTS', 'HF_HUB_CACHE'):
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(UserError) as caught:
        VideoToAudio.load('//pretrained/mmaudio/large_44k_v2', keys=keys)
    lines = str(caught.value).splitlines()
    assert [line.split('"')[1] for line in lines] == names
