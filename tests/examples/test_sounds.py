import numpy as np

from audiocraft.examples.sounds import VOICES, Instrument, draw_sound

RATE = 16_000


def strike(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return Instrument(kind, rng, RATE).strike(rng)


def centroid(sound: np.ndarray) -> float:
    power = np.abs(np.fft.rfft(sound[:RATE // 4])) ** 2
    return float((np.fft.rfftfreq(len(sound[:RATE // 4]), 1 / RATE) * power).sum() / power.sum())


def decay(sound: np.ndarray) -> float:
    """Seconds in which 90 % of the energy came."""
    energy = np.cumsum(sound ** 2)
    return float(np.searchsorted(energy, 0.9 * energy[-1])) / RATE


def test_a_strike_starts_with_its_first_samples_and_varies_a_bit() -> None:
    for kind in VOICES:
        sounds = [strike(kind, seed) for seed in range(10)]
        levels = [20 * np.log10(np.sqrt((sound[:960] ** 2).mean())) for sound in sounds]
        assert 1 < max(levels) - min(levels) <= 6.1
        assert all(np.abs(sound[:32]).max() > 0.1 * np.abs(sound).max() for sound in sounds)


def test_kinds_sound_distinct() -> None:
    centroids = {kind: [centroid(strike(kind, seed)) for seed in range(12)] for kind in VOICES}
    decays = {kind: [decay(strike(kind, seed)) for seed in range(12)] for kind in VOICES}
    assert max(centroids['drum']) < min(centroids['wood'] + centroids['metal'] + centroids['glass'])
    assert max(centroids['wood']) < min(centroids['glass'])
    assert max(centroids['metal']) < max(centroids['glass'])
    assert max(decays['wood']) < 0.5 * min(decays['metal'])
    assert max(decays['glass']) < min(decays['metal'])


def test_strikes_stand_out_of_the_noise_at_the_exact_sample() -> None:
    rng = np.random.default_rng(0)
    noises = []
    for kind in VOICES:
        for _ in range(5):
            sound = draw_sound(rng, kind, [(0.5, 0), (1.3, 1)], 2., RATE)[0]
            assert sound.dtype == np.float32 and np.abs(sound).max() <= 0.951
            noise = np.sqrt((sound[:8000] ** 2).mean())
            level = np.sqrt((sound[8000:8960] ** 2).mean())
            assert 20 * np.log10(level / noise) > 20
            assert np.abs(sound[8000:8048]).max() > 4 * np.abs(sound[:8000]).max() * 0.5
            noises.append(20 * np.log10(noise))
    assert max(noises) - min(noises) > 5


def test_a_strike_at_the_end_is_cut() -> None:
    assert draw_sound(np.random.default_rng(0), 'metal', [(0.95, 0)], 1., RATE).shape == (1, RATE)
    assert draw_sound(np.random.default_rng(0), 'metal', [], 1., RATE).shape == (1, RATE)
