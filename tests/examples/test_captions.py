import numpy as np
import pytest

from audiocraft.examples.captions import WORDS, draw_caption, neutral_caption, swap_kind
from audiocraft.examples.scene import KINDS


@pytest.mark.parametrize('kind', list(KINDS))
def test_captions_name_the_kind_and_no_other(kind: str) -> None:
    rng = np.random.default_rng(0)
    for surfaces in (['floor'], ['left wall'], ['floor', 'ceiling'], ['post', 'post']):
        captions = {draw_caption(rng, kind, surfaces) for _ in range(200)}
        assert len(captions) > 15
        assert all(kind in caption and ('two' in caption) == (len(surfaces) > 1) for caption in captions)
        assert not any(other in caption for other in set(KINDS) - {kind} for caption in captions)


def test_neutral_and_swapped_captions() -> None:
    rng = np.random.default_rng(0)
    assert not any(kind in neutral_caption(rng) for kind in KINDS for _ in range(50))
    assert neutral_caption() == neutral_caption()
    assert swap_kind('two wooden blocks knocking on the floor', 'glass') == 'two glass bottles knocking on the floor'
    assert swap_kind('the sound of a small drum', 'metal') == 'the sound of a metal plate'
    assert swap_kind('an object', 'metal') == 'an object'
    for kind in KINDS:
        for other in set(KINDS) - {kind}:
            for pair in WORDS[kind]:
                assert all(other in swap_kind(words, other) and kind not in swap_kind(words, other) for words in pair)
