// upsample_argmax and upsample_argmax_windows on the GPU: the host side. The schemas are in
// kernels/upsample_argmax/op.py, the kernels are in kernel.cu.
#include <algorithm>
#include <tuple>

#include "common/arguments.h"
#include "common/gpu.h"

using Argmax = int(const void*, int64_t*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                   int64_t, int64_t, int64_t, void*);
using Windows = int(const void*, int64_t*, float*, float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, void*);
extern "C" Argmax fgaseg_upsample_argmax_float32, fgaseg_upsample_argmax_float16, fgaseg_upsample_argmax_bfloat16;
extern "C" Windows fgaseg_upsample_argmax_windows_float32, fgaseg_upsample_argmax_windows_float16,
    fgaseg_upsample_argmax_windows_bfloat16;

namespace fgaseg {
namespace {

constexpr int64_t PACK = 4;    // as in kernel.cu
constexpr int64_t CHUNK = 16;  // classes in frames of 640x640: 26 MB, and 9 MB of the global view, in an H100's cache

template <class T>
T* data(Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

std::tuple<Tensor, Tensor, Tensor> upsample_argmax(const Tensor& maps, int64_t height, int64_t width, bool total) {
  check_upsample_argmax(maps, height, width);
  const int64_t batch = maps.size(0);
  Tensor labels = torch::stable::new_empty(maps, {batch, height, width}, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(maps, {batch, height, width}, ScalarType::Float);
  Tensor totals = torch::stable::new_empty(maps, {total ? batch : 0, height, width}, ScalarType::Float);
  const OnDevice device(maps);
  Argmax* launcher = for_dtype("upsample_argmax", maps, fgaseg_upsample_argmax_float32, fgaseg_upsample_argmax_float16,
                               fgaseg_upsample_argmax_bfloat16);
  check("upsample_argmax",
        launcher(maps.const_data_ptr(), data<int64_t>(labels), data<float>(scores),
                 total ? data<float>(totals) : nullptr, batch, maps.size(1), maps.size(2), maps.size(3), height, width,
                 maps.stride(0), maps.stride(1), maps.stride(2), maps.stride(3), device.stream()));
  return {labels, scores, totals};
}

std::tuple<Tensor, Tensor> upsample_argmax_windows(const Tensor& logits, int64_t side, int64_t window, int64_t stride,
                                                   int64_t height, int64_t width, bool sigmoid) {
  check_upsample_argmax_windows(logits, side, window, stride, height, width);
  const int64_t classes = logits.size(1), frame = (side - 1) * stride + window;
  const int64_t packs = (std::min(classes, CHUNK) + PACK - 1) / PACK;
  Tensor labels = torch::stable::new_empty(logits, {height, width}, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(logits, {height, width}, ScalarType::Float);
  Tensor whole = torch::stable::new_empty(logits, {packs, window, window, PACK}, ScalarType::Float);
  Tensor frames = torch::stable::new_empty(logits, {packs, frame, frame, PACK}, ScalarType::Float);
  const OnDevice device(logits);
  Windows* launcher = for_dtype("upsample_argmax_windows", logits, fgaseg_upsample_argmax_windows_float32,
                                fgaseg_upsample_argmax_windows_float16, fgaseg_upsample_argmax_windows_bfloat16);
  check("upsample_argmax_windows",
        launcher(logits.const_data_ptr(), data<int64_t>(labels), data<float>(scores), data<float>(whole),
                 data<float>(frames), CHUNK, classes, logits.size(2), logits.size(3), side, window, stride, height,
                 width, logits.stride(0), logits.stride(1), logits.stride(2), logits.stride(3), sigmoid,
                 device.stream()));
  return {labels, scores};
}

}  // namespace
}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("upsample_argmax_cuda", TORCH_BOX(&fgaseg::upsample_argmax));
  m.impl("upsample_argmax_windows_cuda", TORCH_BOX(&fgaseg::upsample_argmax_windows));
}
