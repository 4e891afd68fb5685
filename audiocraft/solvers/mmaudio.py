"""MMAudio: latents of sound from video and text, by flow matching (Cheng et al. 2025, arXiv:2412.15322)."""

import typing as tp

import torch
from flashy.formatter import Formatter

from .. import distrib, optim
from ..data.loaders import StoreLoader, build_loader
from ..data.mixture import Mixture
from ..data.store_dataset import Batch
from ..environment import resolve_path
from ..flow import path, samplers
from ..models.loaders import find_checkpoint
from ..models.mmaudio import PUBLISHED_DIMS, MMAudio
from ..models.published.mmaudio import empty_string, lengths_of, published_facts
from ..modules.sequence import sequence_lengths
from ..utils.checkpoint import list_checkpoints
from ..utils.config import build
from ..utils.errors import UserError
from .generation import GenerationSolver
from .setup import planned_stages

TIME_BINS = 25
DECODED_TOGETHER = 16  # clips that go through the codec at a time
SAMPLE_RATES = {'16k': 16000, '44k': 44100}
LATENT_DIMS = {'16k': 20, '44k': 40}
RECORDED = '//pretrained/mmaudio/empty_string'  # features of the empty caption, by ...
CLIP_WEIGHTS = '//pretrained/clip_dfn5b'


class MMAudioSolver(GenerationSolver):
    """A batch is raw latents (mean, std) with the features of pictures and words; the loss is the velocity's error."""

    def build_dataloaders(self) -> None:
        """Stores of each stage; `test` is read by `evaluate`, when all epochs are done."""
        stages = planned_stages(self.cfg)
        # Dims and latent statistics come from the training store.
        splits = {stage: stage for stage in ('train', *stages)}
        if 'evaluate' in stages and (self.cfg.dset.get('test') or {}).get('stores'):
            splits['test'] = 'evaluate'
        problems = []
        for split, like in splits.items():
            try:
                self.dataloaders[split] = self._loader(split, like)
            except UserError as error:
                problems.append(str(error))
        if problems:  # all that is missing is named at once
            raise UserError('\n'.join(dict.fromkeys(problems)))
        self.data = self.dataloaders['train'].mixture
        self.facts = self.known_facts(dict(self.data.facts))  # in checkpoints: extractors and codec of the model
        self.register_stateful('facts')

    def _loader(self, split: str, like: str) -> StoreLoader:
        # In evaluate and generate the processes share out whole batches.
        world_size = distrib.world_size() if split in ('train', 'valid') else 1
        return build_loader(self.cfg.dset[split], self.cfg.dataset, stage=like, seed=self.cfg.seed,
                            rank=distrib.rank() % world_size, world_size=world_size, split=split)

    def known_facts(self, facts: dict) -> dict:
        """The facts of the stores; for those that MMAudio itself made, which say nothing, what is known of them."""
        if self.cfg.latents not in SAMPLE_RATES:
            raise UserError(f'latents={self.cfg.latents}: expected {" or ".join(SAMPLE_RATES)}.')
        found = sizes(self.data.keys)
        if 'extractors' in facts or any(found.get(name, size) != size for name, size in PUBLISHED_DIMS.items()):
            return facts
        known = published_facts(SAMPLE_RATES[self.cfg.latents]) | facts
        if not (self.cfg.codec or facts.get('codec')):
            check_latents(found, self.cfg.latents, known['duration'])
        return known

    def build_model(self) -> None:
        """The network, with dims and statistics of the stores, and what trains it."""
        needed = self.sizes()
        for split, loader in self.dataloaders.items():
            check_sizes(loader.mixture, split, needed)
        model = build(self.cfg.model, **needed)
        if not self.has_weights:
            self.set_constants(model)
        self.model = self.prepare(model)
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.register_stateful('model', 'optimizer', 'schedule', 'updater')
        self.register_best('model')
        self.register_ema('model')

    @property
    def has_weights(self) -> bool:
        """Whether the weights come from elsewhere, with the constants that belong to them."""
        return bool(self.cfg.continue_from or list_checkpoints(self.folder / 'checkpoints'))

    def set_constants(self, model: MMAudio) -> None:
        """Statistics of the latents (process 0 makes the pass over a store that does not state them), empty caption."""
        mean, std = distrib.from_rank_zero(lambda: [x.tolist() for x in self.data.latent_stats()])
        model.latent_mean.data.copy_(torch.tensor(mean))
        model.latent_std.data.copy_(torch.tensor(std))
        text = self.empty_text()
        if text is not None and text.shape != model.empty_string_feat.shape:
            raise UserError(f'The features of the empty caption are {_words(text.shape)}, those of the stores '
                            f'{_words(model.empty_string_feat.shape)}: they were made by another text tower.')
        if text is not None:
            model.empty_string_feat.data.copy_(text)

    def empty_text(self) -> torch.Tensor | None:
        """Features of the empty caption `[T, D]`, which stand for dropped or missing words; None if nobody knows."""
        if 'extractors' not in self.facts:
            self.logger.warning('No store says what made its text features: zeros stand for the empty caption.')
            return None
        missing = ''
        towers = [made['build_cfg'].get('weights') for made in self.facts['extractors'].values()
                  if 'text_features' in made['keys']]
        if towers == [CLIP_WEIGHTS]:  # a file of a few numbers tells what a tower of gigabytes would say
            try:
                recorded = resolve_path(RECORDED)
            except UserError as error:
                missing = f'The features of the empty caption are needed. {error}\nOr, to compute them: '
            else:
                return empty_string(recorded)
        try:
            text = self.online.text('').cpu()
        except UserError as error:
            raise UserError(f'{missing}{error}') from error
        del self._online  # a tower of CLIP that training does not need
        return text

    def sizes(self) -> dict[str, int]:
        """Dims and lengths of the network: those of the stores, and for what none has those of the weights to go on
        from, or else MMAudio's."""
        found = sizes(self.data.keys)
        if all(f'{name}_dim' in found for name in FEATURES.values()):
            return found
        given: dict[str, int] = {}
        if self.cfg.continue_from:
            given = find_checkpoint(self.cfg.continue_from).state['models'].get('model') or {}
        lengths = sequence_lengths(float(self.facts.get('duration', 8.)), SAMPLE_RATES[self.cfg.latents], hop=256)
        known = PUBLISHED_DIMS | dict(clip_seq_len=lengths.clip, sync_seq_len=lengths.sync) | given
        absent = {f'{name}_{what}': known[f'{name}_{what}'] for name in FEATURES.values() for what in ('dim', 'seq_len')
                  if f'{name}_dim' not in found}
        self.logger.info('No store has %s: their sizes are %s.',
                         ' or '.join(key for key, name in FEATURES.items() if f'{name}_dim' not in found), absent)
        return found | absent

    def check_needs(self) -> None:
        super().check_needs()
        if self.cfg.sampling.method not in samplers.METHODS:
            raise UserError(f'sampling.method={self.cfg.sampling.method}: expected one of '
                            f'{", ".join(samplers.METHODS)}.')

    def get_formatter(self, stage_name: str) -> Formatter:
        """Losses by time, and reasons why there is no score, go to the files: the latter are in warnings as well."""
        return Formatter(default_format='.4g', exclude_keys=['loss_t*', '*/loss_t*', '*_reason'])

    def best_metric(self) -> str:
        return 'loss'

    def run_step(self, idx: int, batch: Batch, metrics: dict) -> dict:
        """One update on the flow-matching loss; draws in the order latents, time, noise, video nulls, text nulls."""
        padding = batch.part is not None and batch.part.padding
        batch = batch.to(self.device, non_blocking=True)
        draws = self.draws(len(batch))
        with self.autocast():
            mean, std = batch.tensors['mean'], batch.tensors['std']
            x1 = self.model.normalize(mean + std * draws.randn(*mean.shape[1:]))
            t = path.logit_normal(draws.randn(), self.cfg.sampling.mean, self.cfg.sampling.scale)
            x0 = draws.randn(*mean.shape[1:])
            clip, sync, text = self.drop_conditions(batch, draws)
            xt = path.interpolate(x0, x1, t, self.cfg.sampling.min_sigma)
            pred = self.model(xt, clip, sync, text, t)
            losses = path.flow_loss(pred, x0, x1, self.cfg.sampling.min_sigma)
            loss = losses.mean()
        metrics['loss'] = loss.detach()
        if self.is_training:
            metrics.update(self.updater(loss))
        elif not padding:
            self.time_bins += torch.stack(path.binned(losses.float(), t.float(), TIME_BINS))
        return metrics

    def common_train_valid(self, split: str, **kwargs) -> dict:
        """Means over the items; outside of train also `loss_tNN`, the mean of the items in each 25th of time."""
        self.time_bins = torch.zeros(2, TIME_BINS, device=self.device)
        metrics = super().common_train_valid(split, **kwargs)
        if split == 'train':
            return metrics
        sums, counts = torch.tensor(distrib.gather(self.time_bins.tolist())).sum(0)
        return metrics | {f'loss_t{i:02d}': float(sums[i] / counts[i]) for i in range(TIME_BINS) if counts[i]}

    def drop_conditions(self, batch: Batch, draws) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features of pictures, motion and words, with learned nulls where they are absent or dropped for guidance."""
        clip, sync, text = self.full_conditions(batch)
        null = self.cfg.null_condition
        drop_clip, drop_text = draws.rand() < null.probability, draws.rand() < null.text_probability
        drop_sync = drop_clip if null.joint else draws.rand() < null.probability
        where = lambda drop, empty, x: torch.where(drop[:, None, None], empty.to(x.dtype), x)  # noqa: E731
        if self.is_training:
            clip = where(drop_clip, self.model.empty_clip_feat, clip)
            sync = where(drop_sync, self.model.empty_sync_feat, sync)
            text = where(drop_text, self.model.empty_string_feat, text)
        return clip, sync, text

    def full_conditions(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`clip [B, Tc, Dc]`, `sync [B, Ts, Ds]`, `text [B, Tt, Dt]` with nulls at the rows that have none."""
        model = self.model
        return (batch.fill('clip_features', model.empty_clip_feat.expand(model.clip_seq_len, -1)),
                batch.fill('sync_features', model.empty_sync_feat.expand(model.sync_seq_len, -1)),
                batch.fill('text_features', model.empty_string_feat))

    def generate_audio(self, batch: Batch) -> torch.Tensor:
        conditions = self.model.preprocess_conditions(*self.full_conditions(batch))
        empty = self.model.empty_conditions(len(batch))
        sampling = self.cfg.sampling
        field = self.model.field(conditions, empty, sampling.guidance)
        noise = self.draws(len(batch)).randn(self.model.latent_seq_len, self.model.latent_dim)
        latents = samplers.integrate(field, noise, method=sampling.method, steps=sampling.steps)
        latents = self.model.unnormalize(latents).transpose(1, 2)
        samples = round(self.duration * self.codec.sample_rate)
        with torch.autocast(self.device.type, enabled=False):  # what was trained in float32 decodes in float32
            # A vocoder takes gigabytes for each few clips at full rate.
            return torch.cat([self.codec.decode(part, num_samples=samples)
                              for part in latents.float().split(DECODED_TOGETHER)])

    def train_ids(self) -> list[str]:
        return self.data.ids


LATENTS = ('mean', 'std')
FEATURES = {'clip_features': 'clip', 'sync_features': 'sync', 'text_features': 'text'}


def sizes(keys: dict) -> dict[str, int]:
    """Dims and lengths of the network from the shapes of the keys that the stores have."""
    absent = [key for key in LATENTS if key not in keys]
    if absent:
        raise UserError(f'dset.train.stores: no store has the latents "{absent[0]}" (there is {", ".join(keys)}): '
                        'extract them with a compression model of continuous latents, and name them in dset.train.keys '
                        'if it is given.')
    found = {f'{name}_{what}': keys[key][0][axis] for key, name in FEATURES.items() if key in keys
             for axis, what in enumerate(('seq_len', 'dim'))}
    return found | dict(latent_seq_len=keys['mean'][0][0], latent_dim=keys['mean'][0][1])


def check_sizes(mixture: Mixture, split: str, needed: dict[str, int]) -> None:
    """Refuse stores whose items the network cannot take.

    Raises:
        UserError: latents are missing, or have other sizes than those that the network is built for.
    """
    for store in mixture.stores:
        absent = [key for key in LATENTS if key not in store.keys or key not in mixture.keys]
        if absent and split != 'generate':
            raise UserError(f'dset.{split}.stores: {store.files.folder} has no latents "{absent[0]}" to read.')
        for key, name in {**FEATURES, **dict.fromkeys(LATENTS, 'latent')}.items():
            expected = needed[f'{name}_seq_len'], needed[f'{name}_dim']
            if key in store.keys and key in mixture.keys and store.keys[key][0] != expected:
                raise UserError(f'dset.{split}.stores: "{key}" is {_words(store.keys[key][0])} in {store.files.folder}'
                                f', but the network takes {_words(expected)}, the sizes of the training data.')


def check_latents(found: dict[str, int], latents: str, duration: float) -> None:
    """Refuse latents of stores that say nothing, where they are not those that `latents` stands for."""
    shapes = {name: (lengths_of(rate, duration).latent, LATENT_DIMS[name]) for name, rate in SAMPLE_RATES.items()}
    shape = found['latent_seq_len'], found['latent_dim']
    if shape != shapes[latents]:
        other = ''.join(f'They are those of latents={name}.' for name in shapes if shapes[name] == shape)
        raise UserError(f'dset.train.stores: the latents are {_words(shape)}, no facts file says what made them, and '
                        f'latents={latents} stands for {_words(shapes[latents])}. '
                        + (other or 'Name the compression model that made them: codec=...'))


def _words(shape: tp.Sequence[int | None]) -> str:
    return ' x '.join(map(str, shape))
