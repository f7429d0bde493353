"""Runs tests with C++ kernels that AddressSanitizer watches: python tests/sanitize.py tests/kernels -k cpp

An access outside of a tensor, or of any other memory, ends the run with the line in csrc. The kernels are compiled once
into build/asan, which holds links to everything else of the package; the arguments are pytest's. GCC on Linux.
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "asan"
OPTIONS = ["-O1", "-g1", "-fsanitize=address", "-fno-omit-frame-pointer", "-fopenmp-simd", "-std=c++20", "-fPIC",
           "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020b000000000000"]  # fmt: skip


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "c++"))


def compiled(source: Path) -> str:
    target = FOLDER / f"{source.parent.name}.o"
    newest = max(path.stat().st_mtime for path in [source, *ROOT.glob("csrc/*/*.h")])
    if not target.exists() or target.stat().st_mtime < newest:
        folders = [f"-I{path}" for path in (ROOT / "csrc", *include_paths())]
        subprocess.run([*compiler(), *OPTIONS, *folders, "-c", str(source), "-o", str(target)], check=True)
    return str(target)


def build() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = list(pool.map(compiled, sorted(ROOT.glob("csrc/*/cpu.cpp"))))
    kernels = FOLDER / "fgaseg" / "kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    for folder, parts in ((kernels.parent, ROOT / "fgaseg"), (kernels, ROOT / "kernels")):
        for part in parts.iterdir():
            link = folder / part.name
            if part.name not in ("kernels", "__pycache__") and part.suffix != ".so" and not link.is_symlink():
                link.symlink_to(part)
    library = [str(kernels / "_C.abi3.so"), *(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    subprocess.run([*compiler(), "-shared", "-fsanitize=address", *objects, "-o", *library], check=True)


def main() -> int:
    build()
    # Python is not of C++: without its library the exceptions that ASan intercepts would be missing
    names = [f"-print-file-name={name}" for name in ("libasan.so", "libstdc++.so")]
    found = [subprocess.run([*compiler(), name], capture_output=True, text=True, check=True).stdout for name in names]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(map(str.strip, found)),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",  # CPython leaks by design
        "PYTHONPATH": str(FOLDER),
    }
    return subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
