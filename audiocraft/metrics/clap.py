"""CLAP: does the sound fit the words? By LAION's network, through the package transformers, and by Microsoft's."""

import re
import typing as tp
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..data.samples import Clip
from ..models.published.files import load_strict, read_state
from ..modules.mel import mel_filters
from .networks import MISSING_PACKAGE, MISSING_WEIGHTS, FeatureNetwork, Features, mono, shared

SAMPLE_RATE, SAMPLES = 48_000, 480_000
N_FFT, HOP, N_MELS, FMIN, FMAX, AMIN = 1024, 480, 64, 50., 14_000., 1e-10
TOKENIZER = ('vocab.json', 'merges.txt')  # of roberta-base
# The network of `music_speech_audioset_epoch_15_esc_89.98.pt`: HTSAT-base, as transformers describes it.
HTSAT_BASE: dict[str, tp.Any] = {'audio_config': {'patch_embeds_hidden_size': 128, 'hidden_size': 1024,
                                                  'depths': [2, 2, 12, 2]}}
# From LAION's names to those of transformers.
_RENAMES = [
    (r'^text_branch\.', 'text_model.'), (r'^audio_branch\.', 'audio_model.audio_encoder.'),
    (r'_projection\.0\.', '_projection.linear1.'), (r'_projection\.2\.', '_projection.linear2.'),
    (r'\.bn0\.', '.batch_norm.'), (r'\.norm1\.', '.layernorm_before.'), (r'\.norm2\.', '.layernorm_after.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'), (r'\.mlp\.fc2\.', '.output.dense.'),
    (r'\.attn\.proj\.', '.attention.output.dense.'), (r'\.attn\.', '.attention.self.'),
]
# Of their networks, but not used for scores; the front end is made anew.
_UNUSED = re.compile(r'(audio|text)_transform\.|'
                     r'audio_branch\.(spectrogram_extractor|logmel_extractor|tscam_conv|head)\.|'
                     r'.*\.(attn_mask|relative_position_index|position_ids|token_type_ids)$')


def from_laion(state: tp.Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """LAION's names of weights to those of `ClapModel`; what scores do not need is left out."""
    found = {}
    for name, value in state.items():
        name = name.removeprefix('module.')
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        if '.qkv.' in name:
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3)):
                found[name.replace('.qkv.', f'.{part}.')] = piece
        else:
            found[name] = value
    return found


def fill(wav: torch.Tensor, samples: int = SAMPLES) -> torch.Tensor:
    """`[T]` to `[samples]`: cut at the end, or repeated as often as it fits whole, and zeros."""
    wav = wav[:samples]
    wav = wav.repeat(samples // len(wav)) if len(wav) else wav
    return F.pad(wav, (0, samples - len(wav)))


def logmel(wav: torch.Tensor) -> torch.Tensor:
    """Waveforms `[B, T]` at 48 kHz to decibels in mel bands `[B, 1, 1 + T // 480, 64]`."""
    window = torch.hann_window(N_FFT, device=wav.device)
    spec = torch.stft(wav, N_FFT, HOP, window=window, center=True, pad_mode='reflect', return_complex=True)
    filters = mel_filters(sample_rate=SAMPLE_RATE, n_fft=N_FFT, n_mels=N_MELS, fmin=FMIN, fmax=FMAX).to(wav.device)
    power = spec.real.square() + spec.imag.square()
    return 10 * (filters @ power).clamp_min(AMIN).log10().mT[:, None]


def _embedding(output: tp.Any) -> torch.Tensor:
    """The embeddings `[B, D]` of unit length; newer versions of transformers return them inside of an object."""
    return F.normalize(output if isinstance(output, torch.Tensor) else output.pooler_output, dim=-1)


class ClapLaion(FeatureNetwork):
    """LAION-CLAP (Wu et al., 2023) in the form of `transformers.ClapModel`: `embedding` of sound and of words.

    The weights are LAION's file, with the words of its tokenizer (`vocab.json` and `merges.txt` of roberta-base) beside
    it, or a folder as transformers keeps it. Scores of other weights are other scores: the results carry their sha256.
    `options`: those of `ClapConfig` where the network is not HTSAT-base. Sound is cut after 10 s (LAION's code takes
    10 s at random).
    """
    name, published = 'clap_laion', 'clap_laion'
    package = ('transformers', "pip install 'audiocraft[eval]' (or transformers)")
    sources = ('audio', 'text')

    @property
    def missing(self) -> str:
        """See `FeatureNetwork.missing`; the words of the tokenizer are needed as well."""
        if (reason := super().missing) or self.given:
            return reason
        absent = [name for name in TOKENIZER if not (self.folder / name).is_file()]
        if absent and not (self.folder / 'tokenizer.json').is_file():
            return (f'{MISSING_WEIGHTS}the tokenizer of {self.name} is not there: put {" and ".join(absent)} of '
                    f'roberta-base at {self.folder}')
        return ''

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.path if self.path.is_dir() else self.path.parent

    def load(self) -> nn.Module:
        from transformers import AutoTokenizer, ClapConfig, ClapModel, RobertaTokenizer
        if self.path.is_dir():
            model = ClapModel.from_pretrained(self.path, local_files_only=True)
            self.tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
            return model
        self.tokenizer = RobertaTokenizer.from_pretrained(self.folder, local_files_only=True)
        model = ClapModel(ClapConfig(**{**HTSAT_BASE, **self.options}))
        kept = {name: value for name, value in model.state_dict().items() if _UNUSED.match(name)}
        return load_strict(model, {**kept, **from_laion(read_state(self.path))}, self.path)

    def audio(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        model: tp.Any = self.ready()
        wavs = [fill(mono(clip, SAMPLE_RATE, self.seconds)) for clip in clips]
        return self.outputs(wavs, lambda batch: {
            'embedding': _embedding(model.get_audio_features(input_features=logmel(batch)))})

    def text(self, clips: tp.Sequence[Clip]) -> list[Features | None]:
        """Features of the captions."""
        model: tp.Any = self.ready()
        told = [clip for clip in clips if clip.caption]
        tokens = self.tokenizer([clip.caption for clip in told], padding='max_length', truncation=True, max_length=77,
                                return_tensors='pt') if told else {}
        rows = [torch.stack(pair) for pair in zip(tokens['input_ids'], tokens['attention_mask'])] if told else []
        made = iter(self.outputs(rows, lambda batch: {'embedding': _embedding(
            model.get_text_features(input_ids=batch[:, 0], attention_mask=batch[:, 1]))}))
        return [next(made) if clip.caption else None for clip in clips]


class ClapMs(FeatureNetwork):
    """Microsoft's CLAP of 2023, which is never run here: scores come from caches that were made elsewhere.

    Its package (msclap 1.3) does not go with numpy 2, and downloads when it starts.
    """
    name, published = 'clap_ms', 'clap_ms'
    sources = ('audio', 'text')

    @property
    def missing(self) -> str:
        """See `FeatureNetwork.missing`."""
        return '' if self.given else (
            f'{MISSING_PACKAGE}the package msclap does not go with numpy 2: make clap_ms_audio.pth and '
            'clap_ms_text.pth with av-benchmark in an environment of its own, and give their folders as caches')


def clap_laion(*, weights: str | None = None, device: str = 'auto', batch_size: int = 16,
               options: dict[str, tp.Any] | None = None) -> ClapLaion:
    """The shared `ClapLaion` of these arguments (see `FeatureNetwork`)."""
    return shared(ClapLaion, weights=weights, device=device, batch_size=batch_size, options=options)


def clap_ms() -> ClapMs:
    """The shared `ClapMs`."""
    return shared(ClapMs)
