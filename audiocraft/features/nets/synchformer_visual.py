"""The visual half of Synchformer: MotionFormer with divided space-time attention, pooled over space.

Patrick et al., Keeping Your Eye on the Ball, 2021 (arXiv:2106.05392), with the attention of Bertasius et al., 2021
(arXiv:2102.05095), as Iashin et al., Synchformer, 2024 (arXiv:2401.16423) use it. The names of parameters are those of
the published weights, under `vfeat_extractor.` there.
"""

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6  # of the layer norms of encoders


class ClassPool(nn.Module):
    """One transformer layer that pools tokens: what a token of its own, `cls_token`, becomes among them.

    It is the pre-norm `nn.TransformerEncoderLayer`, of which only the output for that token is computed.

    Args:
        dim (int): channels D.
        num_heads (int): of the attention.
        hidden (int): channels of the MLP.
    """

    def __init__(self, *, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.self_attn = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        nn.init.uniform_(self.cls_token, -0.04, 0.04)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N, D]` to `[B, D]`."""
        token = self.cls_token.expand(len(x), 1, -1)
        among = self.norm1(torch.cat([token, x], dim=1))
        pooled = token + self.self_attn(among[:, :1], among, among, need_weights=False)[0]
        return (pooled + self.linear2(F.gelu(self.linear1(self.norm2(pooled)))))[:, 0]


class DividedAttention(nn.Module):
    """Attention of each patch within its frame, or to the same place in other frames, and to the class token.

    The class token attends to everything.

    Args:
        dim (int): channels D.
        num_heads (int): heads H.
        over (str): 'space' or 'time'.
    """

    def __init__(self, *, dim: int, num_heads: int, over: str):
        super().__init__()
        self.num_heads, self.over_time = num_heads, over == 'time'
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """`[B, 1 + T * S, D]` to the same, the class token first, then S patches of each of T frames."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, 1 + T * S, D / H]
        first = F.scaled_dot_product_attention(qkv[0, :, :, :1], qkv[1], qkv[2])
        out = torch.cat([first, self._patches(qkv, frames)], dim=2)
        return self.proj(out.transpose(1, 2).flatten(2))

    def _patches(self, qkv: torch.Tensor, frames: int) -> torch.Tensor:
        """What the patches attend to, `[B, H, T * S, D / H]`: in groups of those that see each other."""
        groups = qkv[:, :, :, 1:].unflatten(3, (frames, -1))
        groups = groups.transpose(3, 4) if self.over_time else groups  # [3, B, H, groups, members, D / H]
        shared = qkv[1:, :, :, None, :1].expand(-1, -1, -1, groups.shape[3], -1, -1)
        keys, values = torch.cat([shared, groups[1:]], dim=4)
        out = F.scaled_dot_product_attention(*(part.flatten(1, 2) for part in (groups[0], keys, values)))
        out = out.unflatten(1, (self.num_heads, -1))
        return (out.transpose(2, 3) if self.over_time else out).flatten(2, 3)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them, `[..., D]` to `[..., D]`."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each token on its own."""
        return self.fc2(F.gelu(self.fc1(x)))


class DividedBlock(nn.Module):
    """Attention over time, attention over space, MLP, each on top of its input."""

    def __init__(self, *, dim: int, num_heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = DividedAttention(dim=dim, num_heads=num_heads, over='space')
        self.timeattn = DividedAttention(dim=dim, num_heads=num_heads, over='time')
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, hidden)
        self.norm3 = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        """`[B, 1 + T * S, D]` to the same."""
        x = x + self.timeattn(self.norm3(x), frames)
        x = x + self.attn(self.norm1(x), frames)
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """A convolution from pictures or films to one vector per patch."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.proj = conv


class VisualEncoder(nn.Module):
    """Segments of a film to a few features each.

    Args:
        dim (int): channels D.
        depth (int): blocks.
        num_heads (int): of every attention.
        mlp_ratio (int): hidden channels of the MLPs, in D.
        frames (int): of a segment.
        size (int): pixels of a side of the square frames.
        patch (int): pixels of a side of a patch.
        patch_frames (int): frames of a patch; a segment gives `frames / patch_frames` features.
    """

    def __init__(self, *, dim: int = 768, depth: int = 12, num_heads: int = 12, mlp_ratio: int = 4, frames: int = 16,
                 size: int = 224, patch: int = 16, patch_frames: int = 2):
        super().__init__()
        self.dim, self.frames, self.size, self.features = dim, frames, size, frames // patch_frames
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + (size // patch) ** 2, dim))
        self.temp_embed = nn.Parameter(torch.empty(1, self.features, dim))
        # For single pictures, from which the network once started. It is in the published weights, and not used.
        self.patch_embed = Patches(nn.Conv2d(3, dim, patch, patch)).requires_grad_(False)
        window = (patch_frames, patch, patch)
        self.patch_embed_3d = Patches(nn.Conv3d(3, dim, window, window))
        sizes = dict(dim=dim, num_heads=num_heads, hidden=mlp_ratio * dim)
        self.blocks = nn.ModuleList(DividedBlock(**sizes) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.spatial_attn_agg = ClassPool(**sizes)
        for parameter in (self.cls_token, self.pos_embed, self.temp_embed):
            nn.init.uniform_(parameter, -0.04, 0.04)

    def forward(self, segments: torch.Tensor) -> torch.Tensor:
        """Segments `[B, frames, 3, size, size]` in [-1, 1] to features `[B, frames / patch_frames, D]`."""
        patches = self.patch_embed_3d.proj(segments.transpose(1, 2)).flatten(3).permute(0, 2, 3, 1)  # [B, T, S, D]
        patches = patches + self.temp_embed[:, :, None] + self.pos_embed[:, None, 1:]
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(patches), -1, -1)
        x = torch.cat([first, patches.flatten(1, 2)], dim=1)
        for block in self.blocks:
            x = block(x, self.features)
        x = self.norm(x[:, 1:]).unflatten(1, (self.features, -1))
        return self.spatial_attn_agg(x.flatten(0, 1)).unflatten(0, (-1, self.features))
