"""What the measures of trained networks share: features of generated and true clips, paired by id."""

import typing as tp

import torch

from ..data.samples import Clip
from ..utils.errors import UserError
from .base import Metric, References, Results, unavailable
from .feature_cache import NAMES, FeatureCache
from .networks import Features, warn_once
from .pairs import NO_PAIRS

AV_BENCHMARK = ('FD-VGG', 'FD-PANN', 'FD-PASST', 'KL-PANNS-softmax', 'KL-PASST-softmax', 'ISC-PANNS-mean',
                'ISC-PANNS-std', 'ISC-PASST-mean', 'ISC-PASST-std', 'IB-Score', 'DeSync', 'LAION-CLAP-Score',
                'MS-CLAP-Score')
"""The results of av-benchmark, in the order of its tables."""
NAMED = 5  # ids in a warning

Tensors = list[torch.Tensor]
Row = tuple[str, torch.Tensor | None, torch.Tensor | None]
"""Id, feature of the generated clip, feature of its partner."""


class NetworkMetric(Metric):
    """A measure on the features of a network. A subclass adds `score`.

    Beside the result it gives `<name>_n`, the number of features behind it, and `<name>_weights`, the sha256 of the
    network's weights (numbers of other weights cannot be compared); where generated clips had no partner,
    `<name>_unpaired`, their number, which is warned of with their names.

    Args:
        network: a `FeatureNetwork`, or what has its `name`, `missing`, `sha256`, `rest` and call.
        name (str): of the result.
        feature (str): which of the network's outputs.
        cache (str or None): folder of features of the true clips, in place of their media.
        names (str): how ids of generated clips are found in it: `exact`, or `av_benchmark` (see `clean_sample_name`).
        paired (bool): only generated clips that have a partner count, and their partners; otherwise all of either side.
        source, true_source (str): what the network is shown of a generated clip, and of its partner; `text` is the
            caption that it was generated for.
        generated_cache (str or None): folder of features of the generated clips, in place of `update`. The truth should
            come from a cache as well.
    """
    needs_truth = True  # false where the generated clips are measured alone

    def __init__(self, *, network: tp.Any, name: str, feature: str = 'embedding', cache: str | None = None,
                 names: str = 'exact', paired: bool = True, source: str = 'audio', true_source: str = 'audio',
                 generated_cache: str | None = None):
        if names not in NAMES:
            raise ValueError(f'names must be one of {", ".join(NAMES)}, got {names!r}')
        self.network, self.name, self.feature, self.clean = network, name, feature, NAMES[names]
        self.cache = None if cache is None else FeatureCache(cache)
        self.generated_cache = None if generated_cache is None else FeatureCache(generated_cache)
        self.paired, self.source, self.true_source = paired, source, true_source
        if self.missing:
            warn_once(f'Measures on {network.name} are null: {self.missing}')
        elif self.cache is not None and self.needs_truth:
            for features in self.cache.read(network.name, true_source).values():
                self._feature(features)  # what is wrong with it shows before the stage
            self._check_weights(self.cache)
        self.reset()

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """The results on features of generated and true clips, pairs at the same places if `paired`.

        `unavailable` where there are too few.
        """
        raise NotImplementedError(f'{type(self).__name__} has no score(generated, true)')

    def _check_weights(self, cache: FeatureCache) -> None:
        """Refuse to compare features of two weights, where the caches say which made them."""
        true = cache.about().get(f'{self.network.name} {self.true_source}', {}).get('sha256')
        if self.generated_cache is None:
            ours = self.network.sha256 if true else None
        else:
            ours = self.generated_cache.about().get(f'{self.network.name} {self.source}', {}).get('sha256')
        if true and ours and true != ours:
            raise UserError(f'{cache.folder}: its features of {self.network.name} were made with weights of sha256 '
                            f'{true[:8]}..., those of the generated clips with {ours[:8]}...: make them again.')

    @property
    def missing(self) -> str:
        """Why there can be no result, or ''."""
        sides = [(self.generated_cache, self.source)] + [(self.cache, self.true_source)] * self.needs_truth
        reasons = (self.network.missing if cache is None else cache.missing(self.network.name, source)
                   for cache, source in sides)
        return next((reason for reason in reasons if reason), '')

    def reset(self) -> None:
        """See `Metric.reset`."""
        self.rows: list[Row] = []
        if self.generated_cache is not None and not self.missing:
            table = self.generated_cache.read(self.network.name, self.source)
            self.rows = [(id, self._feature(one), None) for id, one in table.items()]

    def update(self, generated: tp.Sequence[Clip], reference: References) -> None:
        """See `Metric.update`. With a cache of the truth, the true clips are not looked at."""
        if self.missing or self.generated_cache is not None:
            return
        ours = self.network(generated, self.source)
        theirs: tp.Sequence[Features | None] = [None] * len(generated)
        if self.needs_truth and self.cache is None:
            true = generated if self.true_source == 'text' else reference
            made = iter(self.network([clip for clip in true if clip is not None], self.true_source))
            theirs = [None if clip is None else next(made) for clip in true]
        self.rows += [(clip.id, self._feature(our), self._feature(their))
                      for clip, our, their in zip(generated, ours, theirs, strict=True)]

    def add_true(self, clips: tp.Sequence[Clip]) -> None:
        """Take true clips that no generated one belongs to, where `compares_sets`."""
        self.rows += [(clip.id, None, self._feature(one))
                      for clip, one in zip(clips, self.network(clips, self.true_source), strict=True)]

    @property
    def compares_sets(self) -> bool:
        """Whether all true clips count that it is shown, also those without a generated one."""
        return self.needs_truth and not self.paired and self.cache is None and not self.missing

    def _feature(self, features: Features | None) -> torch.Tensor | None:
        if features is not None and self.feature not in features:
            raise UserError(f'{self.name}: features of {self.network.name} should hold "{self.feature}", there are '
                            f'{", ".join(features)}.')
        return None if features is None else features[self.feature]

    def compute(self) -> Results:
        """See `Metric.compute`."""
        if reason := self.missing:
            return unavailable(self.name, reason)
        self.network.rest()
        rows, every = self._with_truth()
        pairs = [(our, their) for _, our, their in rows if our is not None and their is not None]
        lonely = [id for id, our, their in rows if our is None or their is None]
        ours = [our for our, _ in pairs] if self.paired else [our for _, our, _ in rows if our is not None]
        theirs = [their for _, their in pairs] if self.paired else every
        results = self._note(lonely) if self.paired else {}
        if not ours:
            return results | unavailable(self.name, NO_PAIRS if rows else 'there are no generated clips')
        if not all(bool(one.isfinite().all()) for one in [*ours, *theirs]):
            return results | unavailable(self.name, 'features are not finite')
        widths = [sorted({one.shape[-1] for one in side}) for side in (ours, theirs)]
        if self.needs_truth and theirs and widths[0] != widths[1]:
            return results | unavailable(self.name, f'generated clips have features of {widths[0]} dims, true ones of '
                                                    f'{widths[1]}: they are of different networks')
        made_here = self.generated_cache is None or (self.needs_truth and self.cache is None)
        return self.score(ours, theirs) | results | (
            {f'{self.name}_weights': self.network.sha256} if made_here else {})

    def _with_truth(self) -> tuple[list[Row], Tensors]:
        """The rows with the partners that a cache has, and all true features."""
        if self.cache is None or not self.needs_truth:
            return self.rows, [their for _, _, their in self.rows if their is not None]
        table = self.cache.read(self.network.name, self.true_source)
        rows = [(id, our, self._feature(table.get(self.clean(id)))) for id, our, _ in self.rows]
        return rows, [tp.cast(torch.Tensor, self._feature(one)) for one in table.values()]

    def _note(self, lonely: list[str]) -> Results:
        """Say which generated clips have no partner, and were therefore left out."""
        if not lonely:
            return {}
        more = ', ...' if len(lonely) > NAMED else ''
        warn_once(f'{self.name}: {len(lonely)} generated clips have no true one and are left out: '
                  f'{", ".join(lonely[:NAMED])}{more}')
        return {f'{self.name}_unpaired': float(len(lonely))}
