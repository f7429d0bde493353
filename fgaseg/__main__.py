"""`python -m fgaseg` (and `torchrun -m fgaseg`) is the `fgaseg` command."""

import sys

from .cli import main

sys.exit(main())
