// The gradients of an mlp behind its LayerNorm on the CPU. The schema is in kernels/linear/op.py.
//
// With h = x W1^T + b1, a = activation(h) and y = a W2^T:
//   da = g W2,  dh = da activation'(h),  dx = dh W1,  dW1 = dh^T x,  db1 = sum of dh,  dW2 = g^T a
// h is computed again, CHUNK values of it at a time, so that the four passes over h and da find them in the caches: it
// is four times as wide as x, and keeping it would take more time than computing it.
#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "common/activation.h"
#include "common/arguments.h"
#include "common/product.h"
#include "linear/linear.h"

namespace fgaseg {
namespace {

constexpr int64_t CHUNK = 1 << 20;     // values of h that are computed together
constexpr int64_t LINE = 64;           // adjacent columns that one thread passes over
constexpr int64_t ROWS_OF_SUM = 16;    // rows that are added in float32 before the sum of all, which is float64

template <class T>
struct Hidden {
  T* h;   // becomes activation(h)
  T* da;  // becomes dh
  double* sums;  // of dh, added
  int64_t rows, columns;
  Activation activation;

  FGASEG_INLINE void compute(int64_t first, int64_t last) const {
    with_slope(activation, [&](auto slope_of) FGASEG_LAMBDA {
      float sum[LINE];
      for (int64_t column = first; column < last; column += LINE) {
        const int64_t n = std::min(LINE, last - column);
        for (int64_t row = 0; row < rows; row += ROWS_OF_SUM) {
          std::fill(sum, sum + LINE, 0.0f);
          for (int64_t r = row; r < std::min(row + ROWS_OF_SUM, rows); ++r) {
            T *at = h + r * columns + column, *grad = da + r * columns + column;
            _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) {
              const Slope s = slope_of(to_float(at[j]));
              const float g = to_float(grad[j]) * s.slope;
              from_float(s.value, at[j]);
              from_float(g, grad[j]);
              sum[j] += g;
            }
          }
          for (int64_t j = 0; j < n; ++j) sums[column + j] += sum[j];
        }
      }
    });
  }
};

FGASEG_CLONES void compute(const Hidden<float>& of, int64_t first, int64_t last) { of.compute(first, last); }
FGASEG_CLONES void compute(const Hidden<uint16_t>& of, int64_t first, int64_t last) { of.compute(first, last); }

template <class T>
void activate(Tensor& h, Tensor& da, Tensor& sums, Activation activation) {
  const int64_t columns = h.size(1);
  const Hidden<T> of{mutable_data<T>(h), mutable_data<T>(da), mutable_data<double>(sums), h.size(0), columns, activation};
  const int64_t lines = (columns + LINE - 1) / LINE, grain = 1 + 8192 / (LINE * std::max<int64_t>(of.rows, 1));
  torch::stable::parallel_for(0, lines, grain, [&](int64_t begin, int64_t end) {
    compute(of, begin * LINE, std::min(end * LINE, columns));
  });
}

Tensor transposed(Tensor x) { return torch::stable::transpose(x, 0, 1); }

// dx, dW1, db1 and dW2; the last three are empty without `weights`
std::tuple<Tensor, Tensor, Tensor, Tensor> mlp_backward(Tensor grad, Tensor x, const Tensor& weight1,
                                                        const Tensor& bias1, const Tensor& weight2,
                                                        std::string activation, bool weights) {
  const Arguments call("mlp_backward", "x", x, {ANY, ANY});
  call.single_or_bfloat16();
  call.tensor("grad", grad, {x.size(0), x.size(1)});
  call.tensor("weight1", weight1, {ANY, x.size(1)});
  call.tensor("bias1", bias1, {weight1.size(0)});
  call.tensor("weight2", weight2, {x.size(1), weight1.size(0)});
  const int64_t rows = x.size(0), inner = weight1.size(0);
  const bool single = x.scalar_type() == ScalarType::Float;
  // bfloat16 in one chunk: its sums would be rounded between two
  const int64_t chunk = single || !weights ? std::max<int64_t>(CHUNK / std::max<int64_t>(inner, 1), 1) : std::max<int64_t>(rows, 1);
  Tensor dx = torch::stable::new_empty(x, {rows, x.size(1)});
  Tensor sums = torch::stable::new_zeros(x, {inner}, ScalarType::Double);
  std::optional<Tensor> dw1, dw2;
  for (int64_t first = 0; first == 0 || first < rows; first += chunk) {
    const int64_t n = std::min(chunk, rows - first);
    const Tensor g = torch::stable::narrow(grad, 0, first, n), from = torch::stable::narrow(x, 0, first, n);
    Tensor h = linear(from, weight1, bias1), da = linear(g, transposed(weight2));
    if (single)
      activate<float>(h, da, sums, activation_named(activation));
    else
      activate<uint16_t>(h, da, sums, activation_named(activation));
    Tensor part = torch::stable::narrow(dx, 0, first, n);
    torch::stable::copy_(part, linear(da, transposed(weight1)));
    if (!weights) continue;
    dw1 = linear(transposed(da), transposed(from), {}, {}, {}, 0, "none", dw1);
    dw2 = linear(transposed(g), transposed(h), {}, {}, {}, 0, "none", dw2);
  }
  const auto none = [&] { return torch::stable::new_empty(x, {0}); };
  if (!weights) return {dx, none(), none(), none()};
  return {dx, *dw1, finished(sums, x), *dw2};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) { m.impl("mlp_backward_cpp", TORCH_BOX(&fgaseg::mlp_backward)); }
