"""MusicGen's codec on music in data/music/{train,valid,test}: 8 GPUs each, with other seeds and weights of the losses.

dora grid compression.encodec_musicgen_32khz --dry_run --init     # the table, with the signature of each XP
dora grid compression.encodec_musicgen_32khz                      # on the cluster: starts what is missing
"""

from .._explorers import CompressionExplorer


@CompressionExplorer
def explorer(launcher):
    """Schedule the XPs."""
    launcher.slurm_(gpus=8, time=4320)
    launcher.bind_({'solver': 'compression/encodec_musicgen_32khz', 'dset.root': 'data/music'})
    with launcher.job_array():
        launcher()
        launcher(seed=1234)
        launcher({'weights.adv': 2., 'weights.feat': 2.})
        launcher({'weights.msspec': 1.})
        launcher({'model.quantizer.q_dropout': True})  # one codec for 0.55, 1.1, 1.65 and 2.2 kb/s
