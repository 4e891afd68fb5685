"""Stands in for `dora`, `python` and `torchrun` where commands of the docs are tested: the same commands, made tiny.

    python tests/integ/tiny.py dora run solver=mmaudio/debug
"""

import os
import sys

NETWORK = ['model.hidden_dim=32', 'model.num_heads=2', 'model.depth=2', 'model.fused_depth=1']  # of the published sizes
TRAINING = ['optim.epochs=1', 'optim.updates_per_epoch=2', 'dataset.batch_size=2', 'logging.log_updates=1']
CLIPS = 4


def shrink(program: str, args: list[str]) -> list[str]:
    """The arguments, with fewer and shorter of everything."""
    own = args[2:] if program == 'python' and args[:2] == ['-m', 'audiocraft'] else args if program == 'dora' else []
    if own[:1] in (['run'], ['sig']) or 'audiocraft.train' in args:
        sampling = ['sampling.steps=2'] if any(arg.startswith('solver=mmaudio') for arg in args) else []
        large = any(arg.startswith('solver=mmaudio') and not arg.endswith('debug') for arg in args)
        return [*args, *TRAINING, *sampling, *(NETWORK if large else [])]
    if '--clips' in args:
        at = args.index('--clips') + 1
        return [*args[:at], str(min(CLIPS, int(args[at]))), *args[at + 1:]]
    return args


def command(program: str, args: list[str]) -> list[str]:
    """What really runs: this interpreter, and what is installed beside it."""
    module = {'dora': ['-m', 'dora'], 'torchrun': ['-m', 'torch.distributed.run'], 'python': []}[program]
    return [sys.executable, *module, *shrink(program, args)]


if __name__ == '__main__':
    sys.stdout.flush()
    os.execv(sys.executable, command(sys.argv[1], sys.argv[2:]))
