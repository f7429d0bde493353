"""What `import fgaseg` gives, and what it must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fgaseg
from fgaseg import errors

HEAVY = ("PIL", "accelerate", "einops", "huggingface_hub", "numpy", "open_clip", "pydantic", "rich", "safetensors",
         "tensorboard", "timm", "torch", "torchvision", "transformers", "triton", "yaml")  # fmt: skip


@pytest.mark.parametrize("statement", ["import fgaseg; dir(fgaseg); fgaseg.FGASegError", "import fgaseg.__main__"])
def test_import_loads_no_heavy_module(statement):
    """The command too: `fgaseg --help` and mistyped options answer at once."""
    script = f"import sys; sys.argv = ['fgaseg', '--help']\ntry: {statement}\nexcept SystemExit: pass\n"
    script += f"print('loaded:', sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["loaded: []"], done.stderr


@pytest.mark.parametrize("name", fgaseg.__all__)
def test_every_public_name_is_there(name):
    assert getattr(fgaseg, name) is not None


def test_dir_lists_the_public_names():
    assert dir(fgaseg) == sorted(fgaseg.__all__)
    assert {name for name, kind in vars(errors).items() if isinstance(kind, type)} <= set(dir(fgaseg))


def test_type_checkers_see_what_is_loaded_when_used():
    tree = ast.parse(Path(fgaseg.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: tuple(one.name for one in node.names) for node in block.body}
    assert seen.pop(None) == ("kernels",)
    assert seen == fgaseg._LAZY


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fgaseg' has no attribute 'FGASegg'"):
        assert fgaseg.FGASegg
