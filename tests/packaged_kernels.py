"""Runs the ops of packages that the kernels library loads: python -I packaged_kernels.py CALLS PACKAGE...

CALLS is what torch.save wrote: by op, the arguments of a call, the results that are expected, and whether Triton's
interpreter is to run it too. fgaseg cannot be imported meanwhile, unless a PACKAGE is "fgaseg". Prints the namespaces
of the packages in torch.ops, one a line.
"""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

import torch


def rebuilt(argument, package):
    """Undoes `plain` of test_hub_package.py."""
    if isinstance(argument, dict):
        return getattr(package, argument["type"])(*(rebuilt(field, package) for field in argument["fields"]))
    return argument


def flat(result) -> list:
    if isinstance(result, tuple):
        return [leaf for part in result for leaf in flat(part)]
    return [result] if isinstance(result, torch.Tensor) else [result.rows, result.counts]


def check(package, calls: dict) -> None:
    """Every op by itself on every backend that can run the call, then all of them in one graph."""
    arguments = {op: [rebuilt(x, package) for x in call["arguments"]] for op, call in calls.items()}

    def results(backend: str, ops: Iterable[str] = calls) -> list:
        return [flat(getattr(package, op)(*arguments[op], backend=backend)) for op in ops]

    def expect(found: list, ops: Iterable[str] = calls) -> None:
        for op, tensors in zip(ops, found, strict=True):
            torch.testing.assert_close(tensors, calls[op]["results"])

    expect(results("reference"))
    expect(results("auto"))
    interpreted = [op for op, call in calls.items() if call["triton"]]  # "auto" never takes an emulated backend
    expect(results("triton", interpreted), interpreted)
    expect(torch.compile(results, fullgraph=True, backend="aot_eager")("auto"))


def main() -> None:
    from kernels import get_local_kernel  # not the folder of that name in a checkout, thanks to -I

    file, *folders = sys.argv[1:]
    calls = torch.load(file)
    if any(call["triton"] for call in calls.values()):
        sys.path.append(str(Path(__file__).parent))
        from interpreter import index_by_one_element

        index_by_one_element()
    if "fgaseg" in folders:
        sys.path.insert(0, str(Path(__file__).parents[1]))
    else:
        sys.modules["fgaseg"] = None  # any import of it is an ImportError
    packages = [
        importlib.import_module("fgaseg.kernels") if folder == "fgaseg" else get_local_kernel(Path(folder))
        for folder in folders
    ]
    for package in packages:
        check(package, calls)
        ops = importlib.import_module(f"{package.__name__}._ops").ops
        missing = importlib.import_module(f"{package.__name__}._library").unavailable["cpp"]
        print(ops.name, f"C++: {missing or 'loaded'}")


if __name__ == "__main__":
    main()
