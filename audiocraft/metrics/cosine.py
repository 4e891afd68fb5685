"""Cosine scores of paired embeddings: how ImageBind and CLAP scores are made of their networks' outputs."""

import torch
from torch.nn import functional as F


def cosine_score(a: torch.Tensor, b: torch.Tensor) -> float:
    """Mean cosine similarity of paired embeddings `[N, D]`, from -1 to 1. ValueError when there are no pairs."""
    if a.shape != b.shape or a.dim() != 2 or not len(a):
        raise ValueError(f'needs pairs of embeddings [N, D], got {list(a.shape)} and {list(b.shape)}')
    return float(F.cosine_similarity(a, b, dim=-1).mean())
