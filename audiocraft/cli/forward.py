"""`run`, `grid` and `info` are Dora's own commands, told where our package is; they work from any folder."""

import os
import sys

from ._xps import list_xps


def forward(verb: str, arguments: list[str]) -> int:
    """Run `dora VERB ARGUMENTS` in this process and return its exit status."""
    if verb == 'info' and not arguments:
        print(list_xps())
        return 0
    # The workers that Dora starts inherit it.
    os.environ['DORA_PACKAGE'] = 'audiocraft'
    os.environ.pop('DORA_MAIN_MODULE', None)
    before = []
    if verb == 'info':  # Dora's flag stands before the command
        before = ['-v'] if {'-v', '--verbose'} & set(arguments) else []
        arguments = [argument for argument in arguments if argument not in ('-v', '--verbose')]
    sys.argv = ['dora', *before, verb, *arguments]
    # Dora imports torch; the other commands do not pay for it.
    from dora.__main__ import main
    main()
    return 0
