"""The five published MMAudio models, each on 8 GPUs; what they read is in docs/MMAUDIO.md.

dora grid mmaudio.published --dry_run --init     # the table, with the signature of each XP
dora grid mmaudio.published                      # runs what is missing, on a cluster
"""

from .._explorers import AVBenchmarkExplorer


@AVBenchmarkExplorer
def explorer(launcher):
    """Schedule the XPs."""
    launcher.slurm_(gpus=8, cpus_per_gpu=12, time=4320)
    for size in ['small_16k', 'small_44k', 'medium_44k', 'large_44k', 'large_44k_v2']:
        launcher({'solver': f'mmaudio/{size}'})
