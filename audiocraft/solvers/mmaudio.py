"""MMAudio: latents of sound from video and text, by flow matching (Cheng et al. 2025, arXiv:2412.15322)."""

import torch

from .. import distrib, optim
from ..data.loaders import build_loader
from ..data.store_dataset import Batch
from ..flow import path, samplers
from ..utils.config import build
from ..utils.errors import UserError
from .generation import GenerationSolver

STAGES = ('train', 'valid', 'evaluate', 'generate')


class MMAudioSolver(GenerationSolver):
    """A batch is raw latents (mean, std) with the features of pictures and words; the loss is the velocity's error."""

    def build_dataloaders(self) -> None:
        stages = [self.cfg.execute_only] if self.cfg.execute_only else STAGES
        for stage in dict.fromkeys([*stages, 'train']):  # dims and latent statistics come from the training store
            # In evaluate and generate the processes share out whole batches.
            world_size = distrib.world_size() if stage in ('train', 'valid') else 1
            self.dataloaders[stage] = build_loader(self.cfg.dset[stage], self.cfg.dataset, stage=stage,
                                                   seed=self.cfg.seed, rank=distrib.rank() % world_size,
                                                   world_size=world_size)
        self.data = self.dataloaders['train'].mixture
        self.facts = dict(self.data.facts)  # in checkpoints: which extractors and codec belong to the model
        self.register_stateful('facts')

    def build_model(self) -> None:
        mean, std = self.data.latent_stats()
        model = build(self.cfg.model, **sizes(self.data.keys), latent_mean=mean.tolist(), latent_std=std.tolist(),
                      empty_string_feat=self.empty_text())
        self.model = self.prepare(model)
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.register_stateful('model', 'optimizer', 'schedule', 'updater')
        self.register_best('model')
        self.register_ema('model')

    def best_metric(self) -> str:
        return 'loss'

    def run_step(self, idx: int, batch: Batch, metrics: dict) -> dict:
        """One update on the flow-matching loss; draws in the order latents, time, noise, video nulls, text nulls."""
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
            loss = path.flow_loss(pred, x0, x1, self.cfg.sampling.min_sigma).mean()
        metrics['loss'] = loss.detach()
        if self.is_training:
            metrics.update(self.updater(loss))
        return metrics

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
        return (batch.fill('clip_features', self.model.empty_clip_feat),
                batch.fill('sync_features', self.model.empty_sync_feat),
                batch.fill('text_features', self.model.empty_string_feat))

    def train(self):
        return self.common_train_valid('train')

    def valid(self):
        return self.common_train_valid('valid')

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

    def empty_text(self) -> list[list[float]] | None:
        """Features of the empty caption, which stand for dropped or missing words."""
        return self.online.text('').tolist() if self.facts.get('extractors') else None


def sizes(keys: dict) -> dict[str, int]:
    """Dims and lengths of the network from the shapes of a store's keys."""
    missing = [key for key in ('mean', 'clip_features', 'sync_features', 'text_features') if key not in keys]
    if missing:
        raise UserError(f'dset.train.stores: no store has {" or ".join(missing)} (there is {", ".join(keys)}). Name at '
                        'least one store of videos with captions; stores of sound alone can stand beside it.')
    (latent_seq_len, latent_dim), (clip_seq_len, clip_dim) = keys['mean'][0], keys['clip_features'][0]
    (sync_seq_len, sync_dim), (text_seq_len, text_dim) = keys['sync_features'][0], keys['text_features'][0]
    return dict(latent_dim=latent_dim, latent_seq_len=latent_seq_len, clip_dim=clip_dim, clip_seq_len=clip_seq_len,
                sync_dim=sync_dim, sync_seq_len=sync_seq_len, text_dim=text_dim, text_seq_len=text_seq_len)
