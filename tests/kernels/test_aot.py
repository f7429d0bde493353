"""Every GPU kernel compiles, as it would be launched, within its committed budget."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from fgaseg.kernels import aot

OF_A_CALL = re.compile(r"bf16 (S\d|T=)")  # the label of what calls.py has launched


def compiled(*arguments: str) -> list[dict]:
    """The rows of aot.py, in its own process: under TRITON_INTERPRET=1, which the other tests need, none compile."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fgaseg.kernels.aot", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def skip_another_triton():
    pytest.importorskip("triton")
    if why := aot.why_not_comparable():
        pytest.skip(reason=why)


@pytest.fixture(scope="module")
def rows():
    return compiled("--arch", "sm_90")


def test_what_calls_launch_is_within_its_budget(rows):
    skip_another_triton()
    assert not [row for row in rows if row["verdict"] != "ok"]


def test_every_launch_of_a_call_is_measured(rows):
    """Every row of the budget was measured, so no kernel can drop out of the table unnoticed."""
    measured = {tuple(row[name] for name in aot.KEY) for row in rows}
    expected = {key for key in aot.read_budget() if key[3] == "sm_90" and (key[1] == "cuda" or OF_A_CALL.match(key[2]))}
    assert measured == {key for key in expected if not (key[1] == "cuda" and aot.why_no_cuda())}
    assert {"_lcs_conv_product", "_cosine_cost_volume"} <= {row["kernel"] for row in rows if row["matrix"]}


@pytest.mark.slow
def test_what_calls_launch_is_within_its_budget_on_an_a100():
    skip_another_triton()
    assert not [row for row in compiled("--arch", "sm_80") if row["verdict"] != "ok"]


ROW = aot.Row(
    **{"kernel": "_k", "backend": "triton", "configuration": "bf16", "arch": "sm_90"},
    **{"registers": 64, "shared": 1024, "spilled": 0, "loop": 100},
    **{"matrix": 8, "wide": 2, "copies": 4, "blocks": 8, "wants_matrix": True},
)  # fmt: skip
BUDGET = {name: str(getattr(ROW, name)) for name in (*aot.AT_MOST, *aot.AT_LEAST)} | {"note": ""}


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, "ok"),
        ({"registers": 72}, "registers 72 > 64"),
        ({"spilled": 16}, "spills 16 bytes and no note"),
        ({"shared": 300_000}, "shared memory above the 232448 bytes of sm_90"),
        ({"loop": 101}, "loop 101 > 100"),
        ({"copies": 0}, "copies 0 < 4"),
        ({"wide": 1}, "wide 1 < 2"),
        ({"blocks": 7}, "blocks 7 < 8"),
        ({"matrix": 0}, "no matrix instructions"),
        ({"configuration": "fp16"}, "no budget"),
    ],
)
def test_judges(change, words):
    key = tuple(getattr(ROW, name) for name in aot.KEY)
    assert words in aot.judge(replace(ROW, **change), {key: BUDGET}).verdict


@pytest.mark.parametrize(
    "registers, shared, threads, arch, blocks",
    [
        (32, 0, 1024, "sm_90", 2),  # 64 warps
        (65, 0, 256, "sm_90", 3),  # 72 registers: 28 warps
        (16, 100_000, 128, "sm_90", 2),  # shared memory
        (16, 100_000, 128, "sm_80", 1),
        (16, 0, 32, "sm_80", 32),
    ],
)
def test_counts_the_blocks_of_a_multiprocessor(registers, shared, threads, arch, blocks):
    """Against NVIDIA's table of technical specifications."""
    assert aot.blocks_per_processor(registers, shared, threads, arch) == blocks


@pytest.mark.parametrize(
    "version, words", [("3.8.1", ""), ("3.6.0", "3.8, and this is Triton 3.6.0"), ("3.80.0", "3.80")]
)
def test_a_budget_of_another_triton_is_told(monkeypatch, version, words):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    why = aot.why_not_comparable()
    assert words in why if words else not why


def test_refuses_to_run_under_the_interpreter(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit):
        aot.main([])
    assert "unset it" in capsys.readouterr().err


SPECIALISED = """
import json, sys, torch
from dataclasses import replace
from fgaseg.kernels._triton import recorded
from fgaseg.kernels.window_attention.triton import window_attention
from triton._C.libtriton import native_specialize_impl
from triton.backends.compiler import BaseBackend

x, g = (torch.empty(n, 24, 24, 128, dtype=torch.bfloat16, device="meta") for n in (6, 1))
one, = recorded(window_attention, x, x, x, g, g, 4, 12, 1)
shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device="meta")[1:].view(x.shape)
odd = replace(one, arguments=one.arguments | {"q": shifted})
for launch in (one, odd):
    got = launch.compiled(90)
    names = list(got.src.signature)
    found = {name: [kind, bool(got.src.attrs.get((i,)))] for i, (name, kind) in enumerate(got.src.signature.items())}
    own = {}
    for parameter in launch.kernel.params:
        value = launch.arguments[parameter.name]
        kind, attribute = ("constexpr", None) if parameter.is_constexpr else native_specialize_impl(
            BaseBackend, value, False, not parameter.do_not_specialize, True)[:2]
        own[parameter.name] = [kind, attribute == "D"]
    print(json.dumps([found, own, got.metadata.num_warps, got.metadata.num_stages]))
"""


def test_compiles_what_the_jit_specialises():
    """Types, alignment, divisibility by 16 and 1 are those of Triton's own function for a launch's arguments."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", SPECIALISED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (found, own, *options), (odd, of_odd, *_) = map(json.loads, done.stdout.splitlines())
    assert found == own and odd == of_odd
    assert found["shift"] == ["constexpr", False]  # 1
    assert found["stride_q_row"] == ["i32", True] and found["classes"] == ["i32", False]
    assert found["q"] == ["*bf16", True] and odd["q"] == ["*bf16", False]
    assert options == [4, 3]
