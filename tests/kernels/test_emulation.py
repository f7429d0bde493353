"""What stands in for a GPU is strict: faults that it must find, and results that must not depend on it."""

import ctypes
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import shim
import torch
from accuracy import device_of, emulated, outputs_and_gradients, random
from paths import ROOT

from fgaseg import kernels

needs_emulation = pytest.mark.skipif("cuda" not in emulated, reason="the CUDA kernels are not emulated here")
needs_interpreter = pytest.mark.skipif("triton" not in emulated, reason="Triton is not interpreted here")


# Every barrier of every CUDA kernel is passed by one of these calls, with small tensors.


def half(*sizes: int, seed: int = 0) -> torch.Tensor:
    return random(*sizes, seed=seed).half().requires_grad_()


def results(function: Callable, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return outputs_and_gradients(function, inputs, inputs[0].dtype)


def on_one_processor(call: Callable) -> list[torch.Tensor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGASEG_SHIM_PROCESSORS", "1")
        return call()


def lcs_conv_calls() -> Iterator[Callable]:
    for channels, classes, h, w, k in [(64, 3, 5, 4, 3), (18, 34, 19, 18, 3), (17, 3, 13, 15, 7)]:
        inputs = half(1, channels, h, w), half(1, classes, channels * k * k, seed=1), half(1, classes, seed=2)
        yield partial(results, lambda *x, k=k: kernels.lcs_conv(*x, k, backend="cuda"), *inputs)
        singles = [x.detach().float().requires_grad_() for x in inputs]
        yield partial(results, lambda *x, k=k: kernels.lcs_conv(*x, k, backend="cuda"), *singles)
    inputs = half(2, 16, 6, 8), half(2, 3, 16 * 9, seed=1), half(2, 3, seed=2)  # two units in one block
    yield partial(on_one_processor, partial(results, lambda *x: kernels.lcs_conv(*x, 3, backend="cuda"), *inputs))


def kernel_softmax_calls() -> Iterator[Callable]:
    for norm, channels, k in [("taps", 37, 3), ("taps", 5, 11), ("channels", 64, 3), ("channels", 5, 7)]:
        call = partial(kernels.kernel_softmax, kernel_size=k, norm=norm, backend="cuda")
        yield partial(results, call, half(1, 2, channels * k * k))


def cosine_cost_volume_calls() -> Iterator[Callable]:
    pixels, texts = half(2, 37, 7, 10), half(2, 5, 2, 37, seed=1)
    yield partial(results, partial(kernels.cosine_cost_volume, backend="cuda"), pixels, texts)


def topk_classes_calls() -> Iterator[Callable]:
    scores, maps = random(2, 70, 5, 7), random(2, 70, 3)
    for k, union in [(1, "image"), (9, "image"), (40, "batch")]:
        yield lambda k=k, union=union: [kernels.topk_classes(scores, k, union, backend="cuda").rows]
    selection = kernels.topk_classes(scores, 2)

    def there_and_back(x: torch.Tensor) -> torch.Tensor:
        packed = kernels.gather_classes(x, selection, backend="cuda")
        return kernels.scatter_classes(packed, selection, 0.5, backend="cuda")

    yield partial(results, there_and_back, maps.requires_grad_())


CALLS = {
    f.__name__.removesuffix("_calls"): f
    for f in (lcs_conv_calls, kernel_softmax_calls, cosine_cost_volume_calls, topk_classes_calls)
}


@needs_emulation
@pytest.mark.parametrize("op", CALLS)
def test_results_do_not_depend_on_the_order_of_threads(op):
    """Bit for bit: blocks, warps and lanes ascending, and in other orders by seeds."""
    with device_of("cuda"):
        for call in CALLS[op]():
            expected = call()
            for seed in (1, 2, 3):
                with shim.order(seed):
                    assert all(map(torch.equal, call(), expected)), f"seed {seed}"


@needs_emulation
@pytest.mark.parametrize("op", CALLS)
def test_every_barrier_of_the_kernels_is_missed_if_it_is_not_there(op):
    """The search for races is sharp enough for each of them; and none of them is superfluous."""
    with device_of("cuda"):
        calls = list(CALLS[op]())
        needed = {}  # by barrier, the calls that pass it
        for call in calls:
            shim.barriers()
            call()
            for barrier in shim.barriers():
                needed.setdefault(barrier, []).append(call)
        assert needed
        for barrier in sorted(needed):
            with shim.ignored(barrier):
                assert any(map(races, needed[barrier])), f"without the barrier at {barrier} no race is found"


def races(call: Callable) -> bool:
    try:
        call()
    except RuntimeError as error:
        assert "with no barrier in between" in str(error)
        return True
    return False


# Faults of single kernels.

RACE = r"(reads|writes) 4 bytes at byte \d+ of {0} that {1} (read|wrote) \({2}, faults.cu:\d+\) with no barrier in"
FAULTS = {
    "reverse": RACE.format("values", r"thread \(\d+,0,0\)", "reverse"),
    "reverse_twice": RACE.format("dynamic shared memory", "thread .*", "reverse_twice"),
    "reverse_warps": RACE.format("values", "thread .*", "reverse_warps"),
    "copy_for_all": r"reads 4 bytes at byte \d+ of values while an asynchronous copy to it is under way \(copy_for_all",
    "count": RACE.format("sum", "thread .*", "count"),
    "halves": RACE.format("a tensor of 256", "another block", "halves"),
    "shift": r"reads 4 bytes 0 bytes behind the end of a tensor of 256 bytes \(shift, faults.cu:\d+, block",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    """The kernels of faults.cu; errors are the text of the launch's code."""
    library = shim.build_kernels(ROOT / "tests" / "kernels" / "faults.cu", tmp_path_factory.mktemp("faults"))

    def run(kernel: str, fault: bool) -> tuple[torch.Tensor, str]:
        x, out = random(64).float(), torch.empty(64)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, out)]
        code = getattr(library, f"fgaseg_test_{kernel}")(fault, *pointers)
        return out, library.fgaseg_error_text(code).decode() if code else ""

    return run


@needs_emulation
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kernel", FAULTS)
def test_finds_one_fault_and_nothing_else(kernel, seed, faults):
    with device_of("cuda"), shim.order(seed):
        good, message = faults(kernel, False)
        assert message == "" and good.isfinite().all()
        _, message = faults(kernel, True)
    assert re.search(FAULTS[kernel], message), message


REMOVED = [
    "if (lane == WARP - 1) sums[warp] = sum;\n  __syncthreads();",
    "__syncthreads();  // an earlier call may still be reading the sums",
]


@needs_emulation
@pytest.mark.slow
@pytest.mark.parametrize("line", REMOVED)
def test_finds_a_barrier_that_was_removed_from_a_real_kernel(line, tmp_path):
    """A copy of topk_classes/kernel.cu whose prefix sum lacks one of its two barriers."""
    source = (ROOT / "csrc" / "topk_classes" / "kernel.cu").read_text()
    assert source.count(line) == 1
    copy = tmp_path / "kernel.cu"
    copy.write_text(source.replace(line, line.replace("__syncthreads();", "")))
    library = shim.build_kernels(copy, tmp_path)
    with device_of("cuda"):
        kept, rows = torch.full((2, 400), 5, dtype=torch.int32), torch.empty(25600, dtype=torch.int64)
        counts, total = torch.empty(2, dtype=torch.int64), torch.empty(1, dtype=torch.int64)
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in (kept, rows, counts, total)]
        sizes = map(ctypes.c_int64, (2, 12800, 0))
        code = library.fgaseg_topk_classes_compact(*pointers, *sizes, None)
        assert re.search("of sums .* with no barrier", library.fgaseg_error_text(code).decode())


# Memory around tensors, and Triton's interpreter.


def element(x: torch.Tensor, i: int) -> ctypes.c_float:
    return ctypes.c_float.from_address(x.data_ptr() + 4 * i)


@needs_emulation
@pytest.mark.parametrize(
    "size, i, what",
    [
        (1008, 1008, "a write 0 bytes behind the end of"),
        (1008, -17, "a write 68 bytes before"),
        # in the tensor's own pages, found when it is freed
        (1008, -16, "something was written 64 bytes before"),
        (1000, 1000, "something was written 0 bytes behind the end of"),
    ],
)
def test_memory_around_tensors_is_guarded(size, i, what):
    with pytest.raises(AssertionError, match=f"{what} a (freed )?tensor of {4 * size} bytes"), shim.guarded():
        x = torch.zeros(size)
        assert x.data_ptr() % 64 == 0
        element(x, i).value = 1.0
        del x


@needs_emulation
def test_a_freed_tensor_is_guarded():
    with pytest.raises(AssertionError, match="a read 8 bytes into a freed tensor of 4000 bytes"), shim.guarded():
        x = torch.zeros(1000)
        freed = element(x, 2)
        del x
        assert freed.value != 0  # NaN


@needs_emulation
@needs_interpreter
def test_a_triton_kernel_that_reads_too_far_is_found():
    from small_triton import shift

    with pytest.raises(AssertionError, match="a read 0 bytes behind the end of a (freed )?tensor of 64 bytes"):
        with shim.guarded():
            y = torch.empty(16)
            shift[(1,)](torch.ones(16), y, 16)


@needs_interpreter
def test_tf32_operands_are_truncated():
    """As tensor cores do: the last 13 bits of a float32 count for nothing."""
    from small_triton import multiply

    a, b = (1 + random(16, 16, seed=seed).abs().float() for seed in (1, 2))
    kept_a, kept_b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    for precision, expected in [("tf32", kept_a @ kept_b), ("ieee", a @ b)]:
        y = torch.empty(16, 16)
        multiply[(1,)](a, b, y, 16, precision)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=0)
    assert (kept_a @ kept_b - a @ b).abs().max() > 1e-3
