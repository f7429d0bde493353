"""The paper's experiments: ablations, the demo, parity with the released code, and the benchmarks."""

from . import ablations, parity
from .ablations import run_ablations
from .benchmarks import benchmark_against, benchmark_model, benchmark_ops, row_milliseconds
from .demo import run_demo
from .parity import run_parity
from .profiling import ViewProfile, profile_view, random_model

__all__ = [
    "ViewProfile",
    "ablations",
    "benchmark_against",
    "benchmark_model",
    "benchmark_ops",
    "parity",
    "profile_view",
    "random_model",
    "row_milliseconds",
    "run_ablations",
    "run_demo",
    "run_parity",
]
