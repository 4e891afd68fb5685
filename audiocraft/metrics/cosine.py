"""Cosine scores of paired embeddings: how ImageBind and CLAP scores are made of their networks' outputs."""

import torch
from torch.nn import functional as F

from .base import Results
from .network_metric import NetworkMetric, Tensors


def cosine_score(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine similarity of paired embeddings `[N, D]`, from -1 to 1. ValueError when there are no pairs."""
    if a.shape != b.shape or a.dim() != 2 or not len(a):
        raise ValueError(f'needs pairs of embeddings [N, D], got {list(a.shape)} and {list(b.shape)}')
    return float(F.cosine_similarity(a, b, dim=-1).mean())


class NetworkCosine(NetworkMetric):
    """Mean cosine over pairs between two embeddings of one network, of the sound and of pictures or words.

    `<name>_n` is the number of pairs. Papers print it times 100.
    """

    def score(self, generated: Tensors, true: Tensors) -> Results:
        """See `NetworkMetric.score`."""
        return {self.name: cosine_score(torch.stack(generated), torch.stack(true)),
                f'{self.name}_n': float(len(generated))}
