import numpy as np
import pytest

from audiocraft.examples.motion import HEAD, MAX_STRIKES, MIN_GAP, TAIL, Path, draw_path, draw_times
from audiocraft.examples.scene import KINDS, Scene, draw_scene, kind_of

SIZE, SECONDS, RATE = (160, 120), 4., 16_000


@pytest.fixture(scope='module')
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng([7, index]), kind_of(7, index), seconds=SECONDS, size=SIZE,
                       sample_rate=RATE) for index in range(200)]


def test_times_of_strikes(scenes: list[Scene]) -> None:
    counts = []
    for scene in scenes:
        times = [event['time'] for event in scene.events()]
        assert 1 <= len(times) <= MAX_STRIKES and times == sorted(times)
        assert times[0] >= HEAD and times[-1] <= SECONDS - TAIL
        assert all(np.diff(times) >= MIN_GAP)
        assert all(abs(time * RATE - round(time * RATE)) < 1e-3 for time in times)
        counts.append(len(times))
    assert 3. < np.mean(counts) < 4. and set(counts) == set(range(1, 7))
    gaps = np.concatenate([np.diff([event['time'] for event in scene.events()]) for scene in scenes])
    assert gaps.std() > 0.3 and len(np.unique(gaps)) > 0.9 * len(gaps)  # irregular


@pytest.mark.parametrize('seconds', [0.7, 1., 2., 8.])
def test_times_fit_into_other_lengths(seconds: float) -> None:
    for seed in range(100):
        times = draw_times(np.random.default_rng(seed), seconds, 44_100)
        assert times and times[0] >= HEAD and times[-1] <= seconds - TAIL and all(np.diff(times) >= MIN_GAP)


def test_one_or_two_objects_of_one_kind(scenes: list[Scene]) -> None:
    assert [sum(kind_of(7, index) == kind for index in range(32)) for kind in KINDS] == [8] * len(KINDS)
    pairs = [scene for scene in scenes if len(scene.bodies) == 2]
    assert 0.2 < len(pairs) / len(scenes) < 0.5
    for scene in scenes:
        assert {strike.body for strike in scene.strikes} == set(range(len(scene.bodies)))  # each strikes
    assert {body.surface for scene in scenes for body in scene.bodies} == {
        'floor', 'ceiling', 'left wall', 'right wall', 'post'}


def test_objects_stay_in_the_picture_and_apart(scenes: list[Scene]) -> None:
    at = np.linspace(0, SECONDS, 201)
    for scene in scenes:
        centers = [scene.centers(at, body) for body in range(len(scene.bodies))]
        for body, where in zip(scene.bodies, centers):
            assert 6.9 <= body.radius <= 15.1
            assert (where - body.radius >= -1e-6).all() and (where + body.radius <= np.asarray(SIZE) + 1e-6).all()
        if len(centers) == 2:
            distance = np.abs(centers[0] - centers[1]).max(1)
            assert (distance >= sum(body.radius for body in scene.bodies) - 1e-6).all()


def test_velocity_jumps_at_strikes_and_nowhere_else(scenes: list[Scene]) -> None:
    step = 1e-4
    at = np.arange(0, SECONDS, step)
    for scene in scenes[:60]:
        for index, path in enumerate(scene.paths):
            times = np.asarray([strike.time for strike in scene.strikes if strike.body == index])
            assert np.abs(path(times)).max() < 1e-6
            before, after = path(times - 1e-3) / 1e-3, path(times + 1e-3) / 1e-3
            assert (before > 100).all() and (after > 100).all()  # arrives and leaves, in pixels per second
            heights = path(at)
            away = np.abs(at[:, None] - times).min(1) > 2 * step
            assert (heights[away] > 0).all()
            jumps = np.abs(np.diff(np.diff(heights) / step))
            assert jumps[away[1:-1]].max() < 3.  # pixels per second, in a tenth of a millisecond


def test_it_turns_in_the_air_without_a_strike(scenes: list[Scene]) -> None:
    at = np.arange(0, SECONDS, 1e-3)
    turns = 0
    for scene in scenes:
        for index, path in enumerate(scene.paths):
            times = np.asarray([strike.time for strike in scene.strikes if strike.body == index])
            heights = path(at)
            low = np.flatnonzero((heights[1:-1] < heights[:-2]) & (heights[1:-1] <= heights[2:])) + 1
            silent = low[np.abs(at[low][:, None] - times).min(1) > 0.01]
            assert (heights[silent] > 0.3 * scene.bodies[index].reach).all()  # far from the surface
            turns += len(silent)
    assert turns > 0.5 * len(scenes)


def test_a_path_without_strikes_never_touches() -> None:
    path = draw_path(np.random.default_rng(0), [], 50., SECONDS)
    assert isinstance(path, Path) and path(np.linspace(0, SECONDS, 500)).min() > 15
