"""The light EnCodec at other bitrates and learning rates, and with a discriminator: some minutes each on 2 cores.

dora grid compression.debug --dry_run --init     # the table, with the signature of each XP
dora grid compression.debug                      # runs what is missing: on a cluster, or one by one here
dora run -f SIG                                  # one of them, in this terminal
"""

from .._explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher):
    """Schedule the XPs."""
    launcher.slurm_(gpus=0, time=60)
    launcher.bind_(solver='compression/debug')
    with launcher.job_array():
        launcher()
        for n_q, bins in [(2, 256), (8, 256), (4, 64), (4, 1024)]:
            launcher({'model.quantizer.n_q': n_q, 'model.quantizer.bins': bins})
        for lr in [1e-3, 1e-2]:
            launcher({'optim.lr': lr})
        launcher(adversarial='msstftd_tiny')
