"""The evaluate and generate loops of every solver that turns conditions into audio."""

import collections
import dataclasses
import json
import shutil
import typing as tp
from contextlib import contextmanager
from pathlib import Path

import torch

from .. import distrib
from ..data.samples import Clip, SampleWriter, read_clip
from ..data.store_dataset import Batch
from ..environment import resolve_path
from ..features.controls import Conditions, Control
from ..features.online import VOCODERS, OnlineFeatures, require_weights
from ..metrics.base import Metric, References
from ..models.loaders import load_model
from ..pages import plots
from ..pages.samples import write_page
from ..utils.checkpoint import list_checkpoints, write_tensors
from ..utils.config import build, to_plain
from ..utils.errors import UserError
from ..utils.files import write_atomic
from ..utils.logging import jsonable
from . import base
from .batches import Batches
from .setup import planned_stages

Clips = list[Clip]
TEST_RESULTS = 'test-output_metrics.json'  # in the folder of the XP


class GenerationSolver(base.StandardSolver):
    """A task adds what is a batch, what is the loss, and `generate_audio`.

    `evaluate` scores what the model generates for the clips of `dset.evaluate`, beside the controls of
    `evaluate.controls` (changed input, same model) and the ceiling (the truth through the codec). It names no metric.
    """

    def generate_audio(self, batch: Batch) -> torch.Tensor:
        """Audio `[B, C, T]` at `self.codec.sample_rate` for the conditions of `batch`."""
        raise NotImplementedError(f'{type(self).__name__} has no generate_audio(batch)')

    facts: dict[str, tp.Any]
    """The facts of the store whose conditions and latents this solver reads; set by `build_dataloaders`."""

    # -- what only these stages need, loaded when first asked for ---------------------------------------------------

    @property
    def codec(self):
        """The compression model that made the latents, frozen."""
        if not hasattr(self, '_codec'):
            self._codec = load_model(self.cfg.codec or self.facts['codec'], device=self.device).eval()
        return self._codec

    def check_needs(self) -> None:
        """That there is a codec, and its vocoder, for the stages that make sound."""
        stages = [stage for stage in planned_stages(self.cfg) if stage == 'generate'
                  or (stage == 'evaluate' and self.cfg.evaluate.metrics)]
        if not stages:
            return
        codec = self.cfg.codec or self.facts.get('codec')
        try:
            if not codec:
                raise UserError('No store says which compression model made its latents: name it by codec=...')
            require_weights([codec, *VOCODERS.get(codec, ())])
            if not resolve_path(codec).exists():
                raise UserError(f'There is no {resolve_path(codec)}.')
        except UserError as error:
            off = ' '.join(f'{stage}.every=0' for stage in stages)
            without = '' if self.cfg.execute_only else f'\nTo train without making sound: {off}.'
            raise UserError(f'The codec {codec or ""}'.rstrip() + f', which {" and ".join(stages)} will need, is not '
                            f'there:\n{error}{without}') from error

    @property
    def online(self) -> OnlineFeatures:
        """The extractors that made the store, for pictures and words that are not in it."""
        if not hasattr(self, '_online'):
            self._online = OnlineFeatures(self.facts, device=self.device)
        return self._online

    @property
    def duration(self) -> float:
        return float(self.facts['duration'])

    # -- evaluate ---------------------------------------------------------------------------------------------------

    def evaluate(self) -> dict[str, tp.Any]:
        """Losses and metrics on `dset.evaluate`; when all epochs are done, also on `dset.test`, with final weights.

        Weights from elsewhere that are only evaluated are final, too.
        """
        results = self.evaluate_on('evaluate')
        given = self.cfg.execute_only and self.cfg.continue_from and \
            not list_checkpoints(self.folder / 'checkpoints')
        if 'test' in self.dataloaders and (given or len(self.history) >= self.epochs):
            with self.final_weights():
                scores = self.evaluate_on('test')
            if distrib.is_rank_zero():
                write_atomic(self.folder / TEST_RESULTS, json.dumps(jsonable(scores), indent=2, allow_nan=False))
            results |= prefixed('test', scores)
        return results

    def evaluate_on(self, split: str) -> dict[str, tp.Any]:
        """Losses and metrics on `dset.<split>`; the same metrics under each control; the ceiling of the codec."""
        self._draw_batch = 0  # noise that does not depend on what was evaluated before
        results = dict(self.common_train_valid(split))
        if not self.cfg.evaluate.metrics:
            return results
        batches = self.batches(split)
        # Process 0 alone compares, and so only it reads the truth.
        references: list[Clip | None] = [None] * len(batches.ids)
        if distrib.is_rank_zero():
            references = self.references(split, batches.ids)
        self.metrics = self.build_metrics(split) if distrib.is_rank_zero() else {}
        results |= self.scores(self.generated_clips(batches), references, self.cfg.evaluate.metrics)
        controls = [name for name in self.cfg.evaluate.control_metrics if self.cfg.evaluate.metrics.get(name)]
        if controls and self.once(lambda: any(references)):
            known = [clip for clip in references if clip is not None]
            results |= prefixed('ceiling', self.scores(self.reconstructions(known), known, controls))
            for name, node in self.cfg.evaluate.controls.items():
                results |= self.run_control(split, name, build(node), batches, references, controls)
        return results

    @contextmanager
    def final_weights(self) -> tp.Iterator[None]:
        """Within the context the modules hold what a finished training is tested with: the moving average.

        A post-hoc one is made from its snapshots; the weights are kept as `final.safetensors` for each module.
        """
        if self.ema is None:
            yield
            return
        states = self.ema.final()
        if distrib.is_rank_zero():
            for name, state in states.items():
                path = self.folder / f'{"final" if name == "model" else f"final.{name}"}.safetensors'
                write_tensors(path.with_suffix('.tmp'), state)
                path.with_suffix('.tmp').replace(path)
        with self.ema.swapped(states):
            yield

    def run_control(self, split: str, name: str, control: Control, batches: Batches,
                    references: list[Clip | None], metrics: tp.Iterable[str]) -> dict[str, tp.Any]:
        """Scores of what is generated from changed pictures or words, against the truth of the pictures.

        Where words came from another clip, the scores against the clip of the words come too (`.../of_caption`).
        """
        items = control([self.conditions(split, i, c) for i, c in zip(batches.ids, batches.captions)])
        generated = self.generated_clips(batches, lambda batch, start: self.online.replace(
            batch, items[start:start + len(batch)]), captions=[item.caption for item in items])
        results = self.scores(generated, references, metrics)
        if all(x.caption_of not in ('', x.id) for x in items):
            by_id = {clip.id: clip for clip in references if clip is not None}
            of_caption = [by_id.get(x.caption_of) for x in items]
            results |= prefixed('of_caption', self.scores(generated, of_caption, metrics))
        return prefixed(name, results)

    def scores(self, generated: Clips, references: References, names: tp.Iterable[str]) -> dict[str, tp.Any]:
        """Each metric's results over all clips; process 0 computes them for all."""
        return self.once(lambda: self._score([name for name in names if name in self.metrics], generated, references))

    def _score(self, names: tp.Iterable[str], generated: Clips, references: References) -> dict[str, tp.Any]:
        results: dict[str, tp.Any] = {}
        for name in names:
            metric = self.metrics[name]
            metric.reset()
            metric.update(generated, references)
            results |= metric.compute()
            self.watchdog.beat(f'{self._current_stage}: {name}')
        return results

    def build_metrics(self, split: str) -> dict[str, Metric]:
        """The metrics; those that can take features of the truth from `dset.<split>.gt_cache` do."""
        given = self.cfg.dset[split].get('gt_cache')
        cache = str(resolve_path(given)) if given else None
        metrics = {name: build({**node, **({'cache': cache} if 'cache' in node else {})})
                   for name, node in (to_plain(self.cfg.evaluate.metrics) or {}).items() if node}
        fitted = [metric for metric in metrics.values() if metric.fitted]
        if fitted:
            clips = self.training_clips(self.cfg.evaluate.fit_clips)
            for metric in fitted:
                metric.prepare(clips)
        return metrics

    # -- generate ---------------------------------------------------------------------------------------------------

    def generate(self) -> dict[str, float]:
        """Sound for the clips of `dset.generate`: wav, mp4 where there is a video, spectrogram, JSON; then the page."""
        batches = self.batches('generate')
        clips = self.generated_clips(batches)
        if distrib.is_rank_zero():
            self.write_samples(clips, self.references('generate', batches.ids))
        return {'clips': float(len(batches.ids))}

    def write_samples(self, clips: Clips, references: list[Clip | None]) -> None:
        """Write what was generated beside the truth; of clips with the same id, the second as `id~2`, and so on."""
        writer = SampleWriter(self.folder / 'generate' / str(self.update))
        seen: collections.Counter[str] = collections.Counter()
        for clip, reference in zip(clips, references):
            seen[clip.id] += 1
            if seen[clip.id] > 1:
                clip = dataclasses.replace(clip, id=f'{clip.id}~{seen[clip.id]}')
            written = writer.add(clip, reference=reference, seed=self.cfg.seed, checkpoint=self.checkpoint_name,
                                 update=self.update)
            plots.spectrogram_png(clip.audio, clip.sample_rate, written.with_suffix('.png'),
                                  events=reference.events if reference else None)

    def on_results(self, stage: str) -> None:
        page = write_page(self.folder, signature=self.xp.sig, delta=list(self.xp.argv))
        self.logger.info('Page: %s', page)

    # -- clips ------------------------------------------------------------------------------------------------------

    def batches(self, stage: str) -> Batches:
        """The batches of a stage, on the host."""
        return Batches(self.dataloaders[stage])

    def generated_clips(self, batches: Batches, change: tp.Callable[[Batch, int], Batch] | None = None,
                        captions: list[str] | None = None) -> Clips:
        """What the model generates for all batches, which the processes share out; process 0 gets all clips.

        The sound goes through files and stays in them: that of a test set is more than should go from process to
        process, and perhaps more than the memory.

        Args:
            batches (Batches): of a stage.
            change (callable or None): gives another batch for a batch and the number of its first item.
            captions (list of str or None): of the clips, if they are not those of the batches.
        """
        folder, size = self.folder / '.generated', batches.size
        self.once(lambda: _make_empty(folder))
        own = []
        for number, batch in self.share_batches(batches):
            batch = batch if change is None else change(batch, number % len(batches) * size)
            with torch.no_grad(), self.autocast():
                wav = self.generate_audio(batch.to(self.device)).float().cpu()
            if number >= 0:
                torch.save(wav, folder / f'{number}.pt')
                own.append(number)
        made = sorted(number for numbers in distrib.gather(own, everywhere=False) for number in numbers)
        wavs = [wav for number in made for wav in torch.load(folder / f'{number}.pt', mmap=True, weights_only=True)]
        self.once(lambda: shutil.rmtree(folder, ignore_errors=True))  # what is mapped stays as long as it is used
        return [Clip(id=i, audio=wav, sample_rate=self.codec.sample_rate, caption=caption)
                for i, caption, wav in zip(batches.ids, captions or batches.captions, wavs)]

    def references(self, stage: str, ids: list[str]) -> list[Clip | None]:
        """The true clips of `dset.<stage>.media`, None where there is none."""
        media = self.media(stage)
        if media is None:
            return [None] * len(ids)
        return [read_clip(media, i, self.codec.sample_rate, self.duration) for i in ids]

    def reconstructions(self, clips: Clips) -> Clips:
        """The truth, encoded and decoded: no generated sound can be expected to score above it."""
        return [dataclasses.replace(clip, audio=self.reconstruct(clip.audio)) for clip in clips]

    @torch.no_grad()
    def reconstruct(self, wav: torch.Tensor) -> torch.Tensor:
        """A waveform `[C, T]` through the codec and back."""
        batch = wav.mean(0, keepdim=True)[None] if self.codec.channels == 1 else wav[None]
        decoded = self.codec.decode(self.codec.encode(batch.to(self.device)), num_samples=wav.shape[-1])
        return decoded[0].cpu()

    def training_clips(self, limit: int) -> Clips:
        media = self.media('train')
        if media is None:
            return []
        clips = (read_clip(media, i, self.codec.sample_rate, self.duration) for i in self.train_ids()[:limit])
        return [clip for clip in clips if clip is not None]

    def train_ids(self) -> list[str]:
        raise NotImplementedError(f'{type(self).__name__} has no train_ids()')

    def conditions(self, stage: str, clip_id: str, caption: str) -> Conditions:
        media = self.media(stage)
        video = self.online.find(media, clip_id) if media else None
        return Conditions(id=clip_id, video=video, caption=caption, caption_of=clip_id)

    def media(self, stage: str) -> Path | None:
        """The folder of the media of a stage, if the data set names one."""
        node = self.cfg.dset.get(stage)
        if not node or not node.get('media'):
            return None
        folder = resolve_path(node['media'])
        if not folder.is_dir():
            raise UserError(f'dset.{stage}.media: no folder {folder} (relative paths start at the launch folder)')
        return folder


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)


def prefixed(prefix: str, results: dict[str, tp.Any]) -> dict[str, tp.Any]:
    return {f'{prefix}/{key}': value for key, value in results.items()}
