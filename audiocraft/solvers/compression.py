"""Training of compression models: audio to latents and back."""

import hashlib
import typing as tp
from pathlib import Path

import torch

from .. import distrib, optim
from ..data.audio_dataset import AudioBatch, AudioSegments
from ..data.samples import Clip, SampleWriter, read_events
from ..metrics.base import Metric
from ..models.compression import Reconstruction
from ..pages.samples import write_page
from ..utils.config import build
from ..utils.errors import UserError
from . import base

STAGES = ('train', 'valid', 'evaluate', 'generate')
Metrics = dict[str, tp.Any]


class CompressionSolver(base.StandardSolver):
    """A batch is segments of audio; the loss is the distance of the reconstruction, and the cost of the bottleneck.

    Any `CompressionModel` whose penalty and reconstruction can be minimised together; for a variational auto-encoder
    the penalty is the KL divergence.
    """

    def build_dataloaders(self) -> None:
        """Segments of the media of each stage: at random places in train, from the beginning of each file elsewhere."""
        stages = [self.cfg.execute_only] if self.cfg.execute_only else STAGES
        self.dataloaders = {stage: self._segments(stage) for stage in stages if stage not in ('evaluate', 'generate')
                            or self.cfg[stage].every != 0 or self.cfg.execute_only}

    def _segments(self, stage: str) -> AudioSegments:
        dataset, media = self.cfg.dataset, self.cfg.dset[stage].media
        if not media:
            raise UserError(f'dset.{stage}.media is not set: a folder of media files, or a manifest, was expected. '
                            'Use dset=example, or name your own.')
        train = stage == 'train'
        return AudioSegments(
            media, sample_rate=self.cfg.sample_rate, channels=self.cfg.channels, seed=self.seed, random=train,
            segment=dataset.segment_duration if train else dataset.eval_duration, align=dataset.align if train else 1,
            batch_size=dataset[stage].get('batch_size') or dataset.batch_size, threads=dataset.num_workers,
            limit=dataset[stage].num_samples, cache_bytes=int(dataset.cache_gb * 2 ** 30),
            rank=distrib.rank() if train else 0, world_size=distrib.world_size() if train else 1)

    def data_facts(self) -> dict[str, tp.Any]:
        """Number, names and lengths of the media files of each stage."""
        return {stage: {'media': {'files': len(loader.files), 'sha256': _digest(loader)}}
                for stage, loader in self.dataloaders.items()}

    def build_model(self) -> None:
        """The model, its losses, and what trains it."""
        self.model = build(self.cfg.model).to(self.device)
        if (self.model.sample_rate, self.model.channels) != (self.cfg.sample_rate, self.cfg.channels):
            raise UserError(f'sample_rate and channels are {self.cfg.sample_rate} and {self.cfg.channels}, but those '
                            f'of the model are {self.model.sample_rate} and {self.model.channels}.')
        self.losses = {name: build(node) for name, node in self.cfg.losses.items()}
        unknown = self.cfg.weights.keys() - {*self.losses, 'penalty'}
        if unknown:
            raise UserError(f'weights.{min(unknown)} belongs to no loss; the losses are {", ".join(self.losses)}')
        self.optimizer = optim.build_optimizer(self.model.parameters(), self.cfg.optim)
        self.schedule = optim.build_lr_scheduler(self.optimizer, self.cfg.schedule, self.total_updates)
        self.updater = self.build_updater(self.model.parameters(), self.optimizer, self.schedule)
        self.register_stateful('model', 'optimizer', 'schedule', 'updater')
        self.register_best('model')
        self.register_ema('model')

    def best_metric(self) -> str:
        """The weighted sum of the losses."""
        return 'loss'

    def train(self) -> Metrics | None:
        """Train stage: one epoch; before the first one the model looks at the data."""
        if self.update == 0 and not self.cfg.continue_from:
            self.model.fit_statistics(self._statistics_batches())
        return self.common_train_valid('train')

    def _statistics_batches(self, files: int = 256) -> tp.Iterator[torch.Tensor]:
        """Segments `[1, C, T]` from the middles of files that are evenly spread over the training set."""
        loader = self.dataloaders['train']
        for index in range(0, len(loader.files), max(1, len(loader.files) // files)):
            yield loader.segment(index, 0.5)[None].to(self.device)

    def run_step(self, idx: int, batch: AudioBatch, metrics: Metrics) -> Metrics:
        """One update; outside of train the latents are the means of their posteriors."""
        wav = batch.to(self.device, non_blocking=True).audio
        draws = self.draws(len(batch)) if self.is_training else None
        with self.autocast():
            loss = self.loss(self.model(wav, draws), metrics)
        if self.is_training:
            metrics.update(self.updater(loss))
        return metrics

    def loss(self, reconstruction: Reconstruction, metrics: Metrics) -> torch.Tensor:
        """The weighted sum of the losses and the penalty; each goes into the metrics."""
        terms = {name: loss(reconstruction.output.float(), reconstruction.target)
                 for name, loss in self.losses.items()}
        terms['penalty'] = reconstruction.penalty
        total = sum((self.cfg.weights.get(name, 1.) * value for name, value in terms.items()), torch.zeros(()))
        metrics.update({name: value.detach() for name, value in {'loss': total, **terms}.items()})
        metrics.update(reconstruction.metrics)
        return total

    def reconstructions(self, stage: str) -> tp.Iterator[tuple[Clip, Clip]]:
        """Yield (reconstruction, truth) for the media of a stage."""
        self.model.eval()
        loader = self.dataloaders[stage]
        paths = {path.stem: path for path in loader.files}
        for batch in loader:
            self.check_stop()
            wav = batch.audio.to(self.device)
            decoded = self.model.decode(self.model.encode(wav), num_samples=wav.shape[-1]).cpu()
            for clip_id, made, true in zip(batch.ids, decoded, batch.audio):
                yield (Clip(clip_id, made, self.model.sample_rate),
                       Clip(clip_id, true, self.model.sample_rate, media=paths[clip_id],
                            events=read_events(paths[clip_id].parent, clip_id)))

    def evaluate(self) -> Metrics:
        """Losses and metrics of the reconstruction of `dset.evaluate`."""
        results = dict(self.common_train_valid('evaluate'))
        metrics: list[Metric] = [build(node) for node in (self.cfg.evaluate.metrics or {}).values() if node]
        pairs = list(self.reconstructions('evaluate')) if metrics else []
        for metric in metrics:
            metric.update([made for made, _ in pairs], [true for _, true in pairs])
            results |= metric.compute()
        return results

    def generate(self) -> Metrics:
        """Reconstructions of `dset.generate`, each beside its truth, and the page."""
        writer = SampleWriter(self.folder / 'generate' / str(self.update))
        count = 0
        for made, true in self.reconstructions('generate'):
            writer.add(made, reference=true, prompt='reconstruction', checkpoint=self.checkpoint_name,
                       update=self.update)
            count += 1
        self.logger.info('Page: %s', self.write_page())
        return {'clips': float(count)}

    def write_page(self) -> Path:
        """Write the page of this XP."""
        return write_page(self.folder, signature=self.xp.sig, delta=list(self.xp.argv))


def _digest(loader: AudioSegments) -> str:
    listed = [(path.name, round(seconds, 3)) for path, seconds in zip(loader.files, loader.durations)]
    return hashlib.sha256(repr(listed).encode()).hexdigest()
