"""`dora run -d`: several processes of one machine that train one XP."""

import os
import sys

from dora.log import disable_logging, simple_log
from dora.main import DecoratedMain


def start_ddp_workers(main: DecoratedMain, argv: list[str], num_workers: int | None = None) -> None:
    """Placeholder until the processes are started: train in this one."""
    simple_log('Executor:', 'There is no GPU: training with one process on the CPU (--ddp_workers N asks for N).')
    os.environ.update(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1')
    sys.argv[1:] = argv
    disable_logging()
    main()
