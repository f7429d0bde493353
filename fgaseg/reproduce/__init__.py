"""The paper's experiments: ablations, parity with the released code, the demo, benchmarks."""

from .ablations import run_ablations
from .benchmarks import benchmark_model, benchmark_ops
from .demo import run_demo
from .parity import run_parity

__all__ = ["benchmark_model", "benchmark_ops", "run_ablations", "run_demo", "run_parity"]
