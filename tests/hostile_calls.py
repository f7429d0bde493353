"""Calls an op with arguments that nobody should pass, in a process of its own: hostile_calls.py BACKEND [I/N [M]]

The calls are those of test_contracts.OP_CALLS, of N parts the I-th, each with one argument replaced in turn, and with
two in 40 draws, or 40 N with FGASEG_FUZZ=N; of these every M-th, each call from another one on. Prints a JSON line for
each call that ended the process, ran too long, used memory outside of a tensor, disagreed with the op's shape rule, or
gave other values than the reference, and at last the number of calls.
"""

import json
import math
import os
import random as python_random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")
sys.path.insert(0, str(Path(__file__).parent / "kernels"))

import accuracy
import torch
from forked import faults
from shim import guarded
from test_contracts import CPU_ONLY, CUDA_ONLY, NO_CUDA_KERNEL, OP_CALLS
from torch import Tensor

from fgaseg.kernels._dispatch import OPS
from fgaseg.kernels._library import overload

MEMORY = 4 * 2**30
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
          torch.bool, torch.complex64)  # fmt: skip
INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 5, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**62, 2**63 - 1)
FLOATS = (float("nan"), float("inf"), -1.0, 0.0)
VALUES = (-(2**63), -1, 1, 3, 100, 2**31, 2**60, 2**63 - 1)  # of an index
Case = tuple[str, list[Any]]


def of_tensor(x: Tensor) -> Iterator[tuple[str, Any]]:
    yield "None", None
    for d, size in enumerate(x.shape):
        yield f"empty in dimension {d}", x.narrow(d, 0, 0).clone()
        yield f"longer in dimension {d}", torch.cat([x, x.narrow(d, 0, 1)], d)
        yield f"twice as long in dimension {d}", torch.cat([x, x], d)
        yield f"{2**40} long in dimension {d}", x.narrow(d, 0, 1).expand(*x.shape[:d], 2**40, *x.shape[d + 1 :])
        if size > 1:
            yield f"shorter in dimension {d}", x.narrow(d, 0, size - 1).clone()
            yield f"1 in dimension {d}", x.narrow(d, 0, 1).clone()
    yield "a number", x.flatten()[0].clone()
    yield "flat", x.flatten()
    yield "one dimension more", x[None]
    yield "one dimension less", x[0].clone()
    yield "all sizes 0", x.new_empty([0] * x.dim())
    for dtype in DTYPES:
        if dtype != x.dtype:
            yield str(dtype), x.to(dtype)
    yield "transposed in memory", x.transpose(0, -1).contiguous().transpose(0, -1)
    yield "every second", x.repeat_interleave(2, -1)[..., ::2]
    yield "of stride 0", x.flatten()[0].expand(x.shape)
    yield "on meta", x.to("meta")
    yield "sparse", x.to_sparse()
    freed = x.clone()
    freed.untyped_storage().resize_(0)
    yield "without memory", freed
    if x.is_floating_point():
        yield "NaN", torch.full_like(x, torch.nan)
        yield "infinite", torch.full_like(x, -torch.inf)
    elif x.dim() == 1:
        yield "reversed", x.flip(0)
        for i in {0, x.numel() // 2, x.numel() - 1}:
            for value in VALUES:
                yield f"{value} at {i}", x.index_fill(0, torch.tensor(i), value)


def hostile(x: Any) -> Iterator[tuple[str, Any]]:
    """What to try in the place of an argument."""
    if isinstance(x, Tensor):
        yield from of_tensor(x.detach())
    elif isinstance(x, bool):
        yield str(not x), not x
    elif isinstance(x, int):
        yield from ((str(value), value) for value in INTEGERS if value != x)
    elif isinstance(x, float):
        yield from ((str(value), value) for value in FLOATS)
    elif isinstance(x, str):
        yield from (("''", ""), ("an unknown word", "bogus"), ("a long word", "x" * 10**6))
    else:
        yield "a tensor", torch.ones(1)


def single(args: list[Any]) -> list[tuple[str, int, Any]]:
    return [(f"argument {i} {label}", i, value) for i, x in enumerate(args) for label, value in hostile(x)]


def cases_of(args: list[Any], pairs: int, seed: int) -> Iterator[Case]:
    """The arguments with one replaced in turn, then with two that are drawn."""
    choose, one = python_random.Random(seed), single(args)
    for label, i, value in one:
        yield label, [*args[:i], value, *args[i + 1 :]]
    for _ in range(pairs):
        (first, i, x), (second, j, y) = choose.sample(one, 2)
        yield f"{first}, {second}", [y if k == j else x if k == i else arg for k, arg in enumerate(args)]


def shapes(results: Any) -> list[tuple[list[int], str]]:
    results = results if isinstance(results, (tuple, list)) else [results]
    return [(list(x.shape), str(x.dtype)) for x in results]


def on_meta(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.is_sparse:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def result_of(function: Any, args: list[Any]) -> tuple[str, Any]:
    """("", the results) or (the error, None)."""
    try:
        return "", function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}", None


def judge(op: str, backend: str, args: list[Any]) -> str:
    """What is wrong with the outcome of a call, or ""."""
    error, got = result_of(overload(op, backend), args)
    if error:
        return ""
    rule, expected = result_of(overload(op, backend), [on_meta(x) for x in args])
    if op != "topk_classes":  # the number of rows is in the data
        if rule:
            return f"returned {shapes(got)}, but the shape rule raised {rule}"
        if shapes(got) != shapes(expected):
            return f"returned {shapes(got)}, but the shape rule says {shapes(expected)}"
    if op not in OPS or not all(map(is_finite, args)) or (backend != "cpp" and not is_defined(op, args)):
        return ""
    if op == "group_norm_relu":
        got = got[:1]  # the other result is what its gradient needs
    return disagreement(got, *result_of(reference_of(op, backend), args))


def is_defined(op: str, args: list[Any]) -> bool:
    """Whether the op's documentation says what it gives for these indices; on a GPU they are not read back."""
    if op == "scatter_classes":
        rows = args[1].tolist()
        return rows == sorted(set(rows) & set(range(args[2] * args[3])))
    if op in ("class_summary", "class_lookup"):
        offsets = args[-2 if op == "class_summary" else -3].tolist()
        return offsets == sorted(offsets) and offsets[0] == 0 and offsets[-1] == len(args[0])
    return True


def reference_of(op: str, backend: str) -> Any:
    """Triton's gather gives zeros for rows that are out of range, where C++ and CUDA raise an error."""
    run = OPS[op][-1].run

    def with_zeros(x: Tensor, rows: Tensor) -> Tensor:
        inside = (rows >= 0) & (rows < x.shape[0] * x.shape[1])
        found = x.new_zeros(len(rows), *x.shape[2:])
        found[inside] = run(x, rows[inside])
        return found

    return with_zeros if op == "gather_classes" and backend == "triton" else run


def judge_memory(op: str, backend: str, args: list[Any]) -> str:
    """As ``judge``, and what the call used outside of its tensors."""
    try:
        with guarded():
            return judge(op, backend, args)
    except AssertionError as error:
        return str(error)


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def is_finite(x: Any) -> bool:
    """PyTorch's own attention hides a NaN, and what is infinite has no order of operations; of few elements."""
    if is_float(x) and not x.is_meta:
        return x.numel() < 10**7 and bool(x.isfinite().all())
    return not isinstance(x, float) or math.isfinite(x)


def disagreement(got: Any, error: str, expected: Any) -> str:
    if error and any(x.numel() for x in (got if isinstance(got, tuple) else (got,))):
        return f"returned {shapes(got)}, but the reference raised {error}"
    if error:
        return ""
    got, expected = (x if isinstance(x, tuple) else (x,) for x in (got, expected))
    for x, y in zip(got, expected, strict=True):
        if x.shape != y.shape:
            return f"returned {list(x.shape)}, but the reference {list(y.shape)}"
        if x.is_meta or not x.is_floating_point():  # of equal scores rounding decides the label
            continue
        tolerance = 0.05 if x.dtype in (torch.float16, torch.bfloat16) else 1e-3
        if (
            not torch.allclose(x.double(), y.double(), rtol=tolerance, atol=tolerance, equal_nan=True)
            and y.isfinite().all()
        ):
            return f"differs from the reference by {(x.double() - y.double()).abs().max().item():g}"
    return ""


def beyond(case: Case) -> bool:
    """What only its interpreter does without end, and what ends PyTorch's own operations between Triton's."""
    return str(2**40) in case[0] or "without memory" in case[0]


def names_of(backend: str) -> list[str]:
    """One entry of OP_CALLS for every op of which the backend has a kernel."""
    without = {"cpp": CUDA_ONLY, "triton": CPU_ONLY | CUDA_ONLY, "cuda": CPU_ONLY | NO_CUDA_KERNEL}[backend]
    names = {name.split(" ")[0].rstrip(","): name for name in reversed(OP_CALLS) if name not in without}
    return sorted(names.values())


def main() -> None:
    backend, place, every = (sys.argv[1:] + ["0/1", "1"][len(sys.argv) - 2 :])[:3]
    part, parts = map(int, place.split("/"))
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    pairs, count = 40 * int(os.environ.get("FGASEG_FUZZ", "1")), 0
    with accuracy.device_of(backend):
        for at, name in enumerate(names_of(backend)[part::parts]):
            calls, arguments = OP_CALLS[name]
            for number, (op, args) in enumerate(calls(*arguments)):
                plain = [x.detach() if isinstance(x, Tensor) else x for x in args]
                if wrong := judge_memory(op, backend, plain):
                    sys.exit(f"{op}: the call itself {wrong}")
                cases = [case for case in cases_of(plain, pairs, number) if backend != "triton" or not beyond(case)]
                cases = cases[(at + number) % int(every) :: int(every)]
                count += len(cases)
                for i, wrong in faults(len(cases), lambda i: judge_memory(op, backend, cases[i][1])):  # noqa: B023
                    found = {"op": f"{op}_{backend}", "call": number, "label": cases[i][0], "wrong": wrong}
                    print(json.dumps(found), flush=True)
    print(count)


if __name__ == "__main__":
    main()
