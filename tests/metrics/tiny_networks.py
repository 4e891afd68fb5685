"""Tiny random networks in the place of the published ones, for tests of what is done with their features."""

import torch

from audiocraft.data.samples import Clip
from audiocraft.features.nets.panns import Cnn14
from audiocraft.features.nets.vggish import VGGish
from audiocraft.metrics.networks import FeatureNetwork, Features

PANNS = {'dims': [4, 6], 'classes': 5, 'n_mels': 16}
VGGISH = {'dims': [2, 3], 'pools': [0, 1], 'hidden': 6, 'dim': 4}


def save_weights(folder):
    """Files of random weights; returns their paths by network."""
    torch.manual_seed(0)
    panns, vggish = Cnn14(**PANNS).requires_grad_(False), VGGish(**VGGISH).requires_grad_(False)
    panns.fc_audioset.weight *= 50  # random networks say nearly the same of everything
    vggish.embeddings[-1].weight *= 50
    torch.save({'iteration': 1, 'model': panns.state_dict()}, folder / 'panns.pth')
    torch.save(vggish.state_dict(), folder / 'vggish.pth')
    return {'panns': str(folder / 'panns.pth'), 'vggish': str(folder / 'vggish.pth')}


def noises(count, *, seconds=2., sample_rate=16_000, seed=0, prefix='clip'):
    """Clips of noise of different colours."""
    found = []
    for index in range(count):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        wav = torch.randn(1, round(seconds * sample_rate), generator=generator)
        smooth = torch.nn.functional.avg_pool1d(wav, 1 + 2 * (index % 4), 1, padding=index % 4)
        found.append(Clip(f'{prefix}{index}', 0.1 * (1 + index) * smooth, sample_rate, caption=f'noise {index}'))
    return found


class Counting(FeatureNetwork):
    """Means of the clip and of its caption, counting what it is shown."""
    name, published, sources = 'clap_laion', 'clap_laion', ('audio', 'text')

    def __init__(self):
        super().__init__(model=torch.nn.Linear(1, 1))
        self.heard = 0

    def audio(self, clips: list[Clip]) -> list[Features | None]:
        self.heard += len(clips)
        return [{'embedding': torch.stack([clip.audio.mean(), clip.audio.std()])} for clip in clips]

    def text(self, clips: list[Clip]) -> list[Features | None]:
        return [{'embedding': torch.tensor([len(clip.caption), 1.])} if clip.caption else None for clip in clips]
