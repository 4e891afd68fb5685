"""Checks of the discriminators, of their training, and of what they give to a generator."""

import re
import typing as tp

import torch
import yaml

from audiocraft.environment import CONFIG_ROOT
from audiocraft.modules.norm_conv import rename_weight_norm
from audiocraft.utils.config import build

from .base import Fixture, Report

DISCRIMINATORS = {
    'MultiScaleSTFTDiscriminator': 'audiocraft.adversarial.msstft.MultiScaleSTFTDiscriminator',
    'MultiPeriodDiscriminator': 'audiocraft.adversarial.mpd.MultiPeriodDiscriminator',
    'MultiScaleDiscriminator': 'audiocraft.adversarial.msd.MultiScaleDiscriminator',
}
# What was recorded has the audio of all scales at its full rate.
RECORDED = {'MultiScaleDiscriminator': {'pool': False}}
State = dict[str, torch.Tensor]


def _node(name: str, config: dict[str, tp.Any]) -> dict[str, tp.Any]:
    return {'_target_': DISCRIMINATORS[name], **config, **RECORDED.get(name, {})}


def _count(names: tp.Iterable[str], pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in names)


@torch.no_grad()
def check_disc(fixture: Fixture, report: Report) -> None:
    """Logits and all feature maps of a discriminator, in one pass and in two halves, and the names of its state."""
    config = fixture.metadata['config']
    discriminator = build(_node(config['cls'], config['kwargs']))
    discriminator.load_state_dict(fixture.state(), strict=True)
    discriminator.eval()
    x = fixture['in.x']
    for name, (logits, fmaps) in (('', discriminator(x)),
                                  ('prepared.', discriminator.from_prepared(discriminator.prepare(x)))):
        report.equal(f'{name}logits', len(logits), _count(fixture.tensors, r'out\.logit\d+'))
        report.equal(f'{name}fmaps', sum(map(len, fmaps)), _count(fixture.tensors, r'out\.fmap\d+\.\d+'))
        for index, (logit, maps) in enumerate(zip(logits, fmaps)):
            report.close(f'{name}logit{index}', logit, fixture[f'out.logit{index}'])
            for layer, fmap in enumerate(maps):
                report.close(f'{name}fmap{index}.{layer}', fmap, fixture[f'out.fmap{index}.{layer}'])


def _optimizer_node(text: str) -> dict[str, tp.Any]:
    """From `Adam lr 3e-3 betas .5/.9`."""
    match = re.fullmatch(r'(\w+) lr (\S+) betas ([\d.]+)/([\d.]+)', text)
    assert match, f'{text} does not describe an optimizer'
    name, lr, *betas = match.groups()
    return {'_target_': f'torch.optim.{name}', 'lr': float(lr), 'betas': [float(beta) for beta in betas]}


def _compare_state(report: Report, name: str, found: State, expected: State) -> None:
    report.equal(f'{name} names', sorted(found), sorted(expected))
    for key in found.keys() & expected.keys():
        report.close(f'{name}.{key}', found[key], expected[key])


def check_adversarial(fixture: Fixture, report: Report) -> None:
    """Updates of a discriminator, then what it asks of the generator."""
    config = fixture.metadata['config']
    node = _node('MultiScaleSTFTDiscriminator', config['disc'])
    adversary = build({'_target_': 'audiocraft.adversarial.adversary.Adversary', 'loss': config['loss'],
                       'discriminator': node})
    adversary.discriminator.load_state_dict(fixture.state('sd0.'), strict=True)
    optimizer = build(_optimizer_node(config['optimizer']), params=adversary.parameters())
    fake = fixture['in.fake'].clone().requires_grad_()
    prepared = adversary.prepare(fake, fixture['in.real'])
    for step, expected in enumerate(fixture['out.d_losses']):
        loss = adversary.discriminator_loss(prepared)
        report.close(f'd_loss{step}', loss, expected)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    steps = len(fixture['out.d_losses'])
    after = rename_weight_norm(adversary.discriminator.state_dict(), 'legacy')
    _compare_state(report, f'after{steps}', after, fixture.state(f'sd_after{steps}.'))
    for name, loss in adversary.generator_losses(prepared).items():
        report.close(name, loss, fixture[f'out.{name}'])
        (grad,) = torch.autograd.grad(loss, fake, retain_graph=True)
        report.close(f'grad_{name}', grad, fixture[f'out.grad_{name}'])


def check_msstftd_manifest(fixture: Fixture, report: Report) -> None:
    """The discriminator of `config/adversarial/msstftd.yaml`: every name, shape and dtype."""
    manifest = fixture.json
    text = (CONFIG_ROOT / 'adversarial' / 'msstftd.yaml').read_text()
    (node,) = yaml.safe_load(text)['discriminators'].values()
    # Real and imaginary parts of each channel go in.
    node['discriminator']['in_channels'] = manifest['keys']['discriminators.0.convs.0.conv.weight'][1][1] // 2
    state = rename_weight_norm(build(node).discriminator.state_dict(), 'legacy')
    found = {key: [str(value.dtype).removeprefix('torch.'), list(value.shape)] for key, value in state.items()}
    report.equal('names', sorted(found), sorted(manifest['keys']))
    for key, expected in manifest['keys'].items():
        report.equal(key, found.get(key), expected)
    report.equal('n_tensors', len(state), manifest['n_tensors'])
    report.equal('total_elements', sum(value.numel() for value in state.values()), manifest['total_elements'])


CHECKS = {
    'audiocraft/disc': check_disc,
    'audiocraft/adversarial': check_adversarial,
    'audiocraft/msstftd_default': check_msstftd_manifest,
}
