"""kernel_softmax against PyTorch's softmax. The unavoidable work is one read and one write of the logits."""

import pytest
from shapes import SHAPES, providers

from fgaseg.kernels import kernel_softmax
from fgaseg.kernels.kernel_softmax.reference import kernel_softmax_reference


def form(provider: str, k: int, norm: str):
    if provider == "torch.compile":
        return lambda x: kernel_softmax_reference(x, k, norm)
    return lambda x: kernel_softmax(x, k, norm, backend=provider)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["taps", "channels"])
@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("provider", providers("kernel_softmax", "auto"))
def test_kernel_softmax(measure, new, shape, norm, gradient, provider):
    b, c, t, _, _, k = SHAPES[shape]
    logits = new(b, t, c * k * k)
    op = f"kernel_softmax {norm}"
    reference = form("reference", k, norm)
    nbytes = 2 * logits.numel() * logits.element_size()
    measure(op, shape, provider, form(provider, k, norm), reference, [logits], gradient, 4.0 * logits.numel(), nbytes)
