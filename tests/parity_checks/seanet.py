"""Checks of the convolutions that pad their input, and of the encoder and decoder made of them."""

import typing as tp

import torch
from torch import nn

from audiocraft.models.published.audiocraft import SEANET_DEFAULTS

from .base import Fixture, Report, build_loaded

STREAMABLE = 'audiocraft.modules.streamable'
SEANET = 'audiocraft.modules.seanet'


def check_conv_table(fixture: Fixture, report: Report) -> None:
    """Every layer of the table, on inputs of several lengths."""
    for row in fixture.metadata['config']['rows']:
        name = f'conv{row["i"]}'
        config = {key: value for key, value in row.items() if key not in ('i', 'kind')}
        layer = build_loaded(f'{STREAMABLE}.{row["kind"]}', config, fixture.state(f'{name}.sd.'))
        for length, x in fixture.group(f'{name}.in.').items():
            with torch.no_grad():
                report.close(f'{name}.{length}', layer(x), fixture[f'{name}.out.{length}'])


def _check_layers(fixture: Fixture, report: Report, prefix: str, layers: tp.Iterable[nn.Module],
                  x: torch.Tensor) -> None:
    """Each recorded output of a row of layers."""
    for index, layer in enumerate(layers):
        x = layer(x)
        if (key := f'{prefix}{index}') in fixture:
            report.close(key, x, fixture[key])


@torch.no_grad()
def check_seanet(fixture: Fixture, report: Report) -> None:
    """Latents of audio, audio of latents, the encoder layer by layer, and the number of frames."""
    config = fixture.metadata['config']
    encoder_config = {**SEANET_DEFAULTS, **config['kwargs'], **config.get('encoder_kwargs', {})}
    decoder_config = {**SEANET_DEFAULTS, **config['kwargs'], **config.get('decoder_kwargs', {})}
    encoder = build_loaded(f'{SEANET}.SEANetEncoder', encoder_config, fixture.state('enc.'))
    decoder = build_loaded(f'{SEANET}.SEANetDecoder', decoder_config, fixture.state('dec.'))
    inputs = fixture.group('in.')
    report.equal('lengths', sorted(x.shape[-1] for x in inputs.values()), sorted(config['lengths']))
    for name, x in inputs.items():
        latent = fixture[f'out.latent.{name}']
        report.close(f'latent.{name}', encoder(x), latent)
        report.close(f'audio.{name}', decoder(latent), fixture[f'out.audio.{name}'])
        report.equal(f'frames.{name}', latent.shape[-1], -(-x.shape[-1] // encoder.hop_length))
    # The layers were recorded on the first of the lengths.
    first = f'L{config["lengths"][0]}'
    _check_layers(fixture, report, 'inter.enc.model.', encoder.model, inputs[first])
    _check_layers(fixture, report, 'inter.dec.model.', decoder.model, fixture[f'out.latent.{first}'])


CHECKS = {
    'audiocraft/conv_table': check_conv_table,
    'audiocraft/seanet': check_seanet,
}
