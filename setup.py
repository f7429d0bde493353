"""Builds what this machine can build, and prints what it builds and what it skips and why.

    FGASEG_CPU=auto|0|1    the C++ CPU kernels and the pybind11 host helpers
    FGASEG_CUDA=auto|0|1   the CUDA kernels
    FGASEG_CUDA_ARCHS      the default is 80;90; the last one is also built as PTX, which newer GPUs translate
    CXX, MAX_JOBS, CUDA_HOME as usual

auto builds a part if that is possible, 0 skips it, 1 stops with the reason if it cannot be built. The plan is recorded
in kernels/_build_info.json, which `fgaseg info` shows.
"""

import contextlib
import glob
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
COMPILE = ["-O3", "-g0", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
STABLE = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # torch >= 2.11


def wanted(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"fgaseg: {name}={value} is not one of auto, 0, 1")
    return value


def why_no_compiler() -> str:
    """Why a small shared library cannot be compiled, or ""."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    if not shutil.which(command[0]):
        return f"no C++ compiler ('{command[0]}' not found; set CXX)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <vector>\nint probe() { return int(std::vector<int>(1).size()); }\n")
        run = [*command, "-std=c++20", "-shared", "-fPIC", *COMPILE, str(source), "-o", str(Path(folder, "probe.so"))]
        done = subprocess.run(run, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    message = done.stderr.strip() or f"'{shlex.join(command)}' ended with status {done.returncode} and no message"
    return f"the C++ compiler does not work: {message.splitlines()[0]}"


def why_no_pybind11() -> str:
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"no {header} (install the Python development headers)"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    return ""


def find_nvcc() -> tuple[str, tuple[int, int]] | None:
    """CUDA home and version. It must have bin/nvcc and include/cuda_runtime.h, as `which nvcc` may be a wrapper."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if not any(homes):
        if nvcc := shutil.which("nvcc"):
            homes.append(os.path.dirname(os.path.dirname(os.path.realpath(nvcc))))
        homes += ["/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"), reverse=True)]
        homes += glob.glob(os.path.join(sysconfig.get_path("purelib"), "nvidia", "cu*"))
    for home in filter(None, homes):
        nvcc = os.path.join(home, "bin", "nvcc")
        if os.path.exists(nvcc) and os.path.exists(os.path.join(home, "include", "cuda_runtime.h")):
            out = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
            if found := re.search(r"release (\d+)\.(\d+)", out):
                return home, (int(found[1]), int(found[2]))
    return None


def why_no_cuda(torch) -> str:
    """All reasons why the CUDA kernels cannot be built, or ""."""
    reasons = []
    nvcc = find_nvcc()
    if nvcc is None:
        reasons.append("no nvcc with its headers was found (set CUDA_HOME)")
    if torch.version.cuda is None:
        reasons.append(f"torch {torch.__version__} is a build without CUDA")
    elif nvcc and nvcc[1][0] != int(torch.version.cuda.split(".")[0]):
        reasons.append(f"nvcc {nvcc[1][0]}.{nvcc[1][1]} does not match torch's CUDA {torch.version.cuda}")
    return "; ".join(reasons)


def cuda_archs() -> list[str]:
    return os.environ.get("FGASEG_CUDA_ARCHS", "80;90").split(";")


def compile_kernels(folder: Path) -> list[str]:
    """Compiles the CUDA kernels to object files, one process each, which compiles several kernels at a time."""
    home, _ = find_nvcc() or ("", None)
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in cuda_archs()]
    codes.append(f"-gencode=arch=compute_{cuda_archs()[-1]},code=compute_{cuda_archs()[-1]}")
    folder.mkdir(parents=True, exist_ok=True)
    running = []
    for source in sorted((HERE / "csrc").glob("*/kernel.cu")):
        target = str(folder / f"{source.parent.name}.o")
        command = [f"{home}/bin/nvcc", "-c", "-O3", "-std=c++17", "-Xcompiler=-fPIC", f"-I{HERE / 'csrc'}", *codes]
        command.append("--split-compile=0")  # as many threads as cores
        running.append((target, subprocess.Popen([*command, str(source), "-o", target])))
    if any(process.wait() for _, process in running):
        raise RuntimeError("nvcc failed, see above")
    return [target for target, _ in running]


def cuda_extension(torch):
    """The host side of the CUDA kernels; the kernels themselves are compiled by ``compile_kernels``."""
    from torch.utils.cpp_extension import CppExtension

    home, (major, _) = find_nvcc() or ("", (0, 0))
    runtime = glob.glob(os.path.join(sysconfig.get_path("purelib"), "nvidia", "cu*", "lib"))
    folders = [f"{home}/lib64", f"{home}/lib", *runtime, str(Path(torch.__file__).parent / "lib")]
    return CppExtension(
        "fgaseg.kernels._C_cuda",
        sorted(glob.glob("csrc/*/cuda.cpp", root_dir=HERE)),
        include_dirs=[str(HERE / "csrc"), f"{home}/include"],
        extra_compile_args={"cxx": [*COMPILE, *STABLE, "-DUSE_CUDA"]},
        # pip's CUDA runtime has no libcudart.so, only the versioned one that torch loads
        extra_link_args=[f"-l:libcudart.so.{major}"],
        library_dirs=[folder for folder in folders if os.path.isdir(folder)],
        libraries=["torch_cuda"],
        py_limited_api=True,
    )


def decide(switch: str, why_not: str, what: str) -> str:
    """'built: what' or 'skipped: reason'; stops if the user demanded a part that cannot be built."""
    value = wanted(switch)
    if value == "1" and why_not:
        raise SystemExit(f"fgaseg: {switch}=1 cannot be done: {why_not}")
    if value == "0":
        return f"skipped: {switch}=0"
    return f"skipped: {why_not}" if why_not else f"built: {what}"


def plan(torch) -> dict[str, str]:
    """For each part whether it is built ("built: how") or not ("skipped: why"), and the versions it is built with."""
    no_compiler = why_no_compiler()
    compiler = os.environ.get("CXX", "c++")
    host = decide("FGASEG_CPU", no_compiler, compiler)
    if host.startswith("built") and (no_pybind11 := why_no_pybind11()):
        host = f"skipped: {no_pybind11}"  # a convenience: numpy can do the same, so FGASEG_CPU=1 does not stop here
    archs = ", ".join(f"sm_{arch}" for arch in cuda_archs())
    _, (major, minor) = find_nvcc() or ("", (0, 0))
    cuda = f"nvcc {major}.{minor}, {archs} and PTX"
    return {
        "cpp": decide("FGASEG_CPU", no_compiler, f"{compiler}, stable ABI for torch >= 2.11"),
        "host": host,
        "cuda": decide("FGASEG_CUDA", no_compiler or why_no_cuda(torch), cuda),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def extensions(parts: dict[str, str], torch) -> list[Extension]:
    found = []
    if parts["cuda"].startswith("built"):
        found.append(cuda_extension(torch))
    if parts["cpp"].startswith("built"):
        from torch.utils.cpp_extension import CppExtension

        sources = sorted(glob.glob("csrc/*/cpu.cpp", root_dir=HERE))
        found.append(
            CppExtension(
                "fgaseg.kernels._C",
                sources,
                include_dirs=[str(HERE / "csrc")],
                extra_compile_args={"cxx": [*COMPILE, *STABLE]},
                py_limited_api=True,
            )
        )
    if parts["host"].startswith("built"):
        import pybind11

        found.append(
            Extension(
                "fgaseg.kernels._host",
                ["csrc/labels/host.cpp"],
                include_dirs=[pybind11.get_include()],
                extra_compile_args={"cxx": COMPILE},
                language="c++",
            )
        )
    return found


def record(parts: dict[str, str]) -> None:
    """Writes the plan next to the kernels and removes libraries of an earlier build that the plan skips."""
    target = HERE / "kernels" / "_build_info.json"
    partial = target.with_suffix(".tmp")
    partial.write_text(json.dumps(parts, indent=1) + "\n")
    partial.replace(target)
    for part, name in (("cpp", "_C"), ("host", "_host"), ("cuda", "_C_cuda")):
        if parts[part].startswith("skipped"):
            for stale in (HERE / "kernels").glob(f"{name}.*so"):
                stale.unlink()


def link_packages() -> None:
    """Links fgaseg/kernels and fgaseg/configs in a checkout, for tools that look for packages in folders (mypy, IDEs).

    Python finds them without the links, through the editable installation.
    """
    for name in ("kernels", "configs"):
        with contextlib.suppress(OSError):  # Windows allows links to administrators only
            (HERE / "fgaseg" / name).symlink_to(Path("..", name), target_is_directory=True)


def python_packages() -> list[str]:
    """The packages below fgaseg/, and those at the top of the repository that are installed as parts of fgaseg."""
    kernels = ["fgaseg.kernels", *(f"fgaseg.kernels.{name}" for name in find_packages(str(HERE / "kernels")))]
    inside = find_packages(str(HERE / "fgaseg"), exclude=["kernels", "kernels.*", "configs"])  # these may be links
    return ["fgaseg", *(f"fgaseg.{name}" for name in inside), "fgaseg.configs", *kernels]


def main() -> None:
    try:
        import torch
    except ImportError:
        raise SystemExit(
            "fgaseg is built against the torch that it runs with. Install torch first: pip install 'torch>=2.11'"
        ) from None
    from torch.utils.cpp_extension import BuildExtension

    parts = plan(torch)
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

    class BuildPy(build_py):
        def run(self):
            record(parts)
            if self.editable_mode:
                link_packages()
            super().run()

    class BuildExt(BuildExtension):
        def finalize_options(self):
            super().finalize_options()
            self.build_temp = str(HERE / "build" / "temp")  # also for editable installs, so that they are incremental

        def run(self):
            record(parts)
            if self.inplace:
                link_packages()
            super().run()

        def build_extensions(self):
            try:
                for extension in self.extensions:
                    if extension.name.endswith("_C_cuda"):
                        extension.extra_objects = compile_kernels(Path(self.build_temp, "cuda"))
                super().build_extensions()
            except Exception as error:
                record({name: text.replace("built:", "failed to build:") for name, text in parts.items()})
                raise SystemExit(
                    f"fgaseg: compiling failed: {error}\nFGASEG_CUDA=0 installs without the CUDA kernels, FGASEG_CPU=0 "
                    "without the C++ ones; the PyTorch reference then runs instead"
                ) from error

    if {"editable_wheel", "bdist_wheel", "build_ext", "build"} & set(sys.argv):
        lines = [f"torch   {torch.__version__} from {os.path.dirname(torch.__file__)}"]
        lines += [f"{name:<8}{parts[name]}" for name in ("cpp", "host", "cuda")]
        print("fgaseg build plan\n  " + "\n  ".join(lines), file=sys.stderr, flush=True)
    setup(
        packages=python_packages(),
        ext_modules=extensions(parts, torch),
        cmdclass={"build_ext": BuildExt, "build_py": BuildPy},
    )


if __name__ == "__main__":
    main()
