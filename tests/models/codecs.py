"""Tiny codecs with random weights, made as users make theirs."""

import typing as tp

import torch

from audiocraft.models.encodec import EncodecModel
from audiocraft.utils.config import build

SEANET: dict[str, tp.Any] = {'n_filters': 4, 'ratios': [4, 2], 'norm': 'weight_norm', 'lstm': 1}


def node(*, continuous: bool = False, seanet: tp.Mapping[str, tp.Any] = {}, **model: tp.Any) -> dict[str, tp.Any]:
    """The config node of a tiny EnCodec: 8 samples a frame, 3 codebooks of 16 entries or 6 continuous numbers."""
    quantizer = {'_target_': 'audiocraft.quantization.gaussian.GaussianBottleneck', 'dimension': 6}
    if not continuous:
        quantizer = {'_target_': 'audiocraft.quantization.rvq.ResidualVectorQuantizer', 'dimension': 6, 'n_q': 3,
                     'bins': 16, 'kmeans_iters': 7}
    return {'_target_': 'audiocraft.models.encodec.EncodecModel', 'sample_rate': 800, 'seanet': {**SEANET, **seanet},
            'quantizer': quantizer, **model}


@torch.no_grad()
def random_codec(seed: int = 0, **kwargs: tp.Any) -> EncodecModel:
    """A model whose every weight and buffer is random, in evaluation mode."""
    model = build(node(**kwargs))
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith('inited'):
            value.fill_(1)
        elif value.is_floating_point():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
            if name.endswith(('original0', 'cluster_size', 'latent_var', 'alpha')):
                value.abs_().add_(0.5)
    return model.eval()


def audio(channels: int = 1, samples: int = 203, batch: int = 2) -> torch.Tensor:
    """Waveforms `[batch, channels, samples]`."""
    return 0.5 * torch.randn(batch, channels, samples, generator=torch.Generator().manual_seed(1))
