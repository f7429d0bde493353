"""Where the repository is, and the data beside it that some tests need (they skip without it)."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"
