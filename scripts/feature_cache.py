"""`python -m audiocraft feature_cache`, from a checkout that need not be installed."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from audiocraft.cli.dispatch import main  # noqa: E402

sys.exit(main(['feature_cache', *sys.argv[1:]]))
