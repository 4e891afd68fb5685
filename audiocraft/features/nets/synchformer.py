"""Synchformer: by how much sound and pictures of a clip are apart, as one of 21 classes.

Iashin et al., Synchformer: Efficient Synchronization from Sparse Cues, 2024 (arXiv:2401.16423). Segments of 0.64 s go
through an encoder each: pictures through MotionFormer, sound through the Audio Spectrogram Transformer (Gong et al.,
2021, arXiv:2104.01778). A small transformer compares the features of 14 segments. The names of parameters are those of
the published weights.
"""

import typing as tp

import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import nn

from .synchformer_visual import ClassPool, VisualEncoder


class SegmentMel(nn.Module):
    """The sound of segments as the log-mel spectrograms that the audio encoder takes.

    Args:
        sample_rate (int): of the waveforms.
        n_fft (int): points of the transform of a window of `window` samples, `hop` samples after the one before.
        n_mels (int): mel bands up to half of the sample rate (HTK's scale).
        frames (int): of the result; what a segment has not is zero before the scaling.
    """
    mean, deviation = -4.2677393, 4.5689974  # of what the encoder was trained on
    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, *, sample_rate: int = 16_000, n_fft: int = 1024, window: int = 400, hop: int = 160,
                 n_mels: int = 128, frames: int = 66):
        super().__init__()
        self.n_fft, self.hop, self.frames = n_fft, hop, frames
        filters = AF.melscale_fbanks(n_fft // 2 + 1, 0., sample_rate / 2, n_mels, sample_rate)
        self.register_buffer('window', torch.hann_window(window), persistent=False)
        self.register_buffer('filters', filters.T.contiguous(), persistent=False)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Waveforms `[B, T]` to `[B, n_mels, frames]`."""
        spectrum = torch.stft(wav, self.n_fft, self.hop, len(self.window), self.window, return_complex=True)
        logmel = (self.filters @ spectrum.abs().square() + 1e-6).log()
        logmel = F.pad(logmel, (0, self.frames - logmel.shape[-1]))
        return (logmel - self.mean) / (2 * self.deviation)


def _attend(num_heads: int, *parts: torch.Tensor) -> torch.Tensor:
    """Attention with queries, keys and values `[B, N, D]` to `[B, N, D]`."""
    heads = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in parts)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def _holder(**children: nn.Module) -> tp.Any:
    """A module that only holds others: the published names have levels at which nothing is computed."""
    module = nn.Module()
    for name, child in children.items():
        module.add_module(name, child)
    return module


class SpectrogramBlock(nn.Module):
    """A pre-norm transformer layer with the names of the Audio Spectrogram Transformer."""

    def __init__(self, *, dim: int, num_heads: int, hidden: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.layernorm_before = nn.LayerNorm(dim, eps=eps)
        self.attention = _holder(
            attention=_holder(query=nn.Linear(dim, dim), key=nn.Linear(dim, dim), value=nn.Linear(dim, dim)),
            output=_holder(dense=nn.Linear(dim, dim)))
        self.layernorm_after = nn.LayerNorm(dim, eps=eps)
        self.intermediate = _holder(dense=nn.Linear(dim, hidden))
        self.output = _holder(dense=nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to the same."""
        h = self.layernorm_before(x)
        parts = self.attention.attention
        x = x + self.attention.output.dense(_attend(self.num_heads, parts.query(h), parts.key(h), parts.value(h)))
        h = F.gelu(self.intermediate.dense(self.layernorm_after(x)))
        return x + self.output.dense(h)


class SpectrogramEmbedding(nn.Module):
    """Overlapping patches of a spectrogram, behind two tokens, with their positions."""

    def __init__(self, *, dim: int, n_mels: int, frames: int, patch: int, stride: int):
        super().__init__()
        self.rows, self.columns = ((size - patch) // stride + 1 for size in (n_mels, frames))
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.distillation_token = nn.Parameter(torch.empty(1, 1, dim))
        self.position_embeddings = nn.Parameter(torch.empty(1, 2 + self.rows * self.columns, dim))
        self.patch_embeddings = _holder(projection=nn.Conv2d(1, dim, patch, stride))
        for parameter in (self.cls_token, self.distillation_token, self.position_embeddings):
            nn.init.uniform_(parameter, -0.04, 0.04)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """`[B, n_mels, frames]` to `[B, 2 + rows * columns, D]`: all times of the lowest row come first."""
        patches = self.patch_embeddings.projection(mel[:, None]).flatten(2).mT
        tokens = (token.expand(len(mel), -1, -1) for token in (self.cls_token, self.distillation_token))
        return torch.cat([*tokens, patches], dim=1) + self.position_embeddings


class AudioEncoder(nn.Module):
    """Spectrograms of segments to a few features each, by the Audio Spectrogram Transformer, pooled over frequency.

    Args:
        dim (int): channels D.
        depth (int): layers.
        num_heads (int): of every attention.
        mlp_ratio (int): hidden channels of the MLPs, in D.
        n_mels (int): mel bands.
        frames (int): of the spectrogram of a segment.
        patch (int): bands and frames of a patch, `stride` from the one before.
    """

    def __init__(self, *, dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_ratio: int = 4, n_mels: int = 128,
                 frames: int = 66, patch: int = 16, stride: int = 10):
        super().__init__()
        eps = 1e-12  # as its authors' checkpoints have it
        embeddings = SpectrogramEmbedding(dim=dim, n_mels=n_mels, frames=frames, patch=patch, stride=stride)
        sizes = dict(dim=dim, num_heads=num_heads, hidden=mlp_ratio * dim)
        layers = nn.ModuleList(SpectrogramBlock(**sizes, eps=eps) for _ in range(depth))
        self.ast = _holder(embeddings=embeddings, encoder=_holder(layer=layers), layernorm=nn.LayerNorm(dim, eps=eps))
        self.freq_attn_agg = ClassPool(**sizes)
        self.dim, self.rows, self.features = dim, embeddings.rows, embeddings.columns

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """`[B, n_mels, frames]` to features `[B, features, D]`, one for each column of patches."""
        x = self.ast.embeddings(mel)
        for layer in self.ast.encoder.layer:
            x = layer(x)
        x = self.ast.layernorm(x)[:, 2:].unflatten(1, (self.rows, self.features)).transpose(1, 2)
        return self.freq_attn_agg(x.flatten(0, 1)).unflatten(0, (-1, self.features))


class SyncBlock(nn.Module):
    """A pre-norm transformer layer in which every token sees every other."""

    def __init__(self, *, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.num_heads = num_heads
        self.ln1 = nn.LayerNorm(dim)
        self.attn = _holder(**{name: nn.Linear(dim, dim) for name in ('key', 'query', 'value', 'proj')})
        self.ln2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to the same."""
        h = self.ln1(x)
        parts = (part(h) for part in (self.attn.query, self.attn.key, self.attn.value))
        x = x + self.attn.proj(_attend(self.num_heads, *parts))
        return x + self.mlp(self.ln2(x))


class SyncTransformer(nn.Module):
    """Features of pictures and sound, side by side, to the class of the offset.

    Args:
        dim (int): channels D.
        tokens (int): features of pictures and sound together.
        depth (int): layers.
        num_heads (int): of the attention.
        mlp_ratio (int): hidden channels of the MLPs, in D.
        classes (int): of offsets.
    """

    def __init__(self, *, dim: int, tokens: int, depth: int, num_heads: int, mlp_ratio: int, classes: int):
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.empty(1, 1, dim))
        self.MOD_tok = nn.Parameter(torch.empty(1, 1, dim))
        self.vis_in_lnorm, self.aud_in_lnorm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.pos_emb_cfg: tp.Any = nn.Module()
        self.pos_emb_cfg.pos_emb = nn.Parameter(torch.empty(1, 2 + tokens, dim))
        sizes = dict(dim=dim, num_heads=num_heads, hidden=mlp_ratio * dim)
        self.blocks = nn.Sequential(*(SyncBlock(**sizes) for _ in range(depth)))
        self.ln_f = nn.LayerNorm(dim)
        self.off_head = nn.Linear(dim, classes)
        for parameter in (self.OFF_tok, self.MOD_tok, self.pos_emb_cfg.pos_emb):
            nn.init.uniform_(parameter, -0.04, 0.04)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Features `[B, N_video, D]` and `[B, N_audio, D]` to logits `[B, classes]`."""
        offset, border = (token.expand(len(video), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        x = torch.cat([offset, self.vis_in_lnorm(video), border, self.aud_in_lnorm(audio)], dim=1)
        x = self.blocks(x + self.pos_emb_cfg.pos_emb)
        return self.off_head(self.ln_f(x[:, 0]))


class SynchformerNetwork(nn.Module):
    """The whole network.

    Args:
        visual (dict or None): arguments of `VisualEncoder`; `audio` those of `AudioEncoder`.
        dim (int): channels of the transformer that compares.
        depth (int): its layers, with `num_heads` heads and `mlp_ratio * dim` hidden channels.
        segments (int): that it compares.
        classes (int): of offsets.
    """

    def __init__(self, *, visual: tp.Mapping[str, tp.Any] | None = None, audio: tp.Mapping[str, tp.Any] | None = None,
                 dim: int = 768, depth: int = 3, num_heads: int = 8, mlp_ratio: int = 4, segments: int = 14,
                 classes: int = 21):
        super().__init__()
        self.segments = segments
        self.vfeat_extractor = VisualEncoder(**visual or {})
        self.afeat_extractor = AudioEncoder(**audio or {})
        self.vproj = nn.Linear(self.vfeat_extractor.dim, dim)
        self.aproj = nn.Linear(self.afeat_extractor.dim, dim)
        tokens = segments * (self.vfeat_extractor.features + self.afeat_extractor.features)
        self.transformer = SyncTransformer(dim=dim, tokens=tokens, depth=depth, num_heads=num_heads,
                                           mlp_ratio=mlp_ratio, classes=classes)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Features of the segments, `[B, segments, 8, D]` and `[B, segments, 6, D]`, to logits `[B, classes]`."""
        return self.transformer(self.vproj(video).flatten(1, 2), self.aproj(audio).flatten(1, 2))
