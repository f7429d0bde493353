import importlib
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accuracy import emulated
from torch.utils._python_dispatch import TorchDispatchMode

from fgaseg import kernels
from fgaseg.environment import CALLS, collect
from fgaseg.kernels import _dispatch, _library, kernel_softmax

LOGITS = torch.zeros(1, 1, 9 * 256)
needs_interpreter = pytest.mark.skipif("triton" not in emulated, reason="Triton is not interpreted here")


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(_dispatch.unavailable, "cpp", "it was left out of this test")
    monkeypatch.setattr(_dispatch, "_shown", set())


def test_a_fallback_warns_once(without_library):
    with pytest.warns(UserWarning, match="kernel_softmax: running the plain reference(?s:.*)left out of this test"):
        kernel_softmax(LOGITS, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel_softmax(LOGITS, 3)


def test_a_compiled_call_warns_too(without_library):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: kernel_softmax(x, 3), fullgraph=True, backend="eager")
    with pytest.warns(UserWarning, match="left out of this test"):
        compiled(LOGITS)


def test_strict_makes_it_an_error(without_library, monkeypatch):
    monkeypatch.setenv("FGASEG_STRICT", "1")
    with pytest.raises(RuntimeError, match="FGASEG_STRICT=1 and only the reference(?s:.*)left out of this test"):
        kernel_softmax(LOGITS, 3)
    kernel_softmax(LOGITS, 3, backend="reference")  # asked for by name: no fallback


def test_a_backend_that_cannot_run_says_why(without_library):
    with pytest.raises(RuntimeError, match="backend='cpp' cannot run this call: it was left out of this test"):
        kernel_softmax(LOGITS, 3, backend="cpp")
    with pytest.raises(ValueError, match="no backend 'metal'; there are auto, cpp, triton, cuda, reference"):
        kernel_softmax(LOGITS, 3, backend="metal")


def test_auto_leaves_small_calls_to_the_reference(monkeypatch):
    few, many = torch.zeros(1, 1, 25 * 8), torch.zeros(1, 1, 25 * 4096)
    ran = []
    reference = _dispatch.OPS["kernel_softmax"][-1]
    spy = _dispatch.Backend("reference", reference.why_not, lambda *args: ran.append(args) or reference.run(*args))
    monkeypatch.setitem(_dispatch.OPS, "kernel_softmax", (*_dispatch.OPS["kernel_softmax"][:-1], spy))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is a choice, so there is no warning
        kernel_softmax(few, 5)
    assert len(ran) == 1
    if not _dispatch.unavailable["cpp"]:
        kernel_softmax(many, 5)
        assert len(ran) == 1
        assert "but auto takes the reference: it is faster up to 16384 elements" in kernels.explain(
            "kernel_softmax", few, 5, "taps"
        )
    kernel_softmax(many.requires_grad_(), 5)
    assert len(ran) == 2


def chosen_by_auto(op: str, *args, without: str = "") -> str:
    """The backend that "auto" would take if all that are not ``without`` could run the call."""
    ran = []

    def backend(one: _dispatch.Backend) -> _dispatch.Backend:
        return replace(
            one, run=lambda *_: ran.append(one.name), limit=lambda *_: "left out" if one.name == without else ""
        )

    able = tuple(backend(one) for one in _dispatch.OPS[op] if one.name != "cpp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_dispatch, "_examined", {})
        patch.setattr(_dispatch, "able_backends", lambda *_: _dispatch._Able(able, {}, able))
        _dispatch.dispatch(op, "auto", *args)
    return ran[0]


@pytest.mark.parametrize(
    "dtype, size, without, expected",
    [
        (torch.bfloat16, 3, "", "cuda"),
        (torch.bfloat16, 3, "cuda", "triton"),
        (torch.float16, 5, "", "triton"),
        (torch.float32, 3, "", "triton"),
        (torch.float32, 3, "triton", "cuda"),  # rather than the reference
    ],
)
def test_lcs_conv_on_a_gpu_takes_the_fewest_instructions(dtype, size, without, expected):
    logits = torch.zeros(1, 3, 2 * size**2, dtype=dtype)
    args = torch.zeros(1, 2, 4, 4, dtype=dtype), logits, torch.zeros(1, 3, dtype=dtype), size, "taps"
    assert chosen_by_auto("lcs_conv", *args, without=without) == expected


@pytest.mark.parametrize(
    "dtype, size, classes, cuda, steps",
    [
        (torch.bfloat16, 3, 4, True, True),
        (torch.bfloat16, 3, 4, False, False),
        (torch.bfloat16, 5, 4, True, False),
        (torch.float32, 3, 4, True, False),
        (torch.bfloat16, 3, 10**6, True, False),  # the logits would take more than 256 MiB
    ],
)
def test_lcs_conv_from_text_on_a_gpu_takes_two_steps_for_cuda(dtype, size, classes, cuda, steps, monkeypatch):
    module = importlib.import_module("fgaseg.kernels.lcs_conv_from_text.op")
    monkeypatch.setattr(module, "able_backends", lambda *_: SimpleNamespace(named={"cuda": 0} if cuda else {}))
    texts = SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, classes, 8), requires_grad=False)
    texts.element_size = lambda: dtype.itemsize
    weight = torch.zeros(16 * size**2 + 1, 8)
    assert module._keeps_logits(size, texts, weight) == steps


def test_a_kind_of_call_is_asked_once(monkeypatch):
    """Not again in every call, which is as long as a launch; but again after anything that the answer depends on."""
    asked, why_not = [], _dispatch._why_not
    monkeypatch.setattr(_dispatch, "_why_not", lambda name, args: asked.append(name) or why_not(name, args))
    monkeypatch.setattr(_dispatch, "_asked", {})
    monkeypatch.setattr(_dispatch, "_examined", {})
    for _ in range(3):
        kernel_softmax(LOGITS, 3)
        kernel_softmax(LOGITS, 3, backend="reference")
    assert asked == ["cpp", "triton", "cuda"]
    kernel_softmax(LOGITS.half(), 3)
    assert len(asked) == 6
    monkeypatch.setitem(_dispatch.unavailable, "cpp", "it was taken away")
    with pytest.raises(RuntimeError, match="it was taken away"):
        kernel_softmax(LOGITS, 3, backend="cpp")
    with _dispatch.reference_forms({}):
        kernel_softmax(LOGITS, 3)
        with pytest.raises(ValueError, match="no backend 'cpp'"):
            kernel_softmax(LOGITS, 3, backend="cpp")


def test_a_call_is_checked_once_and_others_again(monkeypatch):
    seen, check = [], _dispatch.CHECKS["kernel_softmax"]
    monkeypatch.setitem(_dispatch.CHECKS, "kernel_softmax", lambda *args: seen.append(args) or check(*args))
    monkeypatch.setattr(_dispatch, "_examined", {})
    for _ in range(3):
        kernel_softmax(LOGITS, 3)
        kernel_softmax(LOGITS[:, :0], 3)
        kernel_softmax(LOGITS.half(), 3)
        kernel_softmax(LOGITS, 1)
        kernel_softmax(LOGITS, 3, "none")
    assert len(seen) == 5
    for _ in range(2):  # an invalid call is not remembered
        with pytest.raises(ValueError, match="kernel_size is 2"):
            kernel_softmax(LOGITS, 2)
    assert len(seen) == 7


def test_what_is_remembered_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(_dispatch, "_examined", {})
    monkeypatch.setattr(_dispatch, "MOST_EXAMINED", 4)
    for count in range(10):
        assert kernel_softmax(torch.zeros(1, count, 9), 3).shape[1] == count
        assert len(_dispatch._examined) <= 4


def test_a_call_under_autocast_is_cast_although_the_same_was_examined_before():
    bias, pixels, logits = torch.zeros(1, 2), torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 27)
    for _ in range(2):
        assert kernels.lcs_conv(pixels, logits, bias, 3).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert kernels.lcs_conv(pixels, logits, bias, 3).dtype == torch.bfloat16
            assert kernels.lcs_conv(pixels.double(), logits.double(), bias.double(), 3).dtype == torch.float64
            assert kernel_softmax(logits.bfloat16(), 3).dtype == torch.float32
            with torch.autocast("cpu", enabled=False), pytest.raises(TypeError, match="kernel_logits has dtype"):
                kernels.lcs_conv(pixels.bfloat16(), logits, bias, 3)


@needs_interpreter
@pytest.mark.parametrize("grad", [False, True])
def test_triton_checks_what_dispatch_did_not(monkeypatch, grad):
    """Not what dispatch has checked, but a call of its own and one whose arguments change on their way."""

    class Cut(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "fgaseg":
                args = (args[0][..., :10], *args[1:])
            return function(*args, **(kwargs or {}))

    seen, ask = [], _library._were_checked
    monkeypatch.setattr(_library, "_were_checked", lambda args: seen.append(ask(args)) or seen[-1])
    logits = LOGITS.clone().requires_grad_(grad)
    kernel_softmax(logits, 3, backend="triton")
    assert seen == [True]
    with pytest.raises(ValueError, match=r"kernel_logits has shape \[1, 1, 10\]"), Cut():
        kernel_softmax(logits, 3, backend="triton")
    raw = _library.overload("kernel_softmax", "triton")
    raw(logits, 3, "taps")
    with pytest.raises(ValueError, match=r"kernel_logits has shape \[1, 1, 10\]"):
        raw(logits[..., :10], 3, "taps")
    assert seen == [True, False, False, False]


def test_what_was_told_is_not_put_into_words_again(without_library, monkeypatch):
    told = []
    monkeypatch.setattr(_dispatch, "warn_fallback", lambda op, reasons: told.append(op) or _dispatch._shown.add(op))
    for _ in range(3):
        kernel_softmax(LOGITS, 3)
    assert told == ["kernel_softmax"]


def test_explain_names_every_backend():
    pixels = torch.zeros(1, 2, 4, 4, device="meta")
    text = kernels.explain("lcs_conv", pixels, torch.zeros(1, 3, 18), torch.zeros(1, 3), 3)
    assert "float32[1, 2, 4, 4] on meta" in text and "cpp       tensors are on meta" in text
    assert "triton    tensors are on meta" in text and "cuda      tensors are on meta" in text
    assert "reference can run" in text
    with pytest.raises(ValueError, match="no op 'lcs'; there are (?s:.*)lcs_conv"):
        kernels.explain("lcs")


def test_info_covers_every_op():
    found = collect()
    assert set(found["ops"]) == set(_dispatch.OPS) == set(CALLS)
    for op, new_args in CALLS.items():
        choice = next(c for c in found["ops"][op]["cpu"] if c["dtype"] == "float32")
        args = new_args(lambda *sizes: torch.zeros(sizes), "cpu")
        getattr(kernels, op)(*args, backend=choice["runs"])  # what it says would run does run


def test_the_kernels_alone_import_torch_and_little_else():
    """The ops do not need the model's packages, and importing them does not initialise CUDA."""
    heavy = ["open_clip", "pydantic", "rich", "torchvision", "fgaseg.kernels.lcs_conv.triton"]
    code = "import sys, torch, fgaseg.kernels; print(*sys.modules, torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *modules, initialised = done.stdout.split()
    assert not set(modules) & set(heavy) and initialised == "False"
