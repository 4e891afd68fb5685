"""One codebook, whose entries are running means of the vectors that fall to them.

The quantizer of VQ-VAE with moving averages (van den Oord et al. 2017, arXiv:1711.00937, appendix A.1), begun by
k-means and with entries that fell out of use begun anew (Dhariwal et al. 2020, arXiv:2005.00341, section 3.1).
"""

import typing as tp

import torch
from torch import nn

from .. import distrib

SMOOTHING = 1e-5
# Of the mean count, the highest threshold; of the threshold, the count that new entries begin with: without use, they
# have ten updates at the usual decay. Less, and they are replaced before they could be used; more, and a codebook whose
# vectors have just changed is slow to follow.
MAX_THRESHOLD, NEW_SIZE = 0.25, 1.1
# Distances that are computed at once: 256 MiB in fp32.
DISTANCES_AT_ONCE = 2 ** 26

Expiry: tp.TypeAlias = tp.Literal['replace', 'upstream']
StartAverage: tp.TypeAlias = tp.Literal['weighted', 'upstream']


def sample_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Draw `count` of the rows of `[N, D]`: all different while there are that many, then from the start again."""
    order = torch.randperm(rows.shape[0], device=rows.device)
    places = torch.arange(count, device=rows.device) % rows.shape[0]
    return rows[order[places]]


def nearest(rows: torch.Tensor, embed: torch.Tensor) -> torch.Tensor:
    """Index of the entry of `embed` `[K, D]` that is nearest to each of `rows` `[N, D]`; the first of equal ones.

    The squared distance is computed as `(|x|^2 - 2 x e) + |e|^2`, in this order: other forms round differently, and
    give other codes than published models do where two entries are about equally far.
    """
    transposed = embed.t()
    squares = transposed.square().sum(0, keepdim=True)
    found = []
    for part in rows.split(max(1, DISTANCES_AT_ONCE // embed.shape[0])):
        product = (2 * part) @ transposed
        distance = torch.sub(part.square().sum(1, keepdim=True), product, out=product).add_(squares)
        found.append(distance.argmin(dim=1))
    return torch.cat(found) if len(found) > 1 else found[0]


def count_codes(codes: torch.Tensor, bins: int) -> torch.Tensor:
    """How often each of `bins` codes is in `[N]`, as `[bins]`, floating point; unlike `bincount`, waits for nothing."""
    ones = torch.ones((), device=codes.device).expand(codes.shape[0])
    return torch.zeros(bins, device=codes.device).index_add_(0, codes, ones)


def count_and_sum(rows: torch.Tensor, codes: torch.Tensor, bins: int) -> torch.Tensor:
    """Of the rows `[N, D]` of each code, the sum in the first D columns of `[bins, D + 1]` and the number in the last.

    One tensor, so that it travels between processes at once.
    """
    totals = rows.new_zeros(bins, rows.shape[1] + 1)
    totals[:, :-1].index_add_(0, codes, rows)
    totals[:, -1] = count_codes(codes, bins)
    return totals


def kmeans(rows: torch.Tensor, clusters: int, iterations: int = 10,
           means: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster `[N, D]` by Lloyd's algorithm.

    Args:
        rows (torch.Tensor): what to cluster.
        clusters (int): K.
        iterations (int): assignments, each followed by new means; a cluster without rows keeps its mean.
        means (torch.Tensor or None): first means `[K, D]`; None draws them from the rows.
    Returns:
        tuple: means `[K, D]`, and the sizes `[K]` of the clusters in the last assignment, floating point.
    """
    means = sample_rows(rows, clusters) if means is None else means
    counts = rows.new_zeros(clusters)
    for _ in range(iterations):
        totals = count_and_sum(rows, nearest(rows, means), clusters)
        counts = totals[:, -1]
        means = torch.where(counts[:, None] > 0, totals[:, :-1] / counts.clamp(min=1)[:, None], means)
    return means, counts


def laplace_smoothing(counts: torch.Tensor, epsilon: float = SMOOTHING) -> torch.Tensor:
    """Counts `[K]` as probabilities, `epsilon` added to each, so that none is zero."""
    return (counts + epsilon) / (counts.sum() + counts.shape[0] * epsilon)


def orthogonality(embed: torch.Tensor) -> torch.Tensor:
    """How far the directions of the entries `[K, D]` are from orthogonal ones, 0-dim.

    The mean over all pairs of the squared difference between their cosine and that of an orthogonal set.
    """
    unit = nn.functional.normalize(embed, dim=-1)
    cosines = unit @ unit.t()
    return (cosines - torch.eye(embed.shape[0], device=embed.device, dtype=embed.dtype)).square().mean()


def perplexity(counts: torch.Tensor) -> torch.Tensor:
    """How many equally used entries carry as much as these counts `[K]` do, 0-dim; 1 for a single one in use."""
    return torch.special.entr(counts / counts.sum().clamp(min=1)).sum().exp()


class EuclideanCodebook(nn.Module):
    """Entries that are moving averages: buffers, no parameters.

    With several processes the sums are those of all, and what is random is decided by the first: the buffers stay the
    same everywhere. A batch with values that are not finite changes nothing.

    Args:
        dimension (int): D.
        bins (int): K, entries.
        decay (float): of the moving averages, for each update.
        kmeans_init (bool): the first training batch is clustered to get the entries. Until then, and without it, they
            are small random vectors.
        kmeans_iters (int): iterations of it.
        threshold_ema_dead_code (float): entries whose moving count is lower are dead; 0: none is. In effect never more
            than a quarter of the mean count: with few vectors for each entry most would be below the threshold, and
            begin anew at each update.
        expire (str): `replace`: dead entries become random vectors of the batch; `upstream`: nothing happens, as in
            AudioCraft, where the replaced entry is overwritten within the same update.
        kmeans_average (str): `weighted`: the running sums begin with those of the clusters; `upstream`: with the means
            alone, as in AudioCraft, whose first update therefore divides each entry by about the size of its cluster.
    """

    averages_itself = True  # for moving averages of the weights: see `optim.ema.Average`
    inited: torch.Tensor
    cluster_size: torch.Tensor
    embed: torch.Tensor
    embed_avg: torch.Tensor

    def __init__(self, *, dimension: int, bins: int, decay: float = 0.99, kmeans_init: bool = True,
                 kmeans_iters: int = 10, threshold_ema_dead_code: float = 2, expire: Expiry = 'replace',
                 kmeans_average: StartAverage = 'weighted'):
        super().__init__()
        self.bins, self.decay, self.kmeans_iters = bins, decay, kmeans_iters
        self.threshold = float(threshold_ema_dead_code) if expire == 'replace' else 0.
        self.weighted_start = kmeans_average == 'weighted'
        embed = torch.empty(bins, dimension)
        nn.init.kaiming_uniform_(embed)
        self.register_buffer('inited', torch.tensor([float(not kmeans_init)]))
        self.register_buffer('cluster_size', torch.ones(bins))
        self.register_buffer('embed', embed)
        self.register_buffer('embed_avg', embed.clone())
        # What `inited` said last: asking a device each time would wait for it.
        self._is_inited = False

    def _load_from_state_dict(self, *args: tp.Any, **kwargs: tp.Any) -> None:
        self._is_inited = False
        super()._load_from_state_dict(*args, **kwargs)

    def encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Codes `[N]` of `[N, D]`."""
        return nearest(rows, self.embed.to(rows))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Entries `[..., D]` of codes `[...]`."""
        return nn.functional.embedding(codes, self.embed)

    @torch.no_grad()
    def start(self, rows: torch.Tensor) -> bool:
        """Take the entries from the clusters of `[N, D]`, unless that was done before; whether there are entries now.

        Nothing is taken from a batch with values that are not finite.
        """
        if not self._is_inited:
            if not self.inited.item() and not distrib.agree(not rows.isfinite().all()):
                self._start(rows)
            self._is_inited = bool(self.inited.item())
        return self._is_inited

    def _start(self, rows: torch.Tensor) -> None:
        everyones = distrib.gather(rows, everywhere=False)
        if distrib.is_rank_zero():
            means, counts = kmeans(torch.cat(everyones).to(rows), self.bins, self.kmeans_iters)
            self.embed.copy_(means)
            self.embed_avg.copy_(means * counts[:, None] if self.weighted_start else means)
            self.cluster_size.copy_(counts)
            self.inited.fill_(1)
        for buffer in self.buffers():
            distrib.broadcast(buffer)

    @torch.no_grad()
    def update(self, rows: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the entries towards the rows `[N, D]` whose codes `[N]` they are.

        Returns:
            tuple: how often each code was used `[K]`, and how many entries were replaced, 0-dim.
        """
        totals = distrib.all_reduce(count_and_sum(rows, codes, self.bins))
        finite = totals.isfinite().all()
        totals = totals.where(finite, 0.)
        step = finite * (1 - self.decay)
        self.cluster_size.lerp_(totals[:, -1], step)
        self.embed_avg.lerp_(totals[:, :-1], step)
        smoothed = laplace_smoothing(self.cluster_size) * self.cluster_size.sum()
        self.embed.copy_(torch.where(finite, self.embed_avg / smoothed[:, None], self.embed))
        return totals[:, -1], self._replace_dead(rows, finite)

    def _replace_dead(self, rows: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        """Put random rows in the place of dead entries; how many."""
        if not self.threshold:
            return self.cluster_size.new_zeros(())
        drawn = distrib.broadcast(sample_rows(rows, self.bins))
        threshold = (self.cluster_size.mean() * MAX_THRESHOLD).clamp(max=self.threshold)
        dead = finite & (self.cluster_size < threshold)
        # The first dead entry takes the first row, and so on: different rows, if there are enough.
        new = drawn[(dead.cumsum(0) - 1).clamp(min=0)]
        size = threshold * NEW_SIZE
        self.embed.copy_(torch.where(dead[:, None], new, self.embed))
        self.embed_avg.copy_(torch.where(dead[:, None], new * size, self.embed_avg))
        self.cluster_size.copy_(torch.where(dead, size, self.cluster_size))
        return dead.sum().to(self.cluster_size)
