"""The flow network of MMAudio: from video and text to the latents of audio (Cheng et al., arXiv 2412.15322).

Names and shapes of the parameters are those of the published checkpoints.
"""

import dataclasses
import typing as tp

import torch
from torch import nn

from ..flow.guidance import Field, guided
from ..modules.conv import ChannelLastConv1d, upsample_nearest
from ..modules.embeddings import TimestepEmbedder
from ..modules.joint_blocks import FinalBlock, FusedBlock, JointBlock
from ..modules.mlp import MLP, ConvMLP
from ..modules.rope import rotations

SYNC_GROUP = 8  # features that one segment of frames gives
# Of the features that the published models take: CLIP's, Synchformer's, and the states of CLIP's text tower.
PUBLISHED_DIMS = dict(clip_dim=1024, sync_dim=768, text_dim=1024, text_seq_len=77)
NON_PERSISTENT = ('t_embed.freqs', 'latent_rot', 'clip_rot')  # in old checkpoints only


@dataclasses.dataclass
class Conditions:
    """What the network needs of the conditions, independent of time.

    Args:
        clip (torch.Tensor): visual features `[B, N_clip, D]`.
        sync (torch.Tensor): synchronization features at the latent rate `[B, N, D]`.
        text (torch.Tensor): text features `[B, N_text, D]`.
        clip_c (torch.Tensor): their mean, projected, `[B, D]`; `text_c` for the text.
    """
    clip: torch.Tensor
    sync: torch.Tensor
    text: torch.Tensor
    clip_c: torch.Tensor
    text_c: torch.Tensor

    def _tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def expand(self, batch: int) -> 'Conditions':
        """Repeat conditions of batch size 1, without copying; those of size `batch` stay."""
        return Conditions(*(tensor.expand(batch, *tensor.shape[1:]) for tensor in self._tensors()))

    def cat(self, other: 'Conditions') -> 'Conditions':
        """These conditions, followed by others along the batch."""
        return Conditions(*(torch.cat(pair) for pair in zip(self._tensors(), other._tensors())))


class MMAudio(nn.Module):
    """Predicts the velocity of audio latents, given visual, synchronization and text features.

    Args:
        latent_dim (int): channels C of the latents.
        clip_dim (int): of the visual features; `sync_dim` and `text_dim` of the others.
        hidden_dim (int): channels D inside.
        depth (int): number of blocks; the last `fused_depth` of them see the latents only.
        fused_depth (int): see above.
        num_heads (int): heads of the attention.
        latent_seq_len (int): number N of latents; `clip_seq_len`, `sync_seq_len` (a multiple of 8) and `text_seq_len`
            of the features.
        mlp_ratio (float): width of the feed-forward layers over D.
        v2 (bool): the second published version: SiLU in the input projections, other frequencies of the time embedding.
        latent_mean (list or tensor): mean of the latents for each channel, `latent_std` their deviation. If they are
            not given they are NaN, so that nobody uses them before they are loaded.
        empty_string_feat (torch.Tensor): text features of the empty text, `[N_text, text_dim]`. Default: zeros.
    """
    latent_rot: torch.Tensor
    clip_rot: torch.Tensor

    forward_methods = ('predict_flow',)  # other ways through the blocks than `forward`

    def __init__(self, *, latent_dim: int, clip_dim: int, sync_dim: int, text_dim: int, hidden_dim: int, depth: int,
                 fused_depth: int, num_heads: int, latent_seq_len: int, clip_seq_len: int, sync_seq_len: int,
                 text_seq_len: int, mlp_ratio: float = 4., v2: bool = False, latent_mean: tp.Any = None,
                 latent_std: tp.Any = None, empty_string_feat: tp.Any = None):
        super().__init__()
        if hidden_dim % (2 * num_heads):
            raise ValueError(f'hidden_dim must be a multiple of 2 * num_heads, got {hidden_dim} and {num_heads} heads')
        if not 0 <= fused_depth < depth:
            raise ValueError(f'fused_depth must be less than depth, got {fused_depth} and {depth}')
        self.latent_dim, self.hidden_dim, self.num_heads, self.v2 = latent_dim, hidden_dim, num_heads, v2
        self.text_seq_len = text_seq_len
        self._build_projections(latent_dim, clip_dim, sync_dim, text_dim, int(hidden_dim * mlp_ratio))
        joint_depth = depth - fused_depth
        self.joint_blocks = nn.ModuleList(
            JointBlock(hidden_dim, num_heads, mlp_ratio=mlp_ratio, pre_only=index == joint_depth - 1)
            for index in range(joint_depth))
        self.fused_blocks = nn.ModuleList(
            FusedBlock(hidden_dim, num_heads, mlp_ratio=mlp_ratio, kernel_size=3) for _ in range(fused_depth))
        self.final_layer = FinalBlock(hidden_dim, latent_dim)
        self.t_embed = TimestepEmbedder(hidden_dim, frequency_dim=hidden_dim if v2 else 256,
                                        max_period=1 if v2 else 10000)
        self._build_features(clip_dim, sync_dim, text_dim, latent_mean, latent_std, empty_string_feat)
        self.update_seq_lengths(latent_seq_len, clip_seq_len, sync_seq_len)
        self.init_weights()

    def _build_projections(self, latent_dim: int, clip_dim: int, sync_dim: int, text_dim: int, hidden: int) -> None:
        dim = self.hidden_dim
        # In the first version, visual and text features have no activation after their first layer.
        first: list[nn.Module] = [nn.SiLU()] if self.v2 else [nn.SELU()]
        other: list[nn.Module] = [nn.SiLU()] if self.v2 else []
        self.audio_input_proj = nn.Sequential(
            ChannelLastConv1d(latent_dim, dim, 7, padding=3), *first, ConvMLP(dim, hidden, kernel_size=7))
        self.clip_input_proj = nn.Sequential(nn.Linear(clip_dim, dim), *other, ConvMLP(dim, hidden, kernel_size=3))
        self.sync_input_proj = nn.Sequential(
            ChannelLastConv1d(sync_dim, dim, 7, padding=3), *first, ConvMLP(dim, hidden, kernel_size=3))
        self.text_input_proj = nn.Sequential(nn.Linear(text_dim, dim), *other, MLP(dim, hidden))
        self.clip_cond_proj = nn.Linear(dim, dim)
        self.text_cond_proj = nn.Linear(dim, dim)
        self.global_cond_mlp = MLP(dim, hidden)

    def _build_features(self, clip_dim: int, sync_dim: int, text_dim: int, latent_mean: tp.Any, latent_std: tp.Any,
                        empty_string_feat: tp.Any) -> None:
        self.sync_pos_emb = nn.Parameter(torch.zeros(1, 1, SYNC_GROUP, sync_dim))
        self.empty_clip_feat = nn.Parameter(torch.zeros(1, clip_dim))
        self.empty_sync_feat = nn.Parameter(torch.zeros(1, sync_dim))
        empty = torch.zeros(self.text_seq_len, text_dim)
        if empty_string_feat is not None:
            empty = torch.as_tensor(empty_string_feat, dtype=torch.float32).reshape(empty.shape).clone()
        # These are constants, but parameters in the published checkpoints.
        self.empty_string_feat = nn.Parameter(empty, requires_grad=False)
        self.latent_mean = nn.Parameter(self._statistics(latent_mean), requires_grad=False)
        self.latent_std = nn.Parameter(self._statistics(latent_std), requires_grad=False)

    def _statistics(self, values: tp.Any) -> torch.Tensor:
        if values is None:
            return torch.full((1, 1, self.latent_dim), float('nan'))
        return torch.as_tensor(values, dtype=torch.float32).reshape(1, 1, self.latent_dim).clone()

    def init_weights(self) -> None:
        """Draw the initial weights; blocks and output start as zero, and so do the learned null features."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name in ('t_embed.mlp.0.weight', 't_embed.mlp.2.weight'):
                nn.init.normal_(parameter, std=0.02)
            if 'adaLN_modulation.1.' in name or name.startswith('final_layer.conv.'):
                nn.init.zeros_(parameter)

    def update_seq_lengths(self, latent_seq_len: int, clip_seq_len: int, sync_seq_len: int) -> None:
        """Set the lengths of the sequences; weights do not depend on them.

        Raises:
            ValueError: when `sync_seq_len` is not a multiple of 8.
        """
        if sync_seq_len % SYNC_GROUP:
            raise ValueError(f'sync_seq_len must be a multiple of {SYNC_GROUP}, got {sync_seq_len}')
        self.latent_seq_len, self.clip_seq_len, self.sync_seq_len = latent_seq_len, clip_seq_len, sync_seq_len
        head_dim, device = self.hidden_dim // self.num_heads, self.sync_pos_emb.device
        # Visual features are placed where they are on the time axis of the latents.
        clip_rot = rotations(clip_seq_len, head_dim, scale=latent_seq_len / clip_seq_len)
        self.register_buffer('latent_rot', rotations(latent_seq_len, head_dim).to(device), persistent=False)
        self.register_buffer('clip_rot', clip_rot.to(device), persistent=False)

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, in order: what is sharded or checkpointed one by one."""
        return [*self.joint_blocks, *self.fused_blocks]

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Latents `[B, N, C]` to zero mean and unit deviation, as a new tensor."""
        return (x - self.latent_mean) / self.latent_std

    def unnormalize(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        return x * self.latent_std + self.latent_mean

    def null_features(self) -> dict[str, torch.Tensor]:
        """Features that stand for an absent modality, each to be broadcast over time, with their gradients."""
        return {'clip_features': self.empty_clip_feat, 'sync_features': self.empty_sync_feat,
                'text_features': self.empty_string_feat}

    def preprocess_conditions(self, clip: torch.Tensor, sync: torch.Tensor, text: torch.Tensor) -> Conditions:
        """Everything about the conditions that does not depend on time.

        Args:
            clip (torch.Tensor): `[B, N_clip, clip_dim]`.
            sync (torch.Tensor): `[B, N_sync, sync_dim]`.
            text (torch.Tensor): `[B, N_text, text_dim]`.
        Raises:
            ValueError: when a length is not the configured one.
        """
        for name, x, length in (('clip', clip, self.clip_seq_len), ('sync', sync, self.sync_seq_len),
                                ('text', text, self.text_seq_len)):
            if x.shape[1] != length:
                raise ValueError(f'{name} features have length {x.shape[1]}, but the network is set to {length}')
        sync = (sync.unflatten(1, (-1, SYNC_GROUP)) + self.sync_pos_emb).flatten(1, 2)
        clip, sync, text = self.clip_input_proj(clip), self.sync_input_proj(sync), self.text_input_proj(text)
        return Conditions(clip=clip, sync=upsample_nearest(sync, self.latent_seq_len), text=text,
                          clip_c=self.clip_cond_proj(clip.mean(dim=1)), text_c=self.text_cond_proj(text.mean(dim=1)))

    def empty_conditions(self, batch: int, text: tp.Optional[torch.Tensor] = None) -> Conditions:
        """Conditions without video, for `batch` items.

        Args:
            batch (int): number of items B.
            text (torch.Tensor): text features to steer away from, `[B or 1, N_text, text_dim]`. Default: those of the
                empty text.
        """
        text = self.empty_string_feat[None] if text is None else text
        cond = self.preprocess_conditions(self.empty_clip_feat[None].expand(1, self.clip_seq_len, -1),
                                          self.empty_sync_feat[None].expand(1, self.sync_seq_len, -1), text)
        return cond.expand(batch)

    def predict_flow(self, latent: torch.Tensor, t: torch.Tensor, cond: Conditions) -> torch.Tensor:
        """The velocity at latents `[B, N, C]` and times `[B]` or `[]`, of the shape of the latents.

        Raises:
            ValueError: when the number of latents is not the configured one.
        """
        if latent.shape[1] != self.latent_seq_len:
            raise ValueError(f'there are {latent.shape[1]} latents, but the network is set to {self.latent_seq_len}')
        x = self.audio_input_proj(latent)
        times = t.to(latent.dtype).expand(latent.shape[0])
        global_cond = (self.t_embed(times) + self.global_cond_mlp(cond.clip_c + cond.text_c))[:, None]
        frame_cond = global_cond + cond.sync
        clip, text = cond.clip, cond.text
        for block in self.joint_blocks:
            x, clip, text = block(x, clip, text, global_cond, frame_cond, self.latent_rot, self.clip_rot)
        for block in self.fused_blocks:
            x = block(x, frame_cond, self.latent_rot)
        # The paper has the condition of each frame here; the published weights were trained with the global one.
        return self.final_layer(x, global_cond)

    def forward(self, latent: torch.Tensor, clip: torch.Tensor, sync: torch.Tensor, text: torch.Tensor,
                t: torch.Tensor) -> torch.Tensor:
        """`preprocess_conditions` and `predict_flow` in a row, for training."""
        return self.predict_flow(latent, t, self.preprocess_conditions(clip, sync, text))

    def field(self, cond: Conditions, empty: tp.Optional[Conditions] = None, scale: float = 1.) -> Field:
        """The velocity field for the samplers, `(t, x [B, N, C]) -> [B, N, C]`.

        Args:
            cond (Conditions): what to generate.
            empty (Conditions): what to steer away from, for the same batch.
            scale (float): strength of the guidance. Up to 1, or without `empty`, there is none.
        """
        if empty is None or scale <= 1:
            return lambda t, x: self.predict_flow(x, t, cond).to(x.dtype)
        both = cond.cat(empty)
        # Under autocast the velocities are rounded once, and not the mixture of them again.
        return guided(lambda t, x: self.predict_flow(x, t, both).to(x.dtype), scale)
