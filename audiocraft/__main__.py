"""`python -m audiocraft VERB ...`."""

import sys

from .cli.dispatch import main

if __name__ == '__main__':
    sys.exit(main())
