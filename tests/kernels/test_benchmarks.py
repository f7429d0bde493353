"""The benchmarks can run: measuring is left to `fgaseg bench` and benchmarks/gpu.sh."""

import subprocess
import sys

from paths import ROOT


def test_every_benchmark_is_collected():
    command = [sys.executable, "-m", "pytest", "benchmarks", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    ops = ("class_attention", "cosine_cost_volume", "kernel_softmax", "lcs_conv", "topk_classes", "upsample_argmax")
    assert all(f"::test_{op}[" in done.stdout for op in ops)
