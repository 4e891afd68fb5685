"""The extractors without weights: shapes, and that what should show in the features does."""

import pytest
import torch

from audiocraft.features.base import Extractor, frame_rates, frame_size, weights_sha256
from audiocraft.features.codec import Codec
from audiocraft.features.tiny import TinyImage, TinyMotion, TinyText
from audiocraft.utils.config import build, rebuild

from .media import CODEC, codec, extractors


def moving_square(at: int, count: int = 48) -> torch.Tensor:
    """A grey picture in which a square jumps at frame `at`, uint8 `[count, 3, 32, 32]`."""
    pictures = torch.full((count, 3, 32, 32), 60, dtype=torch.uint8)
    pictures[:at, :, 4:12, 4:12] = 250
    pictures[at:, :, 20:28, 20:28] = 250
    return pictures


@pytest.mark.parametrize('extractor, item, duration', [
    (TinyImage(), torch.zeros(32, 3, 30, 50, dtype=torch.uint8), 4.),
    (TinyMotion(), torch.zeros(96, 3, 30, 50, dtype=torch.uint8), 4.),
    (TinyMotion(fps=25.), torch.zeros(96, 3, 16, 16, dtype=torch.uint8), 4.),
    (TinyText(), 'a dog barks', 4.),
])
def test_the_features_are_what_spec_says(extractor: Extractor, item, duration: float) -> None:
    batch = extractor.collate([extractor.prepare(item), extractor.prepare(item)])
    features = extractor(batch)
    spec = extractor.spec(duration)
    assert features.keys() == spec.keys()
    for key, (shape, dtype) in spec.items():
        assert features[key].shape == (2, *shape) and features[key].dtype == dtype
        assert features[key].isfinite().all()


def test_lengths_follow_the_duration() -> None:
    assert TinyImage().spec(4.)['clip_features'][0] == (32, 320)
    assert TinyMotion().spec(4.)['sync_features'][0] == (96, 512)
    assert TinyMotion(fps=25.).spec(8.)['sync_features'][0][0] == 200
    assert TinyMotion(fps=25.).spec(4.)['sync_features'][0][0] == 96, 'whole segments of eight'
    assert TinyText().spec(99.)['text_features'][0] == (16, 64)


def test_motion_shows_when_and_where() -> None:
    extractor = TinyMotion(grid=4)
    steps, background = extractor.prepare(moving_square(at=17)).chunk(2, dim=1)
    assert steps.abs().sum(1).argmax() == 17 and (steps.abs().sum(1) > 1e-5).sum() == 1
    assert steps[17, 0] < 0 < steps[17, -1], 'the square left the first cell and came to the last one'
    still = extractor.prepare(moving_square(at=48))
    assert still.abs().max() == 0, 'nothing moves'
    assert background.abs().max() > 0


def test_motion_does_not_depend_on_what_else_is_in_the_batch() -> None:
    extractor = TinyMotion(grid=4)
    one, other = extractor.prepare(moving_square(5)), extractor.prepare(moving_square(30))
    assert torch.equal(extractor(extractor.collate([one, other]))['sync_features'][0], one)


def test_images_show_colours() -> None:
    extractor = TinyImage(grid=2)
    red, blue = torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8).unbind(0)
    red[:, 0, :8], blue[:, 2, :8] = 255, 255
    a, b = extractor.prepare(red), extractor.prepare(blue)
    assert (a - b).abs().max() > 1
    histogram = extractor.histogram(extractor.colours(red))
    torch.testing.assert_close(histogram.square().sum(1), torch.ones(1))
    assert histogram[0, 3 * 16] == histogram[0, 0] == 0.5 ** 0.5, 'half of it is red, half is black'
    assert torch.equal(a[:, :12].view(3, 2, 2)[0], torch.tensor([[1., 1.], [-1., -1.]]))


def test_colours_of_what_moves() -> None:
    extractor = TinyImage(grid=2)
    frames = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    frames[:, 2] = 60
    for t in range(8):
        frames[t, :, 4:8, 2 * t:2 * t + 2] = torch.tensor([255, 0, 0])[:, None, None]
    moving = extractor.prepare(frames)[:, -64:]
    assert torch.equal(moving[:, 3 * 16], torch.full((8,), 3.)), 'only red moves'
    assert (moving != 0).sum() == 8
    assert not extractor.prepare(frames[:1].repeat(8, 1, 1, 1))[:, -64:].any(), 'nothing moves'


def test_words_have_directions_of_their_own() -> None:
    extractor = TinyText()
    dog, cat = extractor.prepare('A dog.'), extractor.prepare('a CAT')
    assert torch.equal(dog[:2], cat[:2]), 'start and article are the same'
    assert torch.cosine_similarity(dog[2], cat[2], dim=0).abs() < 0.6
    torch.testing.assert_close(dog[2].square().mean(), torch.tensor(1.))
    assert not dog[3:].any()
    empty = extractor.prepare('')
    assert torch.equal(empty[0], dog[0]) and not empty[1:].any()
    long = extractor.prepare('one two three ' * 20)
    assert long.shape == (16, 64) and long[-1].any()


def test_a_word_is_the_same_in_every_process() -> None:
    # Seeded by sha256 of the word, not by hash(), which differs from process to process.
    expected = [-0.65643, -0.27942, 0.60427]
    assert TinyText().word_vector('dog')[:3].tolist() == pytest.approx(expected, abs=1e-4)


def test_identity_tells_weights_apart() -> None:
    one, other = Codec(codec()), Codec(codec())
    assert one.identity() == other.identity()
    with torch.no_grad():
        next(other.model.parameters()).flatten()[0] += 1e-3
    assert one.identity()['weights_sha256'] != other.identity()['weights_sha256']
    assert one.identity()['build_cfg'] == CODEC
    assert weights_sha256(torch.nn.Linear(2, 2)) != weights_sha256(torch.nn.Linear(2, 2))


def test_an_extractor_is_rebuilt_from_its_identity() -> None:
    built = build({'_target_': 'audiocraft.features.tiny.TinyMotion', 'fps': 12., 'grid': 3})
    again = rebuild(built.identity()['build_cfg'])
    assert (again.fps, again.grid) == (12., 3)


def test_codec_gives_time_first() -> None:
    extractor = Codec(codec())
    wav = torch.randn(2, 1, 16_000) * 0.1
    features = extractor(wav)
    posterior = extractor.model.encode(wav)
    assert torch.equal(features['mean'].mT, posterior.mean) and torch.equal(features['std'].mT, posterior.std)
    assert features['mean'].shape[1:] == extractor.spec(1.)['mean'][0] == (32, 4)


def test_what_the_decoder_is_asked_for() -> None:
    models = extractors()
    assert frame_rates(models.values()) == [4., 8.]
    assert frame_size(models.values()) == TinyImage.size
    models['image'].size = None
    assert frame_size(models.values()) is None, 'they do not agree: each gets the frames as they are'
    assert frame_size([models['text']]) is None
