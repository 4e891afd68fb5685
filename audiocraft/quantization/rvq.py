"""Residual vector quantization (Zeghidour et al. 2021, arXiv:2107.03312, section III.C)."""

import math
import typing as tp

import torch
from torch import nn
from torch.nn import functional as F

from ..utils.random import Draws
from .base import Codes, Quantized, Quantizer
from .codebook import EuclideanCodebook, Expiry, StartAverage, count_codes, orthogonality, perplexity


class LevelOutput(tp.NamedTuple):
    """What one level makes of vectors `[N, D]`.

    Args:
        quantized (torch.Tensor): `[N, D]`; it has a gradient if there is a projection.
        codes (torch.Tensor): `[N]`.
        loss (torch.Tensor): commitment, 0-dim; 0 outside of training.
        used (torch.Tensor): how often each entry was used, `[bins]`.
        expired (torch.Tensor): how many entries were replaced, 0-dim.
    """
    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    used: torch.Tensor
    expired: torch.Tensor


class VectorQuantization(nn.Module):
    """One level: a codebook, with a projection to its dimension and back if that is another.

    Args:
        dimension (int): of the vectors.
        codebook_dim (int or None): of the entries; None: the same, and no projection.
        orthogonal_reg_weight (float): see `ResidualVectorQuantizer`.
        codebook: arguments of `EuclideanCodebook`.
    """

    def __init__(self, *, dimension: int, codebook_dim: int | None = None, orthogonal_reg_weight: float = 0.,
                 **codebook: tp.Any):
        super().__init__()
        codebook_dim = codebook_dim or dimension
        projects = codebook_dim != dimension
        self.orthogonal_reg_weight = orthogonal_reg_weight
        self.project_in = nn.Linear(dimension, codebook_dim) if projects else nn.Identity()
        self.project_out = nn.Linear(codebook_dim, dimension) if projects else nn.Identity()
        self._codebook = EuclideanCodebook(dimension=codebook_dim, **codebook)

    @property
    def codebook(self) -> EuclideanCodebook:
        """The entries."""
        return self._codebook

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Codes `[N]` of vectors `[N, D]`."""
        return self._codebook.encode(self.project_in(rows))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Vectors `[..., D]` of codes `[...]`."""
        return self.project_out(self._codebook.decode(codes))

    def forward(self, rows: torch.Tensor) -> LevelOutput:
        """Quantize vectors `[N, D]`; in training, update the codebook with them."""
        projected, codebook = self.project_in(rows), self._codebook
        detached = projected.detach()
        started = self.training and codebook.start(detached)
        codes = codebook.encode(detached)
        entries = codebook.decode(codes).to(projected)
        quantized = self.project_out(entries)
        if not started:
            zero = projected.new_zeros(())
            return LevelOutput(quantized, codes, zero, count_codes(codes, codebook.bins), zero)
        loss = F.mse_loss(projected, entries)
        if self.orthogonal_reg_weight:
            loss = loss + self.orthogonal_reg_weight * orthogonality(codebook.embed)
        return LevelOutput(quantized, codes, loss, *codebook.update(detached, codes))


class ResidualVectorQuantizer(Quantizer):
    """Codebooks of which each quantizes what the ones before left over.

    The state has buffers `vq.layers.{i}._codebook.{inited, cluster_size, embed, embed_avg}`, as AudioCraft's.

    Args:
        dimension (int): D, of input and output.
        n_q (int): K, codebooks.
        bins (int): entries of each.
        q_dropout (bool): train with the first n codebooks, n drawn for each update from 1 to those in use.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code, expire, kmeans_average: see `EuclideanCodebook`.
        orthogonal_reg_weight (float): weight in the penalty of how far each codebook is from orthogonal entries. It is
            a value to watch: moving averages have no gradient.
        codebook_dim (int or None): dimension of the entries; None: that of the latents.
    """

    def __init__(self, *, dimension: int, n_q: int = 8, bins: int = 1024, q_dropout: bool = False,
                 decay: float = 0.99, kmeans_init: bool = True, kmeans_iters: int = 10,
                 threshold_ema_dead_code: float = 2, orthogonal_reg_weight: float = 0.,
                 codebook_dim: int | None = None, expire: Expiry = 'replace',
                 kmeans_average: StartAverage = 'weighted'):
        super().__init__()
        if n_q < 1 or bins < 1:
            raise ValueError(f'n_q and bins must be at least 1, got {n_q} and {bins}')
        for name, value, known in (('expire', expire, ('replace', 'upstream')),
                                   ('kmeans_average', kmeans_average, ('weighted', 'upstream'))):
            if value not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, got {value!r}')
        self.dimension = self.input_dimension = dimension
        self.total_codebooks = self.num_codebooks = n_q
        self.bins, self.q_dropout = bins, q_dropout
        layers = nn.ModuleList([
            VectorQuantization(dimension=dimension, codebook_dim=codebook_dim, bins=bins, decay=decay,
                               orthogonal_reg_weight=orthogonal_reg_weight, kmeans_init=kmeans_init,
                               kmeans_iters=kmeans_iters, threshold_ema_dead_code=threshold_ema_dead_code,
                               expire=expire, kmeans_average=kmeans_average)
            for _ in range(n_q)])
        # The key `vq.layers` of published files.
        self.vq = nn.ModuleDict({'layers': layers})

    @property
    def levels(self) -> list[VectorQuantization]:
        """The levels, the coarsest first."""
        return list(tp.cast(nn.ModuleList, self.vq['layers']))  # type: ignore[arg-type]

    def set_num_codebooks(self, n: int) -> None:
        """Use the first `n` codebooks only. Raises `ValueError` outside of 1 to `total_codebooks`."""
        if not 1 <= n <= self.total_codebooks:
            raise ValueError(f'the number of codebooks must be from 1 to {self.total_codebooks}, got {n}')
        self.num_codebooks = n

    def bandwidth(self, frame_rate: float, n: int | None = None) -> float:
        """Kilobits per second of `n` codebooks (None: those in use)."""
        return (self.num_codebooks if n is None else n) * math.log2(self.bins) * frame_rate / 1000

    def _rows(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, D, T']` as vectors `[B * T', D]` in fp32: the codes depend on small differences."""
        if x.dim() != 3 or x.shape[1] != self.dimension:
            raise ValueError(f"expected [B, {self.dimension}, T'], got {list(x.shape)}")
        return x.transpose(1, 2).reshape(-1, self.dimension).float()

    def _drawn_codebooks(self, draws: Draws | None) -> int:
        if not (self.training and self.q_dropout and draws is not None):
            return self.num_codebooks
        return 1 + int(draws.uniform() * self.num_codebooks)

    def forward(self, x: torch.Tensor, frame_rate: float, draws: Draws | None = None) -> Quantized:
        """Quantize `[B, D, T']`; in training, update the codebooks with it.

        The gradient passes through to `x` unchanged, once for the sum of all levels; the penalty, in training only, is
        the mean over levels of the squared distance between what is quantized and its entry.

        Args:
            x (torch.Tensor): output of the encoder.
            frame_rate (float): its frames per second.
            draws (Draws or None): where the number of codebooks comes from with `q_dropout`; None: all in use.
        """
        count = self._drawn_codebooks(draws)
        with torch.autocast(x.device.type, enabled=False):
            rows = self._rows(x)
            residual, total = rows, torch.zeros_like(rows)
            outputs: list[LevelOutput] = []
            for level in self.levels[:count]:
                outputs.append(level(residual))
                residual = residual - outputs[-1].quantized.detach()
                total = total + outputs[-1].quantized
            total = total + (rows - rows.detach())
        shape = (x.shape[0], x.shape[2])
        return Quantized(
            x=total.view(*shape, -1).transpose(1, 2).to(x.dtype),
            penalty=torch.stack([output.loss for output in outputs]).mean(),
            codes=torch.stack([output.codes for output in outputs]).view(count, *shape).transpose(0, 1),
            bandwidth=rows.new_full((), self.bandwidth(frame_rate, count)), metrics=self._metrics(outputs))

    def _metrics(self, outputs: list[LevelOutput]) -> dict[str, torch.Tensor]:
        """Perplexity of the codes, mean over levels; in training also how many entries were replaced, of all levels."""
        metrics = {'codebook_perplexity': torch.stack([perplexity(output.used) for output in outputs]).mean()}
        if self.training:
            metrics['codes_expired'] = torch.stack([output.expired for output in outputs]).sum()
        return metrics

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> Codes:
        """Codes `[B, K, T']` of `[B, D, T']`, of the codebooks in use; nothing is updated."""
        with torch.autocast(x.device.type, enabled=False):
            residual, codes = self._rows(x), []
            for level in self.levels[:self.num_codebooks]:
                codes.append(level.encode(residual))
                residual = residual - level.decode(codes[-1]).to(residual)
        return Codes(torch.stack(codes).view(-1, x.shape[0], x.shape[2]).transpose(0, 1))

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        """The sum `[B, D, T']` of the entries of codes `[B, K', T']`, where K' may be less than K.

        Raises `ValueError` for codes that no entry has, naming the level.
        """
        self._check_codes(encoded)
        total = sum(level.decode(codes) for level, codes in zip(self.levels, encoded.unbind(1)))
        return total.transpose(1, 2)  # type: ignore[union-attr]

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.total_codebooks or codes.is_floating_point():
            raise ValueError(f"expected integer codes [B, K, T'] with K from 1 to {self.total_codebooks}, "
                             f'got {codes.dtype} {list(codes.shape)}')
        wrong = ((codes < 0) | (codes >= self.bins)).any(dim=2).any(dim=0)
        if wrong.any():
            level = int(wrong.nonzero()[0])
            low, high = (int(value) for value in codes[:, level].aminmax())
            raise ValueError(f'codes of level {level} are from {low} to {high}, its codebook has 0 to {self.bins - 1}')
