"""What an adversarial update of a compression model costs, part by part, and how fast it encodes and decodes.

    python benchmarks/compression.py                              # MusicGen's codec; a few minutes, on one thread
    python benchmarks/compression.py --short                      # a light one; seconds
    python benchmarks/compression.py solver=compression/encodec_base_24khz device=cuda --batch_size 16

The audio is noise. Three tables:

- one update in the order of the solver: the model, the update of the discriminators, their losses and the others, the
  balancer, the way back through the model with the optimizer's step;
- the discriminators alone, in three ways that give the same numbers. `ours`: the spectrograms of both sides once, then
  a pass for each side in the update and another in the losses, real audio without a graph there. `spectrograms in each
  pass`: the same passes, each from the waveform. `both sides at once`: two passes over batches of twice the size,
  which is fewer calls, but takes the gradients of the generator's losses through the real half, too;
- seconds that encoding and decoding take for a second of audio, one item at a time.

Rounds of all alternate, and medians over rounds count: ratios of one run can be compared, seconds of two cannot. With
one thread on a CPU the seconds are those that the processor worked on it, so that other jobs disturb little.
"""
import argparse
import collections
import statistics
import sys
import time
import typing as tp
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also from a checkout that is not installed

from audiocraft import optim, train  # noqa: E402
from audiocraft.adversarial.adversary import Adversary, Prepared  # noqa: E402
from audiocraft.utils.config import build, to_plain  # noqa: E402
from audiocraft.utils.random import Draws  # noqa: E402

SHORT = ['solver=compression/debug', 'adversarial=msstftd_tiny', 'losses=waveform']
LONG = ['solver=compression/encodec_musicgen_32khz']
Times = dict[str, list[float]]


class Clock:
    """Collects the seconds of named parts, round by round.

    Args:
        now (callable): the time in seconds.
    """

    def __init__(self, now: tp.Callable[[], float]):
        self.now = now
        self.times: Times = collections.defaultdict(list)

    def __call__(self, name: str, function: tp.Callable[..., tp.Any], *args: tp.Any) -> tp.Any:
        """Call the function and note how long it took."""
        _synchronize()
        start = self.now()
        result = function(*args)
        _synchronize()
        self.times[name].append(self.now() - start)
        return result

    def medians(self) -> dict[str, float]:
        """Seconds by name; the first round, which warms up, does not count if there are others."""
        return {name: statistics.median(times[1:] or times) for name, times in self.times.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Training:
    """A model, its discriminators and its losses, as the solver has them."""

    def __init__(self, cfg: dict[str, tp.Any], batch_size: int, seconds: float):
        self.device = torch.device(cfg['device'])
        if 'kmeans_init' in cfg['model'].get('quantizer', {}):
            cfg['model']['quantizer']['kmeans_init'] = False  # noise has no clusters, and looking for them takes long
        self.model = build(cfg['model']).to(self.device).train()
        discriminators = cfg['adversarial']['discriminators']
        self.adversaries = nn.ModuleDict({name: build(node) for name, node in discriminators.items()}).to(self.device)
        self.weights = cfg['weights']
        self.losses = {name: build(node).to(self.device) for name, node in cfg['losses'].items()
                       if node and self.weights.get(name, 1.) > 0}
        self.balancer = build(cfg['balancer']) if cfg['balancer'] else None
        self.optimizers = [optim.build_optimizer(self.model.parameters(), cfg['optim']),
                           optim.build_optimizer(self.adversaries.parameters(), cfg['adversarial']['optim'])]
        self.wav = torch.randn(batch_size, cfg['channels'], int(seconds * cfg['sample_rate']), device=self.device) / 10

    def step(self, which: int, loss: torch.Tensor) -> None:
        """Backward, and a step of the model's optimizer (0) or of the discriminators' (1)."""
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()

    def prepare(self, output: torch.Tensor) -> dict[str, Prepared]:
        """What update and losses share."""
        return {name: adversary.prepare(output, self.wav) for name, adversary in self.adversaries.items()}

    def update_discriminators(self, prepared: dict[str, Prepared]) -> None:
        """An update of all discriminators."""
        self.step(1, torch.stack([adversary.discriminator_loss(prepared[name])
                                  for name, adversary in self.adversaries.items()]).sum())

    def adversarial_losses(self, prepared: dict[str, Prepared]) -> dict[str, torch.Tensor]:
        """What the discriminators ask of the model."""
        return {f'{kind}_{name}': value for name, adversary in self.adversaries.items()
                for kind, value in adversary.generator_losses(prepared[name]).items()}

    def other_losses(self, output: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those with a weight."""
        return {name: loss(output, self.wav) for name, loss in self.losses.items()}

    def balance(self, losses: dict[str, torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        """The loss whose gradient is balanced; the weighted sum where the config has no balancer."""
        weights = {name: self.weights.get(name, self.weights.get(name.split('_')[0], 1.)) for name in losses}
        if self.balancer is None:
            return torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        return self.balancer(losses, output, weights).loss

    def update(self, clock: Clock) -> torch.Tensor:
        """One update, its parts timed. Returns the reconstruction, without a graph."""
        draws = Draws(0, 0, total=len(self.wav), device=self.device)
        made = clock('model forward', self.model, self.wav, draws)
        prepared = clock('spectrograms of the discriminators', self.prepare, made.output)
        clock('discriminators: update', self.update_discriminators, prepared)
        losses = clock('discriminators: losses', self.adversarial_losses, prepared)
        losses |= clock('other losses', self.other_losses, made.output)
        balanced = clock('balancer: gradients of all losses', self.balance, losses, made.output)
        clock('model backward and step', self.step, 0, balanced + made.penalty)
        return made.output.detach()


class Ways:
    """The discriminators' part of an update, up to the gradients of the output, in several ways."""

    def __init__(self, training: Training, output: torch.Tensor):
        self.training, self.real = training, training.wav
        self.fake = output.requires_grad_()

    def _gradients(self, losses: tp.Iterable[torch.Tensor]) -> None:
        for loss in losses:
            torch.autograd.grad(loss, self.fake, retain_graph=True)

    def ours(self) -> None:
        """As the solver does it."""
        prepared = self.training.prepare(self.fake)
        self.training.update_discriminators(prepared)
        self._gradients(self.training.adversarial_losses(prepared).values())

    def in_each_pass(self) -> None:
        """Four passes, each from the waveform."""
        for adversary in self.adversaries():
            logits = [adversary.discriminator(wav).logits for wav in (self.fake.detach(), self.real)]
            self.training.step(1, _discriminator_loss(adversary, *logits))
        for adversary in self.adversaries():
            with adversary.frozen():
                fake, real = adversary.discriminator(self.fake), adversary.discriminator(self.real)
            self._gradients(_generator_losses(adversary, fake.logits, fake.fmaps, real.fmaps))

    def at_once(self) -> None:
        """Two passes over both sides."""
        both = torch.cat([self.fake, self.real])
        views = [adversary.discriminator.prepare(both) for adversary in self.adversaries()]
        for adversary, view in zip(self.adversaries(), views):
            logits = adversary.discriminator.from_prepared([part.detach() for part in view]).logits
            self.training.step(1, _discriminator_loss(adversary, *zip(*(logit.chunk(2) for logit in logits))))
        for adversary, view in zip(self.adversaries(), views):
            with adversary.frozen():
                found = adversary.discriminator.from_prepared(view)
            halves = [[fmap.chunk(2) for fmap in fmaps] for fmaps in found.fmaps]
            fakes = [[fake for fake, _ in maps] for maps in halves]
            reals = [[real.detach() for _, real in maps] for maps in halves]
            self._gradients(_generator_losses(adversary, [logit.chunk(2)[0] for logit in found.logits], fakes, reals))

    def adversaries(self) -> list[Adversary]:
        """All of them."""
        return [tp.cast(Adversary, adversary) for adversary in self.training.adversaries.values()]

    def measure(self, clock: Clock) -> None:
        """A round of each, every other time backwards."""
        ways = [('ours', self.ours), ('spectrograms in each pass', self.in_each_pass),
                ('both sides at once', self.at_once)]
        for name, way in ways[::1 if len(clock.times['ours']) % 2 else -1]:
            clock(name, way)


def _discriminator_loss(adversary: Adversary, fakes: tp.Iterable[torch.Tensor],
                        reals: tp.Iterable[torch.Tensor]) -> torch.Tensor:
    losses = [adversary.loss.fake(fake) + adversary.loss.real(real) for fake, real in zip(fakes, reals)]
    return torch.stack(losses).mean()


def _generator_losses(adversary: Adversary, logits: list[torch.Tensor], fakes: list[list[torch.Tensor]],
                      reals: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    adv = torch.stack([adversary.loss.generator(logit) for logit in logits]).mean()
    feat = torch.stack([torch.stack([adversary.feature_loss(x, y) for x, y in zip(fake, real)]).mean()
                        for fake, real in zip(fakes, reals)]).mean()
    return adv, feat


@torch.no_grad()
def use(model: nn.Module, wav: torch.Tensor, clock: Clock) -> None:
    """Encode and decode one item."""
    model.eval()
    encoded = clock('encode', model.encode, wav)
    clock('decode', model.decode, encoded)
    model.train()


def report_update(clock: Clock) -> str:
    """A table of the parts."""
    medians = clock.medians()
    total = sum(medians.values())
    rows = [f'{name:36}{value:>9.3f} s{value / total:>8.1%}' for name, value in medians.items()]
    return '\n'.join(['one update', *rows, f'{"all":36}{total:>9.3f} s'])


def report_ways(clock: Clock) -> str:
    """A table of the ways, with their ratios."""
    medians = clock.medians()
    rows = [f'{name:36}{value:>9.3f} s{value / medians["ours"]:>8.2f}' for name, value in medians.items()]
    return '\n'.join(['the discriminators, and the ratio to ours', *rows])


def report_use(clock: Clock, seconds: float) -> str:
    """A table of real-time factors."""
    rows = [f'{name:36}{value / seconds:>9.4f} s for a second of audio, {seconds / value:.1f} times real time'
            for name, value in clock.medians().items()]
    return '\n'.join([f'one item of {seconds:g} s', *rows])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('overrides', nargs='*', metavar='KEY=VALUE', help='as for a training; it needs discriminators')
    parser.add_argument('--short', action='store_true', help=f'{" ".join(SHORT)}, short audio, one round')
    parser.add_argument('--batch_size', type=int, default=1)
    parser.add_argument('--seconds', type=float, help='of audio in an update')
    parser.add_argument('--use_seconds', type=float, help='of audio to encode and decode')
    parser.add_argument('--rounds', type=int, help='after one that warms up')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    for name, short, usual in (('seconds', 0.25, 1.), ('use_seconds', 1., 10.), ('rounds', 1, 5)):
        if getattr(args, name) is None:
            setattr(args, name, short if args.short else usual)
    return args


def main() -> None:
    """Measure and print."""
    args = parse()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = to_plain(train.main.get_xp([*(SHORT if args.short else LONG), 'device=cpu', *args.overrides]).cfg)
    if not cfg['adversarial']['discriminators']:
        sys.exit('There are no discriminators: choose some, as adversarial=msstftd.')
    training = Training(cfg, args.batch_size, args.seconds)
    count, beside = (sum(parameter.numel() for parameter in module.parameters()) / 1e6
                     for module in (training.model, training.adversaries))
    print(f'{type(training.model).__name__} of {count:.1f} M parameters, discriminators of {beside:.2f} M, on '
          f'{training.device}; {args.batch_size} item(s) of {args.seconds:g} s at {cfg["sample_rate"]} Hz, '
          f'{args.threads} thread(s), medians of {args.rounds} round(s)', flush=True)
    now = time.process_time if training.device.type == 'cpu' and args.threads == 1 else time.perf_counter
    update, ways, usage = Clock(now), Clock(now), Clock(now)
    wav = torch.randn(1, cfg['channels'], int(args.use_seconds * cfg['sample_rate']), device=training.device) / 10
    for _ in range(args.rounds + 1):
        output = training.update(update)
        Ways(training, output).measure(ways)
        use(training.model, wav, usage)
    print('\n\n'.join([report_update(update), report_ways(ways), report_use(usage, args.use_seconds)]))


if __name__ == '__main__':
    main()
