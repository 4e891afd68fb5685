"""`python -m audiocraft score`, from a checkout that need not be installed."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from audiocraft.cli.dispatch import main  # noqa: E402

sys.exit(main(['score', *sys.argv[1:]]))
