"""MMAudio: latents of sound from video and text, by flow matching (Cheng et al. 2025, arXiv:2412.15322)."""

import torch
from flashy.formatter import Formatter

from .. import distrib, optim
from ..data.loaders import StoreLoader, build_loader
from ..data.store_dataset import Batch
from ..flow import path, samplers
from ..models.loaders import find_checkpoint
from ..models.mmaudio import PUBLISHED_DIMS
from ..models.published.mmaudio import empty_string, published_facts
from ..modules.sequence import sequence_lengths
from ..utils.checkpoint import list_checkpoints
from ..utils.config import build
from ..utils.errors import UserError
from .generation import GenerationSolver

STAGES = ('train', 'valid', 'evaluate', 'generate')
TIME_BINS = 25
SAMPLE_RATES = {'16k': 16000, '44k': 44100}


class MMAudioSolver(GenerationSolver):
    """A batch is raw latents (mean, std) with the features of pictures and words; the loss is the velocity's error."""

    def build_dataloaders(self) -> None:
        """Stores of each stage; `test` is read by `evaluate`, when all epochs are done."""
        stages = [self.cfg.execute_only] if self.cfg.execute_only else STAGES
        for stage in dict.fromkeys([*stages, 'train']):  # dims and latent statistics come from the training store
            self.dataloaders[stage] = self._loader(stage, stage)
        if 'evaluate' in stages and (self.cfg.dset.get('test') or {}).get('stores'):
            self.dataloaders['test'] = self._loader('test', 'evaluate')
        self.data = self.dataloaders['train'].mixture
        self.facts = self.known_facts(dict(self.data.facts))  # in checkpoints: extractors and codec of the model
        self.register_stateful('facts')

    def _loader(self, split: str, like: str) -> StoreLoader:
        # In evaluate and generate the processes share out whole batches.
        world_size = distrib.world_size() if split in ('train', 'valid') else 1
        return build_loader(self.cfg.dset[split], self.cfg.dataset, stage=like, seed=self.cfg.seed,
                            rank=distrib.rank() % world_size, world_size=world_size)

    def known_facts(self, facts: dict) -> dict:
        """The facts of the stores; for those that MMAudio itself made, which say nothing, what is known of them."""
        text = self.data.keys.get('text_features')
        if 'extractors' in facts or not text or text[0] != (PUBLISHED_DIMS['text_seq_len'], PUBLISHED_DIMS['text_dim']):
            return facts
        return published_facts(SAMPLE_RATES[self.cfg.latents]) | facts

    def build_model(self) -> None:
        """The network, with dims and statistics of the stores, and what trains it."""
        model = build(self.cfg.model, **self.sizes(), **self.latent_statistics())
        if not self.has_weights and (text := self.empty_text()) is not None:
            model.empty_string_feat.data.copy_(text)
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

    def latent_statistics(self) -> dict[str, list[float]]:
        """Mean and deviation of the latents: a pass over a store that does not state them, so process 0 makes it."""
        if self.has_weights:
            return {}
        mean, std = distrib.from_rank_zero(lambda: [x.tolist() for x in self.data.latent_stats()])
        return {'latent_mean': mean, 'latent_std': std}

    def empty_text(self) -> torch.Tensor | None:
        """Features of the empty caption `[T, D]`, which stand for dropped or missing words; None if nobody knows."""
        if 'extractors' not in self.facts:
            self.logger.warning('No store says what made its text features: zeros stand for the empty caption.')
            return None
        if 'extractors' not in self.data.facts and (found := self._recorded_empty_text()) is not None:
            return found
        text = self.online.text('').cpu()
        del self._online  # a tower of CLIP that training does not need
        return text

    def _recorded_empty_text(self) -> torch.Tensor | None:
        try:
            return empty_string()
        except UserError as error:
            self.logger.info('%s Computing the features of the empty caption instead.', error)
            return None

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

    def get_formatter(self, stage_name: str) -> Formatter:
        """Losses by time go to the files, not to the terminal."""
        return Formatter(default_format='.4g', exclude_keys=['loss_t*'])

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
        latents = self.model.unnormalize(latents)
        return self.codec.decode(latents.transpose(1, 2), num_samples=round(self.duration * self.codec.sample_rate))

    def train_ids(self) -> list[str]:
        return self.data.ids


FEATURES = {'clip_features': 'clip', 'sync_features': 'sync', 'text_features': 'text'}


def sizes(keys: dict) -> dict[str, int]:
    """Dims and lengths of the network from the shapes of the keys that the stores have."""
    if 'mean' not in keys:
        raise UserError(f'dset.train.stores: no store has the latents "mean" (there is {", ".join(keys)}): extract '
                        'them with a compression model of continuous latents.')
    found = {f'{name}_{what}': keys[key][0][axis] for key, name in FEATURES.items() if key in keys
             for axis, what in enumerate(('seq_len', 'dim'))}
    return found | dict(latent_seq_len=keys['mean'][0][0], latent_dim=keys['mean'][0][1])
