"""A tiny video-to-audio model with random weights, its codec and its extractors, as training leaves them on disk."""

import typing as tp
from pathlib import Path

import torch

from audiocraft.data.video import write_video
from audiocraft.features.base import Extractor
from audiocraft.models.compression import CompressionModel
from audiocraft.models.mmaudio import MMAudio
from audiocraft.utils.checkpoint import save_checkpoint
from audiocraft.utils.config import build, to_yaml

Nodes = dict[str, tuple[str, list[str], dict[str, tp.Any]]]
SECONDS = 4.
STEPS = 3
CODECS: dict[int, dict[str, tp.Any]] = {
    16_000: {'sample_rate': 16_000, 'n_fft': 1024, 'hop': 256},
    44_100: {'sample_rate': 44_100, 'n_fft': 2048, 'hop': 512, 'fmax': 20_000.}}
EXTRACTORS: Nodes = {
    'image': ('frames', ['clip_features'], {'_target_': 'audiocraft.features.tiny.TinyImage', 'grid': 2, 'bits': 1}),
    'motion': ('frames', ['sync_features'], {'_target_': 'audiocraft.features.tiny.TinyMotion', 'grid': 2}),
    'text': ('text', ['text_features'], {'_target_': 'audiocraft.features.tiny.TinyText', 'dim': 8, 'max_tokens': 4})}

CLIP = {'embed_dim': 8, 'quick_gelu': True,
        'vision_cfg': {'image_size': 28, 'layers': 1, 'width': 16, 'head_width': 8, 'patch_size': 14},
        'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 8, 'heads': 2, 'layers': 1}}
# Those of the published models, small and random.
MMAUDIO: Nodes = {
    'image': ('frames', ['clip_features'], {'_target_': 'audiocraft.features.clip.ClipImage', 'model': CLIP,
                                            'weights': None, 'size': 34}),
    'motion': ('frames', ['sync_features'], {
        '_target_': 'audiocraft.features.synchformer.Synchformer', 'weights': None, 'size': 32,
        'network': {'dim': 16, 'depth': 1, 'num_heads': 2, 'mlp_ratio': 1}}),
    'text': ('text', ['text_features'], {'_target_': 'audiocraft.features.clip.ClipText', 'model': CLIP,
                                         'weights': None})}


def extractors(nodes: Nodes = EXTRACTORS) -> dict[str, Extractor]:
    """Those that the facts name."""
    return {name: build(node) for name, (_, _, node) in nodes.items()}


def facts(rate: int = 16_000, nodes: Nodes = EXTRACTORS) -> dict[str, tp.Any]:
    """What the store of the training says of itself."""
    made = extractors(nodes)
    return {'duration': SECONDS, 'sample_rate': rate, 'extractors': {
        name: {'build_cfg': node, 'consumes': consumes, 'fps': made[name].fps, 'keys': keys}
        for name, (consumes, keys, node) in nodes.items()}}


def random_codec(rate: int = 16_000, vocoder: bool = True) -> CompressionModel:
    """The same weights each time; a layer as vocoder, or the slower Griffin-Lim."""
    torch.manual_seed(0)
    node = {'_target_': 'audiocraft.models.mel_vae.MelVAE', 'n_mels': 16, 'latent_dim': 4, 'width': 8, 'depth': 1,
            'griffin_lim_iter': 1, **CODECS[rate]}
    if vocoder:
        hop = CODECS[rate]['hop']
        node['vocoder'] = {'_target_': 'torch.nn.ConvTranspose1d', 'in_channels': 16, 'out_channels': 1,
                           'kernel_size': hop, 'stride': hop}
    return build(node).eval()


def random_model(rate: int = 16_000, seed: int = 0, nodes: Nodes = EXTRACTORS) -> MMAudio:
    """A network all of whose weights are drawn, so that everything that is given to it matters."""
    spec = {key: shape for x in extractors(nodes).values() for key, (shape, _) in x.spec(SECONDS).items()}
    (clip, clip_dim), (sync, sync_dim), (text, text_dim) = (
        spec[key] for key in ('clip_features', 'sync_features', 'text_features'))
    latent_dim, latent = random_codec(rate).latent_shape(round(SECONDS * rate))
    torch.manual_seed(seed)
    model = build({'_target_': 'audiocraft.models.mmaudio.MMAudio', 'hidden_dim': 16, 'depth': 2, 'fused_depth': 1,
                   'num_heads': 2, 'mlp_ratio': 1.}, latent_dim=latent_dim, clip_dim=clip_dim, sync_dim=sync_dim,
                  text_dim=text_dim, latent_seq_len=latent, clip_seq_len=clip, sync_seq_len=sync, text_seq_len=text,
                  latent_mean=[0.5, -1., 0., 2.], latent_std=[1., 0.5, 2., 3.])
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def make_xp(folder: Path, rate: int = 16_000) -> Path:
    """The folder of an XP of such a model; that of its codec is beside it."""
    codec, model = random_codec(rate, vocoder=False), random_model(rate)
    save_checkpoint(folder / 'codec' / 'checkpoints', 1, models={'model': codec.state_dict()},
                    state={'models': {'model': codec.build_cfg}})
    save_checkpoint(folder / 'model' / 'checkpoints', 2, models={'model': model.state_dict()},
                    state={'models': {'model': model.build_cfg}, 'objects': {'facts': facts(rate)}},
                    config=to_yaml({'codec': str(folder / 'codec'), 'sampling': {'guidance': 3.}}))
    return folder / 'model'


def moving_square(path: Path, seconds: float, *, left: int = 0) -> Path:
    """A silent video at 10 pictures per second."""
    count = round(10 * seconds)
    frames = torch.full((count, 3, 48, 64), 20, dtype=torch.uint8)
    for i in range(count):
        x = (3 * i + left) % 48
        frames[i, i % 3, 16:32, x:x + 16] = 230
    return write_video(path, frames, 10.)


def picture(path: Path, colour: int = 200) -> Path:
    """A picture of a square."""
    from PIL import Image
    pixels = torch.full((48, 64, 3), 20, dtype=torch.uint8)
    pixels[16:32, 8:40, 0] = colour
    Image.fromarray(pixels.numpy()).save(path)
    return path
