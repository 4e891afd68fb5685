"""What an update of MMAudio costs and where the time goes; guidance; a clip through all models; bytes per update.

    python benchmarks/mmaudio.py                # small_16k on two threads: some minutes, 8 GB
    python benchmarks/mmaudio.py --parts clip --seconds 8    # 8 s of video through CLIP, Synchformer, VAE, vocoder, ...
    python benchmarks/mmaudio.py --short        # the same with a tiny network, seconds
    python benchmarks/mmaudio.py --parts gpu --profile profiles    # small_16k, large_44k, batch 256, compiled and not

Rounds of what is compared alternate, and the best round of each counts: what else runs on a machine only slows things
down. Weights are random. Compare ratios within one run; absolute times are those of the machine.
"""
import argparse
import contextlib
import resource
import sys
import tempfile
import time
import typing as tp
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft import optim  # noqa: E402
from audiocraft.data.audio import resample_kaiser_best  # noqa: E402
from audiocraft.data.loaders import StoreLoader  # noqa: E402
from audiocraft.data.mixture import Mixture  # noqa: E402
from audiocraft.data.store_writer import StoreWriter  # noqa: E402
from audiocraft.data.video import read_video  # noqa: E402
from audiocraft.environment import CONFIG_ROOT  # noqa: E402
from audiocraft.examples.video import make_video_examples  # noqa: E402
from audiocraft.features.transforms import crop_resized, squash  # noqa: E402
from audiocraft.flow import path  # noqa: E402
from audiocraft.flow.samplers import integrate  # noqa: E402
from audiocraft.models.mmaudio import PUBLISHED_DIMS, MMAudio  # noqa: E402
from audiocraft.modules.sequence import sequence_lengths  # noqa: E402
from audiocraft.utils.config import build  # noqa: E402

LENGTHS = dict(clip_seq_len=64, sync_seq_len=192)
TINY = dict(hidden_dim=32, num_heads=2, depth=2, fused_depth=1)
PEAK_FLOPS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12}  # dense bfloat16


def make_model(size: str, short: bool, device: str = 'cpu') -> MMAudio:
    """The network of a published size for 8 s, with random weights."""
    node = config(f'mmaudio/{size}')
    latents = dict(latent_dim=20, latent_seq_len=250) if '16k' in size else dict(latent_dim=40, latent_seq_len=345)
    node |= TINY if short else {}
    with torch.device(device):
        return build(node, **PUBLISHED_DIMS, **LENGTHS, **latents, latent_mean=[0.] * latents['latent_dim'],
                     latent_std=[1.] * latents['latent_dim'])


def random_batch(model: MMAudio, size: int, device: str = 'cpu') -> dict[str, torch.Tensor]:
    """Latents and conditions of `size` items."""
    shapes = {'latent': (model.latent_seq_len, model.latent_dim), 'clip': (64, 1024), 'sync': (192, 768),
              'text': (77, 1024)}
    return {key: torch.randn(size, *shape, device=device) for key, shape in shapes.items()}


class Step:
    """An update in its parts, as the solver does it."""

    def __init__(self, model: MMAudio, batch_size: int, bf16: bool, device: str = 'cpu', compiled: bool = False):
        self.model, self.batch, self.bf16, self.device = model, random_batch(model, batch_size, device), bf16, device
        self.optimizer = optim.build_optimizer(model.parameters(), {'lr': 1e-4, 'optimizer': {
            '_target_': 'torch.optim.AdamW', 'betas': [0.9, 0.95], 'eps': 1e-6, 'weight_decay': 1e-6}})
        self.ema = optim.PostHocEMA({'model': model})
        self.forward = torch.compile(model.forward) if compiled else model.forward
        self.params = [param for param in model.parameters() if param.requires_grad]

    def loss(self) -> torch.Tensor:
        x1, (clip, sync, text) = self.batch['latent'], (self.batch[key] for key in ('clip', 'sync', 'text'))
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.bf16):
            t = torch.randn(len(x1), device=self.device).sigmoid()
            x0 = torch.randn_like(x1)
            pred = self.forward(path.interpolate(x0, x1, t), clip, sync, text, t)
            return path.flow_loss(pred, x0, x1).mean()

    def parts(self) -> dict[str, float]:
        """Seconds of each part of one update."""
        times: dict[str, float] = {}
        with timed(times, 'forward', self.device):
            loss = self.loss()
        with timed(times, 'backward', self.device):
            loss.backward()
        with timed(times, 'clip', self.device):
            torch.nn.utils.clip_grad_norm_(self.params, 1.)
        with timed(times, 'optimizer', self.device):
            self.optimizer.step()
            self.optimizer.zero_grad()
        with timed(times, 'EMA', self.device):
            self.ema.step()
        return times


@contextlib.contextmanager
def timed(times: dict[str, float], name: str, device: str = 'cpu') -> tp.Iterator[None]:
    """Write the seconds that the context takes to `times[name]`."""
    start = time.perf_counter()
    yield
    if device == 'cuda':
        torch.cuda.synchronize()
    times[name] = time.perf_counter() - start


def best(rounds: list[dict[str, float]]) -> dict[str, float]:
    """The parts of the fastest round."""
    return min(rounds, key=lambda times: sum(times.values()))


def step_table(model: MMAudio, batch_size: int, count: int) -> str:
    """Parts of an update in float32 and bfloat16."""
    steps = {name: Step(model, batch_size, bf16) for name, bf16 in (('float32', False), ('bfloat16', True))}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    for number in range(count + 1):
        for name, step in steps.items():
            times = step.parts()
            if number:  # the first round warms up
                rounds[name].append(times)
    lines = [f'{"ms":10}' + ''.join(f'{part:>11}' for part in [*rounds['float32'][0], 'update'])]
    for name, times in ((name, best(found)) for name, found in rounds.items()):
        values = [*times.values(), sum(times.values())]
        lines.append(f'{name:10}' + ''.join(f'{1e3 * value:>11.1f}' for value in values))
    totals = [sum(best(found).values()) for found in rounds.values()]
    return '\n'.join([*lines, f'bfloat16/float32: {totals[1] / totals[0]:.2f}'])


@torch.no_grad()
def guidance_table(model: MMAudio, count: int) -> str:
    """One evaluation with guidance: both velocities from one call, against two calls."""
    batch = random_batch(model, 1)
    conditions = model.preprocess_conditions(batch['clip'], batch['sync'], batch['text'])
    empty, t = model.empty_conditions(1), torch.tensor(0.5)
    one = model.field(conditions, empty, 4.5)
    ways: dict[str, tp.Callable[[], tp.Any]] = {
        'one call': lambda: one(t, batch['latent']),
        'two calls': lambda: [model.predict_flow(batch['latent'], t, c) for c in (conditions, empty)],
        'conditions': lambda: model.preprocess_conditions(batch['clip'], batch['sync'], batch['text'])}
    found: dict[str, float] = {}
    for _ in range(count + 1):
        for name, way in ways.items():
            times: dict[str, float] = {}
            with timed(times, name):
                way()
            found[name] = min(found.get(name, float('inf')), times[name])
    one_call, two_calls, once = (1e3 * found[name] for name in ways)
    return (f'guidance: one batched call {one_call:.1f} ms, two calls {two_calls:.1f} ms, ratio '
            f'{one_call / two_calls:.2f}; conditions, once per clip: {once:.1f} ms')


def bytes_table(items: int) -> str:
    """Bytes of a batch of as many videos as sounds, and of the same batch with zeros in place of what is not there."""
    video = {'mean': (250, 20), 'std': (250, 20), 'clip_features': (64, 1024), 'sync_features': (192, 768),
             'text_features': (77, 1024)}
    sound = {key: shape for key, shape in video.items() if key not in ('clip_features', 'sync_features')}
    with tempfile.TemporaryDirectory() as folder:
        stores = []
        for name, shapes in (('video', video), ('sound', sound)):
            writer = StoreWriter(Path(folder) / name, keys={key: (shape, 'float32') for key, shape in shapes.items()},
                                 ids=[f'{name}{i}' for i in range(items)])
            for i in range(items):
                writer.add(f'{name}{i}', {'caption': ''}, {key: torch.ones(shape) for key, shape in shapes.items()})
            stores.append(writer.finish())
        loader = StoreLoader(Mixture(stores), batch_size=2 * items, pin=False)
        batch = next(iter(loader.iterate()))
        ours = sum(tensor.nbytes for tensor in (*batch.tensors.values(), *batch.rows.values()))
    zeros = sum(4 * 2 * items * a * b for a, b in video.values())
    return f'a video for each sound: {ours / 1e6:.1f} MB of {zeros / 1e6:.1f} MB with zeros, ratio {ours / zeros:.2f}'


def config(name: str) -> dict[str, tp.Any]:
    """A node of `config/model`."""
    return yaml.safe_load((CONFIG_ROOT / 'model' / f'{name}.yaml').read_text())


def clip_models(short: bool, seconds: float) -> tp.Iterator[tuple[str, tp.Callable[..., tp.Any], tp.Any]]:
    """Name, maker and call of every model that a clip meets on its way to a store, and from there to sound.

    A call takes what is known so far, and returns what it adds.
    """
    tiny_clip = {'embed_dim': 1024, 'vision_cfg': {'image_size': 378, 'patch_size': 126, 'width': 64, 'layers': 1},
                 'text_cfg': {'width': 1024, 'layers': 1, 'heads': 2}}
    clip: dict[str, tp.Any] = {'weights': None} | ({'model': tiny_clip} if short else {})
    sync: dict[str, tp.Any] = {'weights': None} | ({'network': {'depth': 1}} if short else {})
    vae = {'vocoder': None} | ({'width': 16} if short else {})
    vocoder = {'initial_channels': 64} if short else {}
    samples = round(seconds * 16_000)

    def make(target: str, **kwargs: tp.Any) -> tp.Callable[[], tp.Any]:
        return lambda: build({'_target_': f'audiocraft.features.{target}', **kwargs})

    def sampled(model: MMAudio, known: dict[str, tp.Any]) -> dict[str, tp.Any]:
        conditions = model.preprocess_conditions(*(known[f'{key}_features'] for key in ('clip', 'sync', 'text')))
        field = model.field(conditions, model.empty_conditions(1), 4.5)
        noise = torch.randn(1, model.latent_seq_len, model.latent_dim)
        return {'latents': integrate(field, noise, steps=2)}

    def network() -> MMAudio:
        model = make_model('small_16k', short)
        lengths = sequence_lengths(seconds, 16_000, hop=256)
        model.update_seq_lengths(lengths.latent, lengths.clip, lengths.sync)
        return model

    yield 'VAE, encoder', lambda: build({**config('compression/mel_vae_16k'), **vae}), lambda model, known: {
        'mean': model.encode(known['wav'][None]).mean}
    yield 'CLIP, pictures', make('clip.ClipImage', **clip, batch=4), lambda model, known: model(
        model.prepare(known['frames'][8.])[None])
    yield 'Synchformer', make('synchformer.Synchformer', **sync), lambda model, known: model(
        model.prepare(known['frames'][25.])[None])
    yield 'CLIP, words', make('clip.ClipText', **clip), lambda model, known: model(
        model.collate([model.prepare('a ball hits metal')]))
    yield 'network, 2 steps', network, sampled
    yield 'VAE, decoder', lambda: build({**config('compression/mel_vae_16k'), **vae}), lambda model, known: {
        'mel': model.decode_mel(known['latents'].mT)}
    yield 'vocoder', lambda: build({**config('vocoder/bigvgan_v1_16k'), **vocoder}), lambda model, known: {
        'sound': model(known['mel'])[..., :samples]}


@torch.no_grad()
def clip_table(seconds: float, short: bool) -> str:
    """A clip through all models at full size with random weights, one after another in memory."""
    lines = [f'{"":18}{"making s":>10}{"running s":>10}{"GiB":>7}  gives']
    with tempfile.TemporaryDirectory() as folder:
        make_video_examples(folder, clips=1, seed=1, seconds=max(seconds, 1.))
        (file,) = Path(folder).glob('*.mp4')
        times: dict[str, float] = {}
        with timed(times, 'read'):
            # What the models see of a picture is cut out of it while the file is decoded.
            video = read_video(file, fps=(8., 25.), duration=seconds, reduce={
                8.: lambda frames: squash(frames, 384), 25.: lambda frames: crop_resized(frames, 224)})
    assert video.audio is not None and video.sample_rate is not None
    wav = resample_kaiser_best(video.audio.mean(0, keepdim=True), video.sample_rate, 16_000)
    known: dict[str, tp.Any] = {'frames': video.frames, 'wav': wav}
    lines.append(f'{"reading":18}{"":>10}{times["read"]:>10.2f}{memory():>7.2f}  '
                 f'{[list(frames.shape) for frames in video.frames.values()]} {list(wav.shape)}')
    for name, make, call in clip_models(short, seconds):
        with timed(times, 'making'):
            model = make().eval()
        with timed(times, 'running'):
            made = call(model, known)
        known |= made
        del model
        shapes = ', '.join(f'{key} {list(value.shape)}' for key, value in made.items())
        lines.append(f'{name:18}{times["making"]:>10.2f}{times["running"]:>10.2f}{memory():>7.2f}  {shapes}')
    return '\n'.join([*lines, f'{seconds:g} s of video, at most {memory():.2f} GiB.'])


def memory() -> float:
    """The most memory that this process has used, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == 'darwin' else 20)


def profile(step: Step, name: str, folder: Path) -> str:
    """Write a trace of one update (chrome://tracing, perfetto) and a picture of what took its time."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[:1 if step.device == 'cpu' else 2]) as recorded:
        step.parts()
    of = f'self_{"cpu" if step.device == "cpu" else "device"}_time_total'
    rows = sorted(recorded.key_averages(), key=lambda row: getattr(row, of))[-20:]
    figure, axes = pyplot.subplots(figsize=(11, 6))
    axes.barh([f'{row.key[:60]} ({row.count})' for row in rows], [getattr(row, of) / 1e3 for row in rows])
    axes.set(xlabel='ms of one update (number of calls)', title=name)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'{name}.png'
    figure.savefig(path)
    pyplot.close(figure)
    recorded.export_chrome_trace(str(path.with_suffix('.json')))
    return f'profile: {path}'


def gpu_report(size: str, batch_size: int, compiled: bool, count: int, short: bool, folder: Path | None) -> str:
    """Step time, memory and share of the peak on this GPU."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.cuda.reset_peak_memory_stats()
    model = make_model(size, short, 'cuda')
    step = Step(model, batch_size, True, 'cuda', compiled)
    for _ in range(3):
        step.parts()
    times = best([step.parts() for _ in range(count)])
    total = sum(times.values())
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        Step(model, 1, True, 'cuda').loss().backward()
    name = torch.cuda.get_device_name()
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    used = counter.get_total_flops() * batch_size / total
    share = f', {100 * used / peak:.1f} % of the peak of bfloat16' if peak else ''
    parts = ', '.join(f'{part} {1e3 * value:.1f}' for part, value in times.items())
    pictured = [profile(step, f'{size}{"-compiled" if compiled else ""}', folder)] if folder else []
    line = (f'{size} x {batch_size} on {name}, compile={compiled}: {1e3 * total:.1f} ms per update ({parts}), '
            f'{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB, {used / 1e12:.0f} TFLOP/s{share}')
    return '\n'.join([line, *pictured])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', default=['step', 'guidance', 'bytes', 'clip'],
                        choices=['step', 'guidance', 'bytes', 'clip', 'gpu'])
    parser.add_argument('--seconds', type=float, default=1., help='of the clip')
    parser.add_argument('--size', default='small_16k')
    parser.add_argument('--batch_size', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--profile', type=Path, metavar='FOLDER', help='also write pictures and traces of an update')
    parser.add_argument('--short', action='store_true', help='a tiny network')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f'{args.size}{" (tiny)" if args.short else ""}, {args.threads} threads', flush=True)
    if 'gpu' in args.parts:
        for size in ('small_16k', 'large_44k'):
            for compiled in (False, True):
                print(gpu_report(size, max(args.batch_size, 256), compiled, args.rounds, args.short, args.profile),
                      flush=True)
    if 'clip' in args.parts:
        print(clip_table(args.seconds, args.short), flush=True)
    model = make_model(args.size, args.short)
    if args.profile and 'gpu' not in args.parts:
        print(profile(Step(model, args.batch_size, True), args.size, args.profile), flush=True)
    if 'step' in args.parts:
        print(step_table(model, args.batch_size, args.rounds), flush=True)
    if 'guidance' in args.parts:
        print(guidance_table(model, args.rounds), flush=True)
    if 'bytes' in args.parts:
        print(bytes_table(32), flush=True)


if __name__ == '__main__':
    main()
