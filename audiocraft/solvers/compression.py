"""Training of compression models: audio to latents and back."""

import hashlib
import typing as tp

import torch

from .. import distrib, optim
from ..data.audio_dataset import AudioBatch, AudioDataset
from ..data.audio_loader import AudioLoader
from ..data.samples import Clip, SampleWriter, read_events
from ..environment import resolve_path
from ..metrics.base import Metric
from ..models.compression import Codes
from ..pages import plots
from ..pages.samples import write_page
from ..utils.config import build, suggest
from ..utils.errors import UserError
from . import base
from .adversaries import Adversaries

STAGES = ('train', 'valid', 'evaluate', 'generate')
# How training segments are drawn: keys of `dataset`.
SAMPLING = ('align', 'min_segment_ratio', 'min_audio_duration', 'max_audio_duration', 'sample_on_duration',
            'sample_on_weight', 'permutation_on_files', 'fast_draws')
Metrics = dict[str, tp.Any]


class CompressionSolver(base.StandardSolver):
    """A batch is segments of audio; the loss is the distance of the reconstruction, and the cost of the bottleneck.

    Any `CompressionModel`: with codebooks the penalty is the commitment, with continuous latents the KL divergence.
    Discriminators are optional; so is a balancer, which lets a loss's weight decide its share of the gradient
    (Défossez et al. 2022, arXiv:2210.13438, section 3.4).
    """

    def build_dataloaders(self) -> None:
        """Segments of the media of each stage: at random places in train, from the beginning of each file elsewhere."""
        stages = [self.cfg.execute_only] if self.cfg.execute_only else STAGES
        self.dataloaders = {stage: self._loader(stage) for stage in stages if stage not in ('evaluate', 'generate')
                            or self.cfg[stage].every != 0 or self.cfg.execute_only}

    def _loader(self, stage: str) -> AudioLoader:
        dataset, media, train = self.cfg.dataset, self.cfg.dset[stage].media, stage == 'train'
        shared = stage in ('train', 'valid')  # in evaluate and generate the processes share out whole batches
        if not media:
            raise UserError(f'dset.{stage}.media is not set: a folder of media files, or a manifest, was expected. '
                            'Use dset=example, or name your own.')
        if not resolve_path(media).exists():
            raise UserError(f'dset.{stage}.media: there is no folder or manifest {media}. Name yours (dset.root=...), '
                            f'or make sounds: python -m audiocraft make_example --kind audio --out {media} --clips 64 '
                            f'--seed {STAGES.index(stage) + 1}')
        sampling = {name: dataset[name] for name in SAMPLING} if train else {'sequential': True}
        audio = AudioDataset(
            resolve_path(media), sample_rate=self.cfg.sample_rate, channels=self.cfg.channels, shuffle_seed=self.seed,
            segment=dataset.segment_duration if train else dataset.eval_duration,
            num_samples=dataset[stage].num_samples, on_missing=dataset.on_missing,
            cache_bytes=int(dataset.cache_gb * 2 ** 30), **sampling)
        return AudioLoader(
            audio, batch_size=dataset[stage].get('batch_size') or dataset.batch_size, threads=dataset.num_workers,
            infinite=train, pin=self.device.type == 'cuda', rank=distrib.rank() if shared else 0,
            world_size=distrib.world_size() if shared else 1)

    def data_facts(self) -> dict[str, tp.Any]:
        """Number, names and lengths of the media files of each stage."""
        return {stage: {'media': {'files': len(loader.files), 'sha256': _digest(loader)}}
                for stage, loader in self.dataloaders.items()}

    def build_model(self) -> None:
        """The model, its losses, and what trains it."""
        self.model = self.prepare(build(self.cfg.model))
        if (self.model.sample_rate, self.model.channels) != (self.cfg.sample_rate, self.cfg.channels):
            raise UserError(f'sample_rate and channels are {self.cfg.sample_rate} and {self.cfg.channels}, but those '
                            f'of the model are {self.model.sample_rate} and {self.model.channels}.')
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.register_stateful('model', 'optimizer', 'schedule', 'updater')
        self.register_best('model')
        self.register_ema('model')
        self.build_losses()

    def build_losses(self) -> None:
        """The losses by name, their balancer, and the discriminators with what trains them."""
        self.losses = {name: build(node).to(self.device) for name, node in self.cfg.losses.items() if node}
        self.adversaries = Adversaries(self.cfg.adversarial, self.device, self.build_updater)
        self.check_weights()
        self.balancer = build(self.cfg.balancer) if self.cfg.balancer else None
        if self.balancer is not None:
            self.register_stateful('balancer')
        if self.adversaries:
            self.discriminators, self.discriminator_optimizer = self.adversaries.modules, self.adversaries.optimizer
            self.discriminator_updater = self.adversaries.updater
            self.register_stateful('discriminators', 'discriminator_optimizer', 'discriminator_updater')

    def check_weights(self) -> None:
        """Each weight belongs to a loss: a misspelled one would silently weigh nothing."""
        known = {'penalty', 'adv', 'feat', *self.losses,
                 *(f'{kind}_{name}' for kind in ('adv', 'feat') for name in self.adversaries.modules)}
        for name in sorted(self.cfg.weights.keys() - known):
            raise UserError(f'weights.{name} belongs to no loss; the losses are {", ".join(sorted(known))}. '
                            f'{suggest(name, known)}'.rstrip())

    def weight(self, name: str) -> float:
        """The weight of a loss; `adv` and `feat` are those of all discriminators that have none of their own."""
        shared = name.split('_')[0] if name.startswith(('adv_', 'feat_')) else name
        return float(self.cfg.weights.get(name, self.cfg.weights.get(shared, 1.)))

    def best_metric(self) -> str | None:
        """The weighted sum of the losses; with discriminators none, since their losses move with them."""
        return None if self.adversaries else 'loss'

    def train(self) -> Metrics | None:
        """Train stage: one epoch; before the first one the model looks at the data."""
        if self.update == 0 and not self.cfg.continue_from:
            self.model.fit_statistics(self._statistics_batches())
        return self.common_train_valid('train')

    def _statistics_batches(self, files: int = 256) -> tp.Iterator[torch.Tensor]:
        """Segments `[1, C, T]` from the middles of files that are evenly spread over the training set."""
        for wav in self.dataloaders['train'].spread(files):
            yield wav[None].to(self.device)

    def run_step(self, idx: int, batch: AudioBatch, metrics: Metrics) -> Metrics:
        """One update: the discriminators first, then the model against them; outside of train nothing is random."""
        wav = batch.to(self.device, non_blocking=True).audio
        draws = self.draws(len(batch)) if self.is_training else None
        with self.autocast():
            reconstruction = self.model(wav, draws)
        output, target = reconstruction.output.float(), reconstruction.target.float()
        prepared = self.adversaries.prepare(output, target)
        if draws is not None and self.adversaries and draws.uniform() * self.adversaries.every < 1:
            metrics.update(self.adversaries.update(prepared))
        losses = {**self.adversaries.losses(prepared), **self.reconstruction_losses(output, target)}
        metrics.update(reconstruction.metrics)
        loss = self.total(losses, reconstruction.penalty, output, metrics)
        if self.is_training:
            metrics.update(self.updater(loss))
        return metrics

    def reconstruction_losses(self, output: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Each loss by name; one of weight 0 only informs."""
        values = {}
        for name, loss in self.losses.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight(name) > 0):
                values[name] = loss(output, target)
        return values

    def total(self, losses: dict[str, torch.Tensor], penalty: torch.Tensor, output: torch.Tensor,
              metrics: Metrics) -> torch.Tensor:
        """What is minimised: the losses, balanced or by their weights, and the penalty of the bottleneck.

        `loss` in the metrics is the weighted sum in any case, so that train and valid can be compared.
        """
        weights = {name: self.weight(name) for name in losses if self.weight(name) > 0}
        used = {name: losses[name] for name in weights}
        cost = self.weight('penalty') * penalty
        total = sum((weights[name] * value for name, value in used.items()), cost)
        metrics.update({name: value.detach() for name, value in {'loss': total, **losses, 'penalty': penalty}.items()})
        if self.balancer is None or not self.is_training:
            return total
        balanced = self.balancer(used, output, weights)
        metrics.update({'g_loss': balanced.loss.detach(), **balanced.ratios})
        return balanced.loss + cost

    @torch.no_grad()
    def reconstructions(self, stage: str) -> list[tuple[Clip, Clip]]:
        """(reconstruction, truth) for the media of a stage, which the processes share out; process 0 gets all."""
        self.model.eval()
        batches = list(self.dataloaders[stage])
        own: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        for number, batch in self.share_batches(batches):
            wav = batch.audio.to(self.device)
            encoded = self.model.encode(wav)
            decoded = self.model.decode(encoded, num_samples=wav.shape[-1]).float().cpu()
            if number >= 0:
                own[number] = decoded, encoded.codes.cpu() if isinstance(encoded, Codes) else None
        made = {number: pair for part in distrib.gather(own, everywhere=False) for number, pair in part.items()}
        return [pair for number in sorted(made) for pair in self._clips(stage, batches[number], *made[number])]

    def _clips(self, stage: str, batch: AudioBatch, decoded: torch.Tensor,
               codes: torch.Tensor | None) -> tp.Iterator[tuple[Clip, Clip]]:
        loader, rate = self.dataloaders[stage], self.model.sample_rate
        paths = dict(zip(loader.dataset.ids, loader.files))
        all_codes = [None] * len(batch) if codes is None else codes
        for clip_id, made, true, code in zip(batch.ids, decoded, batch.audio, all_codes):
            yield (Clip(clip_id, made, rate, codes=code, frame_rate=self.model.frame_rate,
                        bins=self.model.codebook_size or None),
                   Clip(clip_id, true, rate, media=paths[clip_id],
                        events=read_events(paths[clip_id].parent, paths[clip_id].stem)))

    def evaluate(self) -> Metrics:
        """Losses and metrics of the reconstructions; with `evaluate.untrained`, those of a new model beside them."""
        results = dict(self.common_train_valid('evaluate'))
        metrics: list[Metric] = [build(node) for node in (self.cfg.evaluate.metrics or {}).values() if node]
        results |= self.score(metrics)
        if self.cfg.evaluate.untrained and metrics:
            trained, self.model = self.model, build(self.cfg.model).to(self.device)
            results |= {f'untrained/{name}': value for name, value in self.score(metrics).items()}
            self.model = trained
        return results

    def score(self, metrics: list[Metric]) -> Metrics:
        """The results of each metric over all clips; process 0 computes them for all."""
        pairs = self.reconstructions('evaluate') if metrics else []
        return self.once(lambda: _score(metrics, pairs))

    def generate(self) -> Metrics:
        """Reconstructions of `dset.generate`, each beside its truth, and the page."""
        writer = SampleWriter(self.folder / 'generate' / str(self.update))
        pairs = self.reconstructions('generate')
        for made, true in pairs:
            written = writer.add(made, reference=true, prompt='', label='Reconstruction', update=self.update,
                                 checkpoint=self.checkpoint_name)
            plots.spectrogram_png(made.audio, made.sample_rate, written.with_suffix('.png'), events=true.events)
        return self.once(lambda: {'clips': float(len(pairs))})

    def on_results(self, stage: str) -> None:
        """Write the page of this XP."""
        self.logger.info('Page: %s', write_page(self.folder, signature=self.xp.sig, delta=list(self.xp.argv)))


def _score(metrics: list[Metric], pairs: list[tuple[Clip, Clip]]) -> Metrics:
    results: Metrics = {}
    for metric in metrics:
        metric.reset()
        metric.update([made for made, _ in pairs], [true for _, true in pairs])
        results |= metric.compute()
    return results


def _digest(loader: AudioLoader) -> str:
    listed = [(path.name, round(seconds, 3)) for path, seconds in zip(loader.files, loader.durations)]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
