"""The quickstart's model with other learning rates and guidance: 2 minutes each on 2 cores.

dora grid mmaudio.debug --dry_run --init     # the table, with the signature of each XP
dora grid mmaudio.debug                      # runs what is missing: on a cluster, or one by one here
dora run -f SIG                              # one of them, in this terminal
"""

from .._explorers import GenerationExplorer


@GenerationExplorer
def explorer(launcher):
    """Schedule the XPs."""
    launcher.slurm_(gpus=0, time=60)
    launcher.bind_(solver='mmaudio/debug')
    with launcher.job_array():
        for lr in [1e-3, 2e-3, 4e-3]:
            launcher({'optim.lr': lr})
