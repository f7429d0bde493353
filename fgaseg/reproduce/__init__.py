"""The paper's experiments: ablations, the demo, parity with the released code, and the benchmarks."""

from . import ablations, parity
from .ablations import run_ablations
from .benchmarks import benchmark_model, benchmark_ops, row_milliseconds
from .demo import run_demo
from .parity import run_parity

__all__ = [
    "ablations",
    "benchmark_model",
    "benchmark_ops",
    "parity",
    "row_milliseconds",
    "run_ablations",
    "run_demo",
    "run_parity",
]
