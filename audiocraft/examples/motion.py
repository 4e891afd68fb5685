"""How the objects of example clips move: along the normal of a surface, striking it at given times and no other.

Between two strikes an object follows cubic pieces with a continuous velocity: it leaves, slows down, perhaps turns
around in the air a few times (in silence), and comes back. Only at a strike does the velocity jump.
"""

import typing as tp
from dataclasses import dataclass

import numpy as np

MIN_GAP = 0.22
"""Seconds between any two strikes of a clip."""
HEAD, TAIL = 0.15, 0.25
"""Seconds without strikes at the start and at the end of a clip."""
MAX_STRIKES = 6
MIN_SECONDS = 0.7

SURFACES = ('floor', 'ceiling', 'left wall', 'right wall', 'post')


@dataclass(frozen=True)
class Strike:
    """One contact: `time` in seconds, and which object of the clip."""
    time: float
    body: int


@dataclass
class Body:
    """One moving object.

    Args:
        radius (float): half its size, pixels.
        surface (str): what it strikes.
        contact (tuple of float): centre (x, y) at a contact, pixels.
        normal (tuple of float): unit vector (x, y) away from the surface.
        reach (float): how far it goes from the surface, pixels.
        slack (float): how far it drifts along the surface, pixels.
    """
    radius: float
    surface: str
    contact: tuple[float, float]
    normal: tuple[float, float]
    reach: float
    slack: float


@dataclass
class Path:
    """Knots of a piecewise cubic height above the surface; at a strike two knots share their time."""
    times: list[float]
    heights: list[float]
    speeds: list[float]

    def add(self, time: float, height: float, speed: float) -> None:
        """Append a knot: seconds, pixels above the surface, pixels per second away from it."""
        self.times.append(time)
        self.heights.append(height)
        self.speeds.append(speed)

    def __call__(self, at: np.ndarray) -> np.ndarray:
        """Return the heights `[N]` at the times `at` `[N]`: cubic Hermite between the knots."""
        times, heights, speeds = (np.asarray(x) for x in (self.times, self.heights, self.speeds))
        left = np.clip(np.searchsorted(times, at, side='right') - 1, 0, len(times) - 2)
        width = np.maximum(times[left + 1] - times[left], 1e-9)
        u = (at - times[left]) / width
        return (heights[left] * (1 + 2 * u) * (1 - u) ** 2 + heights[left + 1] * u ** 2 * (3 - 2 * u)
                + width * (speeds[left] * u * (1 - u) ** 2 + speeds[left + 1] * u ** 2 * (u - 1)))


def draw_times(rng: np.random.Generator, seconds: float, sample_rate: int) -> list[float]:
    """Draw 1 to 6 irregular strike times, on whole samples, `MIN_GAP` apart, off the ends of the clip."""
    room = seconds - HEAD - TAIL
    most = min(MAX_STRIKES, 1 + int((room - 0.02) / (MIN_GAP + 0.02)))
    count = int(rng.integers(1, most + 1))
    # Uniform over all sets of times with that gap: sort within the room that the gaps leave, then spread.
    gap = MIN_GAP + 2 / sample_rate
    starts = np.sort(rng.uniform(0., room - (count - 1) * gap - 2 / sample_rate, count)) + HEAD + gap * np.arange(count)
    return [round((int(t * sample_rate) + 1) / sample_rate, 9) for t in starts]


def assign(rng: np.random.Generator, times: tp.Sequence[float], bodies: int) -> list[Strike]:
    """Give each strike to an object at random, at least one to each (`len(times) >= bodies`)."""
    owners = rng.integers(0, bodies, len(times))
    owners[rng.permutation(len(times))[:bodies]] = np.arange(bodies)
    return [Strike(time, int(owner)) for time, owner in zip(times, owners)]


def draw_path(rng: np.random.Generator, strikes: tp.Sequence[float], reach: float, seconds: float,
              slowest: float = 0.) -> Path:
    """Draw a path that touches the surface at `strikes` (seconds, sorted) and stays clear of it in between.

    `slowest` is the least speed of a contact, pixels per second: slower, an object that strikes twice
    within `MIN_GAP` would hardly leave the surface.
    """
    speed = max(reach * rng.uniform(3., 4.6), slowest)
    path = Path([], [], [])
    first = strikes[0] if strikes else seconds + 2.
    # The path starts before the clip and ends after it, so that the clip may begin in mid-flight.
    height = reach * rng.uniform(0.45, 1.)
    fall = 2 * height / speed
    _wander(path, rng, min(-0.1, first - fall - 0.3) - rng.uniform(0., 0.5), rng.uniform(0.45, 1.) * reach,
            first - fall, height, reach, speed)
    for start, end in zip(strikes[:-1], strikes[1:]):
        path.add(start, 0., -speed)
        _between(path, rng, start, end, reach, speed)
    if strikes:
        path.add(strikes[-1], 0., -speed)
        path.add(strikes[-1], 0., speed)
        height = reach * rng.uniform(0.45, 1.)
        rise = strikes[-1] + 2 * height / speed
        _wander(path, rng, rise, height, max(seconds, rise) + 0.6, None, reach, speed)
    return path


def _between(path: Path, rng: np.random.Generator, start: float, end: float, reach: float, speed: float) -> None:
    """Add the knots from the contact at `start` up to, and without, the contact at `end`."""
    duration = end - start
    top = reach * rng.uniform(0.45, 1.)
    single = 4 * top / speed
    if duration < single + 0.3:
        # One hop. Its speed follows from its height, which must fit below the reach; a long one hangs a while on top.
        flight = min(duration, 4 * reach / speed)
        top = min(speed * flight / 4, reach)
        path.add(start, 0., speed)
        path.add(start + flight / 2, top, 0.)
        if duration - flight > 1e-6:
            path.add(end - flight / 2, top, 0.)
        return
    path.add(start, 0., speed)
    rise, fall = start + 2 * top / speed, end - 2 * top / speed
    _wander(path, rng, rise, top, fall, top, reach, speed)


def _wander(path: Path, rng: np.random.Generator, start: float, height: float, end: float,
            last: tp.Optional[float], reach: float, speed: float) -> None:
    """Add smooth turning points between `start` and `end`, all far from the surface: these are silent."""
    low, phase = 0.4 * reach, int(rng.integers(2))
    swings = max(1, int((end - start) / rng.uniform(0.35, 0.7)))
    width = (end - start) / swings
    step = 0.55 * speed * width  # the mid-piece speed of a cubic swing is 1.5 * step / width
    if last is not None:
        height = float(np.clip(height, last - step * swings, last + step * swings))
    path.add(start, height, 0.)
    for index in range(1, swings + 1):
        if index == swings and last is not None:
            target = last
        else:
            # Near and far by turns, so that it often turns around.
            target = rng.uniform(0.7 * reach, reach) if (index + phase) % 2 else rng.uniform(low, 0.7 * reach)
            if last is not None:  # never further away than the rest of the swings can bring back
                target = np.clip(target, last - step * (swings - index), last + step * (swings - index))
        height = float(np.clip(target, height - step, height + step))
        if index == swings and last is not None:
            height = last
        path.add(start + index * width, height, 0.)
