"""What is in an example clip: the kinds of objects, where they are, what they strike and when."""

import typing as tp
from dataclasses import dataclass

import numpy as np

from .motion import Body, Path, Strike, assign, draw_path, draw_times


@dataclass(frozen=True)
class Look:
    """How a kind looks: its shape and its colour (red, green, blue; 0 to 255)."""
    shape: str
    color: tuple[int, int, int]


KINDS: dict[str, Look] = {
    'wood': Look('square', (205, 130, 45)),
    'metal': Look('disc', (110, 140, 240)),
    'glass': Look('diamond', (120, 240, 215)),
    'drum': Look('ring', (240, 65, 60)),
}
"""The kinds of objects; the sound of each is in `sounds.VOICES`, its words are in `captions.WORDS`."""


@dataclass
class Scene:
    """All that decides the pictures and the sound of one clip, but for the noise."""
    kind: str
    seconds: float
    size: tuple[int, int]
    bodies: list[Body]
    paths: list[Path]
    drifts: list[tuple[float, float, float]]
    strikes: list[Strike]
    frame: dict[str, float]
    """Where the surfaces are: 'floor', 'ceiling', 'left wall', 'right wall' (pixels), 'post' and 'post width'."""

    def events(self) -> list[dict[str, tp.Any]]:
        """Return the true strikes as they are written to `events.json`."""
        return [{'time': strike.time, 'kind': self.kind, 'object': strike.body} for strike in self.strikes]

    def centers(self, at: np.ndarray, body: int) -> np.ndarray:
        """Return the centres (x, y) `[N, 2]` of an object at the times `at` `[N]`, pixels."""
        where, height = self.bodies[body], self.paths[body](at)
        amplitude, frequency, phase = self.drifts[body]
        drift = amplitude * np.sin(2 * np.pi * frequency * at + phase)
        normal = np.asarray(where.normal)
        along = np.asarray([-normal[1], normal[0]])
        return np.asarray(where.contact) + height[:, None] * normal + drift[:, None] * along


def kind_of(seed: int, index: int) -> str:
    """Return the kind of clip `index`: each run of as many clips as there are kinds has all of them, shuffled."""
    block, place = divmod(index, len(KINDS))
    return list(KINDS)[np.random.default_rng([seed, block, 1]).permutation(len(KINDS))[place]]


def draw_scene(rng: np.random.Generator, kind: str, *, seconds: float, size: tuple[int, int],
               sample_rate: int) -> Scene:
    """Draw the scene of a clip: one or two objects of one kind, in lanes that do not cross."""
    times = draw_times(rng, seconds, sample_rate)
    count = 2 if len(times) >= 2 and rng.random() < 0.4 else 1
    strikes = assign(rng, times, count)
    frame = _draw_frame(rng, size)
    bodies = _draw_bodies(rng, count, size, frame)
    paths = [draw_path(rng, [s.time for s in strikes if s.body == index], body.reach, seconds, 1.4 * size[1])
             for index, body in enumerate(bodies)]
    drifts = [(float(rng.uniform(0., body.slack)), float(rng.uniform(0.1, 0.5)), float(rng.uniform(0., 2 * np.pi)))
              for body in bodies]
    return Scene(kind, seconds, size, bodies, paths, drifts, strikes, frame)


def _draw_frame(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, float]:
    width, height = size
    unit = height / 120
    floor, ceiling = height - rng.uniform(5., 12.) * unit, rng.uniform(4., 10.) * unit
    left, right = rng.uniform(3., 10.) * unit, width - rng.uniform(3., 10.) * unit
    return {'floor': floor, 'ceiling': ceiling, 'left wall': left, 'right wall': right,
            'post': width * rng.uniform(0.46, 0.54), 'post width': rng.uniform(5., 9.) * unit}


def _draw_bodies(rng: np.random.Generator, count: int, size: tuple[int, int],
                 frame: dict[str, float]) -> list[Body]:
    """Draw one or two objects that move in the same direction: side by side, one above the other, or about a post."""
    radii = [rng.uniform(7., 15.) * size[1] / 120 for _ in range(count)]
    way = rng.choice(['vertical', 'horizontal', 'post'], p=[0.5, 0.25, 0.25])
    if way != 'post':
        sides = ('left wall', 'right wall') if way == 'vertical' else ('ceiling', 'floor')
        lanes = _lanes(rng, count, frame[sides[0]], frame[sides[1]])
        return [_body(radius, str(rng.choice(SURFACES_OF[way])), lane, frame, rng)
                for radius, lane in zip(radii, lanes)]
    lane = (frame['ceiling'] + 0.3 * (frame['floor'] - frame['ceiling']), frame['floor'])
    return [_body(radius, 'post', lane, frame, rng, side=int(side))
            for radius, side in zip(radii, rng.permutation([-1, 1])[:count])]


SURFACES_OF = {'vertical': ('floor', 'floor', 'ceiling'), 'horizontal': ('left wall', 'right wall')}


def _lanes(rng: np.random.Generator, count: int, low: float, high: float) -> list[tuple[float, float]]:
    if count == 1:
        return [(low, high)]
    middle = (low + high) / 2
    lanes = [(low, middle), (middle, high)]
    return [lanes[index] for index in rng.permutation(2)]


def _body(radius: float, surface: str, lane: tuple[float, float], frame: dict[str, float],
          rng: np.random.Generator, side: int = 0) -> Body:
    """Place an object in its lane (an interval across its motion) at a surface."""
    margin = radius + 2
    room = max(0., lane[1] - lane[0] - 2 * margin)
    slack = float(rng.uniform(0., min(0.4 * room, radius)))
    across = float(rng.uniform(lane[0] + margin + slack, max(lane[0] + margin + slack, lane[1] - margin - slack)))
    if surface == 'post':
        edge = frame['post'] + side * frame['post width'] / 2
        far = frame['right wall'] if side > 0 else frame['left wall']
        normal, contact = (float(side), 0.), (edge + side * radius, across)
    elif surface in ('floor', 'ceiling'):
        edge, far = frame[surface], frame['ceiling' if surface == 'floor' else 'floor']
        sign = -1. if surface == 'floor' else 1.
        normal, contact = (0., sign), (across, edge + sign * radius)
    else:
        edge, far = frame[surface], frame['right wall' if surface == 'left wall' else 'left wall']
        sign = 1. if surface == 'left wall' else -1.
        normal, contact = (sign, 0.), (edge + sign * radius, across)
    reach = (abs(far - edge) - 2 * radius - 2) * float(rng.uniform(0.75, 1.))
    return Body(radius, surface, contact, normal, reach, slack)
