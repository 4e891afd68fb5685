"""Captions of example clips: varied wording that always names the kind of the object."""

import re
import typing as tp

import numpy as np

WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    'wood': (('a wooden block', 'two wooden blocks'), ('a piece of wood', 'two pieces of wood')),
    'metal': (('a metal plate', 'two metal plates'), ('a metal bell', 'two metal bells')),
    'glass': (('a glass bottle', 'two glass bottles'), ('a piece of glass', 'two pieces of glass')),
    'drum': (('a drum', 'two drums'), ('a small drum', 'two small drums')),
}
"""For each kind, pairs of singular and plural."""

NEUTRAL = ('an object', 'two objects')
VERBS = ('knocking on', 'striking', 'hitting', 'bouncing off', 'tapping on')
PLACES = {'floor': 'the floor', 'ceiling': 'the ceiling', 'left wall': 'the wall', 'right wall': 'the wall',
          'post': 'a post'}


def draw_caption(rng: np.random.Generator, kind: tp.Optional[str], surfaces: tp.Sequence[str]) -> str:
    """Draw a caption for one or two objects of a kind that strike `surfaces`; `kind=None` names none."""
    plural = len(surfaces) > 1
    pairs = (NEUTRAL,) if kind is None else WORDS[kind]
    subject = pairs[int(rng.integers(len(pairs)))][plural]
    verb = VERBS[int(rng.integers(len(VERBS)))]
    places = sorted({PLACES[surface] for surface in surfaces})
    style = int(rng.integers(4))
    if style == 0:
        return subject
    if style == 1:
        return f'the sound of {subject}'
    if style == 2:
        return f'{subject} {verb} {" and ".join(places)}'
    return f'{subject} {verb} something'


def neutral_caption(rng: tp.Optional[np.random.Generator] = None) -> str:
    """Return a caption that names no kind, to see whether the picture alone decides the timbre."""
    return draw_caption(rng or np.random.default_rng(0), None, ['floor'])


def swap_kind(caption: str, kind: str) -> str:
    """Return the caption with its object replaced by one of another kind, to see which the sound follows."""
    for pairs in WORDS.values():
        for pair in pairs:
            for plural, words in enumerate(pair):
                changed, hits = re.subn(rf'\b{words}\b', WORDS[kind][0][plural], caption)
                if hits:
                    return changed
    return caption
