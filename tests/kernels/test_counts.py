"""What a launch executes, counted in PTX and machine code without a GPU."""

import csv
import os
import subprocess
import sys
from collections import Counter

import pytest
import shapes  # of the benchmarks
from paths import ROOT

from fgaseg.kernels import aot, calls
from fgaseg.kernels._ptx import Program
from fgaseg.kernels._sass import Code

LOOP = """
.visible .entry _k(
	.param .u64 .ptr .global .align 1 _k_param_0,
	.param .u32 _k_param_1,
	.param .align 8 .b8 _k_param_2[16]
)
.reqntid 128
{
	.reg .pred 	%p<4>;
	ld.param.b64 	%rd1, [_k_param_0];
	ld.param.b32 	%r1, [_k_param_1];
	mov.u32 	%r9, %ctaid.x;
	mul.lo.s32 	%r10, %r9, -2;
	add.s32 	%r2, %r1, %r10;            // n - 2 * block
	setp.lt.s32 	%p1, %r2, 1;
	@%p1 bra 	$L__BB0_3;
	mov.b32 	%r3, 0;
$L__BB0_2:
	ld.global.b32 	%r4, [%rd1];
	setp.eq.s32 	%p2, %r4, 0;
	@%p2 bra 	$L__BB0_4;
	ex2.approx.ftz.f32 	%r5, %r4;
$L__BB0_4:
	add.s32 	%r3, %r3, 1;
	setp.lt.s32 	%p3, %r3, %r2;
	@%p3 bra 	$L__BB0_2;
$L__BB0_3:
	ret;
}
"""


def times(ptx: str, n: int, block: int = 0, memory=lambda address, width: None, struct: bytes = b"", of_data: int = 0):
    program = Program(ptx, "_k")
    parameters = [(1 << 40).to_bytes(8, "little"), n.to_bytes(8, "little", signed=True), struct]
    counts = program.executed(parameters, {"%ctaid.x": block}, memory, of_data)
    found: Counter[str] = Counter()
    for one, count in zip(program.instructions, counts, strict=True):
        found[one.kind] += count
    return found


def test_loops_run_as_often_as_the_arguments_say():
    assert times(LOOP, 7)["load"] == 7
    assert times(LOOP, 7, block=2)["load"] == 3
    assert times(LOOP, 7, block=4)["load"] == 0  # 7 - 8 < 1


def test_what_depends_on_data_is_executed():
    """Unless the data are known."""
    assert times(LOOP, 7)["exponential"] == 7
    assert times(LOOP, 7, memory=lambda address, width: 0)["exponential"] == 0
    assert times(LOOP, 7, memory=lambda address, width: 5)["exponential"] == 7


def test_a_loop_that_depends_on_data_is_an_error():
    loaded = LOOP.replace("setp.lt.s32 	%p3, %r3, %r2", "setp.lt.s32 	%p3, %r3, %r4")
    with pytest.raises(ValueError, match="depends on data"):
        times(loaded, 7)
    assert times(loaded, 7, memory=lambda address, width: 5)["load"] == 5
    assert times(loaded, 7, of_data=3)["load"] == 3


@pytest.mark.parametrize(
    "code, value",
    [
        ("mov.b32 %r2, -7; div.s32 %r2, %r2, 2; neg.s32 %r2, %r2;", 3),
        ("mov.b32 %r2, -1; shr.u32 %r2, %r2, 29;", 7),
        ("mov.b32 %r2, -1; mul.wide.u32 %rd2, %r2, 2; shr.u64 %rd2, %rd2, 32; cvt.u32.u64 %r2, %rd2;", 1),
        ("mov.b32 %r2, -5; mul.wide.s32 %rd2, %r2, -2; cvt.u32.u64 %r2, %rd2;", 10),
        ("mov.b32 %r2, 0xF0; bfe.u32 %r2, %r2, 4, 3;", 7),
        ("mov.b32 %r2, 5; setp.gt.u32 %p1, -1, %r2; selp.b32 %r2, 4, 9, %p1;", 4),
        ("mov.b64 %rd2, 0x200000003; mov.b64 {%r2, %r3}, %rd2;", 3),
        ("mov.b64 %rd2, 0x200000003; mov.b64 {%r3, %r2}, %rd2;", 2),
        ("ld.param.b32 %r2, [_k_param_2+4];", 6),
        ("mov.b64 %rd2, _k_param_2; add.s64 %rd2, %rd2, 8; ld.param.v2.b32 {%r3, %r2}, [%rd2+-8];", 6),
        # false and something unknown is false
        ("setp.eq.s32 %p1, 0, 1; setp.eq.s32 %p2, %r9, %r99; and.pred %p1, %p1, %p2; selp.b32 %r2, 2, 3, %p1;", 3),
    ],
)
def test_integers_are_computed_as_ptx_defines_them(code, value):
    start, end = LOOP.index("mov.u32 	%r9"), LOOP.index("setp.lt.s32 	%p1")
    struct = (5).to_bytes(4, "little") + (6).to_bytes(4, "little")
    assert times(LOOP[:start] + code.replace("; ", ";\n") + "\n" + LOOP[end:], 7, struct=struct)["load"] == value


UNROLLED = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E R4, [R2.64] ;
        /*0020*/                   MUFU.EX2 R4, R4 ;
        /*0030*/                   LDG.E R5, [R2.64] ;
        /*0040*/                   MUFU.EX2 R5, R5 ;
        /*0050*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0060*/                   LDG.E.128 R4, [R2.64] ;
        /*0070*/                   MUFU.EX2 R4, R4 ;
        /*0080*/              @!P1 BRA `(.L_x_2) ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3) ;
        /*00b0*/                   NOP ;
"""


@pytest.mark.parametrize("n, runs", [(7, [(2, 3), (1, 1)]), (6, [(2, 3), (1, 0)])])
def test_an_unrolled_loop_is_recognised(n, runs):
    program, code = Program(LOOP, "_k"), Code(UNROLLED)
    executed = program.executed([bytes(8), n.to_bytes(4, "little")], {"%ctaid.x": 0}, lambda address, width: None)
    found = code.matched(program, executed)
    assert [(run.unrolled, run.times) for run in found] == runs
    instructions, kinds = code.issued(program, executed)
    assert instructions == 1 + runs[0][1] * 5 + runs[1][1] * 3 + 1
    assert kinds["load"] == kinds["exponential"] == n
    assert code.count(r"\.128") == 1


def test_equal_loops_follow_one_another():
    """A second loop like the first is not the first one's remainder."""
    first = LOOP[LOOP.index("$L__BB0_2:") : LOOP.index("$L__BB0_3:")]
    second = first.replace("BB0_2", "BB0_5").replace("BB0_4", "BB0_6").replace("%r3, %r2", "%r3, 9")
    program = Program(LOOP.replace("$L__BB0_3:", second + "$L__BB0_3:"), "_k")
    executed = program.executed([bytes(8), (7).to_bytes(4, "little")], {"%ctaid.x": 0}, lambda address, width: None)
    once = UNROLLED[UNROLLED.index(".L_x_2:") : UNROLLED.index("        /*0090*/")]
    code = Code(once + once.replace("L_x_2", "L_x_9") + UNROLLED[UNROLLED.index("        /*0090*/") :])
    assert [(run.unrolled, run.times) for run in code.matched(program, executed)] == [(1, 7), (1, 2)]


def test_a_jump_back_is_not_always_a_loop():
    """Such as one from a block that the compiler has moved behind the end."""
    moved = """
        /*0000*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0010*/                   STG.E [R2.64], R4 ;
        /*0020*/                   EXIT ;
.L_x_1:
        /*0030*/                   MUFU.EX2 R4, R4 ;
        /*0040*/                   BRA `(.L_x_2) ;
"""
    assert not Code(moved).loops
    assert len(Code(moved.replace("@P0 BRA `(.L_x_1)", "MOV R1, R1").replace("EXIT", "NOP")).loops) == 1


def test_an_unknown_loop_is_an_error():
    with pytest.raises(ValueError, match="no loop of the PTX"):
        Code(UNROLLED.replace("LDG", "BAR.SYNC").replace("EX2", "RCP")).matched(Program(LOOP, "_k"), [1] * 20)


def test_calls_have_the_shapes_of_the_benchmarks():
    assert calls.SHAPES == {name: tuple(shape) for name, shape in shapes.SHAPES.items() if name in calls.SHAPES}


@pytest.mark.slow
@pytest.mark.parametrize(
    "ops",
    [["cosine_cost_volume", "window_attention"], pytest.param([], marks=pytest.mark.exhaustive)],
    ids=["two", "all"],
)
def test_the_table_of_predictions_is_of_these_kernels(tmp_path, ops):
    """benchmarks/predicted.py gives what is committed; another version of a compiler may differ by 10 %."""
    pytest.importorskip("triton")
    if why := aot.why_no_cuda():
        pytest.skip(reason=why)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(ROOT / "benchmarks" / "predicted.py"), "--csv", str(tmp_path / "table.csv")]
    command += ["--ops", *ops] if ops else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    committed, now = (
        {(row["op"], row["shape"], row["pass"], row["backend"]): row for row in csv.DictReader(path.open(newline=""))}
        for path in (ROOT / "benchmarks" / "results" / "predicted_h100.csv", tmp_path / "table.csv")
    )
    committed = {key: row for key, row in committed.items() if not ops or key[0] in ops}
    assert committed.keys() == now.keys()
    for key, row in committed.items():
        assert row["launches"] == now[key]["launches"], key
        assert float(now[key]["predicted_us"]) == pytest.approx(float(row["predicted_us"]), rel=0.1), key
