// topk_classes, gather_classes and scatter_classes on the GPU: the host side. The schemas are in
// kernels/topk_classes/op.py, the kernels are in kernel.cu.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "common/arguments.h"
#include "common/gpu.h"

using Mark = int(const void*, void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                 int64_t, void*);
extern "C" Mark fgaseg_topk_classes_mark_float32, fgaseg_topk_classes_mark_float16, fgaseg_topk_classes_mark_bfloat16;
extern "C" int fgaseg_topk_classes_compact(const void*, int64_t*, int64_t*, int64_t*, int64_t, int64_t, int64_t, void*);
extern "C" int fgaseg_gather_classes(const void*, const int64_t*, void*, int64_t, int64_t, int64_t, int64_t, int64_t,
                                     int64_t, int64_t, void*);
extern "C" int fgaseg_scatter_classes(const void*, const int64_t*, void*, int64_t, int64_t, int64_t, int64_t, int64_t,
                                      const void*, void*);

namespace fgaseg {
namespace {

std::tuple<Tensor, Tensor> topk_classes(const Tensor& scores, int64_t k, std::string union_) {
  check_topk_classes(scores, k, union_);
  const int64_t batch = scores.size(0), classes = scores.size(1), words = (classes + 31) / 32;
  const bool united = union_ == "batch";
  const OnDevice device(scores);
  Tensor kept = torch::stable::new_zeros(scores, {united ? 1 : batch, words}, ScalarType::Int);
  Mark* mark = for_dtype("topk_classes", scores, fgaseg_topk_classes_mark_float32, fgaseg_topk_classes_mark_float16,
                         fgaseg_topk_classes_mark_bfloat16);
  check("topk_classes", mark(scores.const_data_ptr(), kept.mutable_data_ptr(), batch, classes, scores.size(2),
                             scores.size(3), scores.stride(0), scores.stride(1), scores.stride(2), scores.stride(3), k,
                             united, device.stream()));
  Tensor rows = torch::stable::new_empty(scores, {batch * classes}, ScalarType::Long);
  Tensor counts = torch::stable::new_empty(scores, {batch}, ScalarType::Long);
  Tensor total = torch::stable::new_empty(scores, {1}, ScalarType::Long);
  check("topk_classes",
        fgaseg_topk_classes_compact(kept.const_data_ptr(), static_cast<int64_t*>(rows.mutable_data_ptr()),
                                    static_cast<int64_t*>(counts.mutable_data_ptr()),
                                    static_cast<int64_t*>(total.mutable_data_ptr()), batch, classes, united,
                                    device.stream()));
  int64_t found = 0;
  if (batch > 0)  // the only point where the host waits for the GPU
    TORCH_ERROR_CODE_CHECK(aoti_torch_item_int64(total.get(), &found));
  return {torch::stable::narrow(rows, 0, 0, found), counts};
}

std::vector<int64_t> sizes_from(const Tensor& x, int64_t first) {
  std::vector<int64_t> sizes;
  for (int64_t d = first; d < x.dim(); ++d) sizes.push_back(x.size(d));
  return sizes;
}

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t elements = 1;
  for (int64_t size : sizes) elements *= size;
  return elements;
}

// The largest number of bytes, up to 16, that divides all of these addresses and distances in bytes.
int64_t widest(std::initializer_list<int64_t> multiples) {
  int64_t all = 16;
  for (int64_t multiple : multiples) all |= multiple;
  return all & -all;
}

int64_t address(const Tensor& x) { return reinterpret_cast<int64_t>(x.const_data_ptr()); }

Tensor gather_classes(const Tensor& x_, const Tensor& rows_) {
  check_class_rows("gather_classes", x_, 2, rows_);
  // A copy if the elements of a row are not contiguous.
  const Tensor x = dense(x_, 2), rows = torch::stable::contiguous(rows_);
  std::vector<int64_t> sizes = sizes_from(x, 2);
  const int64_t element = x.element_size(), bytes = product(sizes) * element;
  const int64_t stride_b = x.stride(0) * element, stride_t = x.stride(1) * element;
  sizes.insert(sizes.begin(), rows.size(0));
  Tensor y = torch::stable::new_empty(x, sizes);
  if (y.numel() == 0) return y;
  const int64_t width = widest({address(x), address(y), bytes, stride_b, stride_t});
  const OnDevice device(x);
  check("gather_classes", fgaseg_gather_classes(x.const_data_ptr(), static_cast<const int64_t*>(rows.const_data_ptr()),
                                                y.mutable_data_ptr(), rows.size(0), x.size(0), x.size(1),
                                                stride_b / width, stride_t / width, bytes / width, width,
                                                device.stream()));
  return y;
}

template <class T>
void repeat(T value, void* bytes16) {
  for (size_t i = 0; i < 16; i += sizeof(T)) std::memcpy(static_cast<char*>(bytes16) + i, &value, sizeof(T));
}

// 16 bytes filled with `fill` in the dtype of x.
void fill_bytes(const Tensor& x, double fill, void* bytes16) {
  if (x.scalar_type() == ScalarType::Half) return repeat(c10::Half(static_cast<float>(fill)), bytes16);
  if (x.scalar_type() == ScalarType::BFloat16) return repeat(c10::BFloat16(static_cast<float>(fill)), bytes16);
  if (x.scalar_type() == ScalarType::Double) return repeat(fill, bytes16);
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "scatter_classes: CUDA takes floating-point numbers");
  repeat(static_cast<float>(fill), bytes16);
}

Tensor scatter_classes(const Tensor& y_, const Tensor& rows_, int64_t batch, int64_t classes, double fill) {
  check_class_rows("scatter_classes", y_, 1, rows_).require(batch >= 0 && classes >= 0, "batch and classes must not be negative");
  const Tensor y = dense(y_, 1), rows = torch::stable::contiguous(rows_);  // as in gather_classes
  std::vector<int64_t> sizes = sizes_from(y, 1);
  const int64_t element = y.element_size(), bytes = product(sizes) * element, stride = y.stride(0) * element;
  sizes.insert(sizes.begin(), {batch, classes});
  Tensor x = torch::stable::new_empty(y, sizes);
  if (x.numel() == 0) return x;
  unsigned char pattern[16];
  fill_bytes(y, fill, pattern);
  const int64_t width = widest({address(x), address(y), bytes, stride});
  const OnDevice device(y);
  check("scatter_classes",
        fgaseg_scatter_classes(y.const_data_ptr(), static_cast<const int64_t*>(rows.const_data_ptr()),
                               x.mutable_data_ptr(), rows.size(0), batch * classes, stride / width, bytes / width,
                               width, pattern, device.stream()));
  return x;
}

}  // namespace
}  // namespace fgaseg

FGASEG_GPU_LIBRARY(m) {
  m.impl("topk_classes_cuda", TORCH_BOX(&fgaseg::topk_classes));
  m.impl("gather_classes_cuda", TORCH_BOX(&fgaseg::gather_classes));
  m.impl("scatter_classes_cuda", TORCH_BOX(&fgaseg::scatter_classes));
}
