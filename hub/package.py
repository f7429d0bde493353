"""Writes the ops of fgaseg.kernels as a package for Hugging Face's `kernels` library.

    python hub/package.py FOLDER

FOLDER, which must be new or empty, is laid out as a repository of the Hub:

    README.md, LICENSE
    build.toml, CARD.md, torch-ext/fgaseg_ops/   the source, for kernel-builder
    build/<variant>/                             what kernels.get_local_kernel(Path(FOLDER)) loads

Variants are written for what this checkout has: torch-cpu and torch-cuda hold Triton kernels and references and need
nothing built; where C++ and CUDA kernels were built (pip install -e .), torch-stable-abi<torch>-<cpu or CUDA version>-
<processor>-<system> hold them too. Only torch, triton and Python's library are imported by the package.
"""

import ast
import base64
import hashlib
import json
import platform
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {"aot.py", "calls.py", "_ptx.py", "_sass.py"}  # they judge the kernels without a GPU; no op needs them
NUMPY = {"labels"}  # ops on NumPy arrays, which a package may not import
TITLE = '"""The ops of FGAseg, a model for open-vocabulary segmentation; ``explain`` says which backends run a call."""'


def interface() -> str:
    """``__init__.py``: that of fgaseg.kernels without the ops on NumPy arrays."""
    imports, exported = [], []
    for node in ast.parse((ROOT / "kernels" / "__init__.py").read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module not in NUMPY:
            imports.append(ast.unparse(node))
            exported += [alias.name for alias in node.names]
    names = "\n".join(f'    "{name}",' for name in sorted(exported))
    return "\n".join([TITLE, "", *imports, "", f"__all__ = [\n{names}\n]", ""])


def sources() -> dict[str, str]:
    """The Python files of the package by their path in it, all but ``_ops.py``."""
    files = {"__init__.py": interface()}
    for path in sorted((ROOT / "kernels").rglob("*.py")):
        name = path.relative_to(ROOT / "kernels")
        if name.name not in TOOLS and name.parts[0] not in (*NUMPY, "__init__.py", "_ops.py"):
            files[name.as_posix()] = path.read_text()
    return files


def ops_module(namespace: str) -> str:
    """``_ops.py`` with this namespace."""
    before, ours, after = (ROOT / "kernels" / "_ops.py").read_text().partition('NAMESPACE = "fgaseg"')
    if not ours:
        raise SystemExit("hub/package.py: kernels/_ops.py does not name the namespace")
    return f'{before}NAMESPACE = "{namespace}"{after}'


def variants() -> dict[str, tuple[dict, list[Path]]]:
    """By name of the build variant, the backend of its metadata and its compiled libraries."""
    found: dict[str, tuple[dict, list[Path]]] = {f"torch-{name}": ({"type": name}, []) for name in ("cpu", "cuda")}
    record = ROOT / "kernels" / "_build_info.json"
    built = json.loads(record.read_text()) if record.exists() else {}
    machine = "aarch64" if platform.machine() == "arm64" else platform.machine()
    cpu = sorted((ROOT / "kernels").glob("_C.*so"))
    if cpu and (abi := re.search(r"torch >= (\d+)\.(\d+)", built.get("cpp", ""))):
        name = f"torch-stable-abi{abi[1]}{abi[2]}-{{}}-{machine}-{platform.system().lower()}"
        found[name.format("cpu")] = ({"type": "cpu"}, cpu)
        gpu = sorted((ROOT / "kernels").glob("_C_cuda.*so"))
        if gpu and (nvcc := re.search(r"nvcc (\d+)\.(\d+)", built["cuda"])):
            archs = [f"{arch[:-1]}.{arch[-1]}" for arch in re.findall(r"sm_(\d+)", built["cuda"])]
            archs[-1] += "+PTX"
            found[name.format(f"cu{nvcc[1]}{nvcc[2]}")] = ({"type": "cuda", "archs": archs}, cpu + gpu)
    return found


def write_variant(folder: Path, general: dict, backend: dict, libraries: list[Path]) -> None:
    """A folder that the library can load; its namespace in torch.ops is named after its contents."""
    files = {name: text.encode() for name, text in sources().items()}
    files |= {path.name: path.read_bytes() for path in libraries}
    contents = hashlib.sha256()
    for name, data in sorted(files.items()):
        contents.update(f"{name} {len(data)}\n".encode() + data)
    name = general["name"].replace("-", "_")
    unique = f"_{name}_{backend['type']}_{contents.hexdigest()[:10]}"
    files["_ops.py"] = ops_module(unique).encode()
    digests = {name: base64.b64encode(hashlib.sha256(data).digest()).decode() for name, data in sorted(files.items())}
    metadata = {
        **{key: general[key] for key in ("name", "version", "license")},
        "id": unique,
        "python-depends": [],
        "backend": backend,
        "digest": {"algorithm": "sha256", "files": digests},
    }
    files["metadata.json"] = (json.dumps(metadata, indent=2) + "\n").encode()
    write(folder, files)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("usage: python hub/package.py FOLDER")
    folder = Path(sys.argv[1])
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"hub/package.py: {folder} is not empty; name a new folder")
    general = tomllib.loads((ROOT / "hub" / "build.toml").read_text())["general"]
    card, license_ = (ROOT / "hub" / "CARD.md").read_bytes(), (ROOT / "LICENSE").read_bytes()
    build = (ROOT / "hub" / "build.toml").read_bytes()
    write(folder, {"build.toml": build, "CARD.md": card, "README.md": card, "LICENSE": license_})
    module = general["name"].replace("-", "_")
    write(folder / "torch-ext" / module, {name: text.encode() for name, text in sources().items()})
    for name, (backend, libraries) in variants().items():
        write_variant(folder / "build" / name, general, backend, libraries)
        print(f"{folder / 'build' / name}")


if __name__ == "__main__":
    main()
