"""One forward and backward call of every op on every GPU backend, for compute-sanitizer and profilers.

python benchmarks/small_calls.py [BACKEND] [SHAPE]     (default: triton and cuda, a small odd shape)
"""

import sys

import torch
from shapes import SHAPES, Shape

from fgaseg import kernels


def call(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    b, c, t, h, w, k = shape

    def new(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, device="cuda").to(dtype).requires_grad_()

    pixels, texts, logits = new(b, c, h, w), new(b, t, c), new(b, t, c * k * k)
    weight, bias = new(c * k * k + 1, c), new(c * k * k + 1)
    selection = kernels.topk_classes(new(b, t, h, w), 2, backend=backend)
    maps = new(b, t, h * w)
    packed = kernels.gather_classes(maps, selection, backend=backend)
    rows, offsets = new(t, h * w, 64), torch.tensor([0, t - 1, t], device="cuda")
    class_maps, guide = new(b * t, h, w, 32), new(b, h, w, 32)
    results = [
        kernels.kernel_softmax(logits, k, backend=backend),
        kernels.kernel_softmax(logits, k, "channels", backend=backend),
        kernels.lcs_conv(pixels, logits, new(b, t), k, backend=backend),
        kernels.cosine_cost_volume(pixels, texts[:, :, None], backend=backend),
        kernels.scatter_classes(packed, selection, 0.0, backend=backend),
        # these have no CUDA kernel
        kernels.lcs_conv_from_text(texts, weight, bias, pixels, k, backend="triton"),
        kernels.class_attention(rows, rows, rows, new(t, 64), new(t, 64), offsets, 2, backend="triton"),
        kernels.window_attention(class_maps, class_maps, class_maps, guide, guide, 2, 4, 2, backend="triton"),
    ]
    sum(y.float().square().sum() for y in results).backward()
    kernels.upsample_argmax(new(b, t, h, w), (4 * h, 5 * w), total=True, backend="triton")
    kernels.upsample_argmax_windows(new(5, t, h, w), 12, 8, (4 * h, 5 * w), backend="triton")
    torch.cuda.synchronize()


if __name__ == "__main__":
    backends = [word for word in sys.argv[1:] if word not in SHAPES] or ["triton", "cuda"]
    shape = next((SHAPES[word] for word in sys.argv[1:] if word in SHAPES), Shape(2, 37, 5, 7, 9, 3))
    for backend in backends:
        for dtype in (torch.float32, torch.bfloat16):
            call(backend, shape, dtype)
            print(backend, dtype, "ran")
