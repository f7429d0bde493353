// linear_int8 and mlp_int8 on the CPU. The schemas and the definition are in kernels/linear_int8.
//
// A row of activations becomes codes of 8 bits without sign, with a step and a zero of its own; the product with the
// weight's signed 8 bits is a sum of integers, exact, and zero times the weight's total is taken off it. Where the
// processor cannot multiply int8 (AVX512_VNNI) the same integers are multiplied as float32.
//
// As in csrc/linear, weights are packed inside the call, and an mlp whose weights fit keeps its hidden values in the
// cache: they are coded again there, before the second product.
#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <string>

#include "common/arguments.h"
#include "common/rows.h"

namespace fgaseg {
namespace {

constexpr int64_t GROUP_BYTES = 256 << 10;   // of packed panels
constexpr int64_t MLP_BYTES = 768 << 10;     // of the two packed weights of an mlp
constexpr int64_t BLOCK = 2 * ROWS_OF_TILE;  // rows of an mlp that are computed together
constexpr float SMALLEST = 1e-30f;           // range of a row; its values are 0 below

bool native() { return Processor::get().int8; }

// Four values a unit; one, as float32, where int8 is not multiplied.
int64_t units_of(int64_t depth) { return native() ? (depth + 3) / 4 : depth; }

struct Weight {
  const int8_t* data;
  const float* scale;
  int64_t rows, depth;
};

// Rows of activations as codes.
struct Coded {
  int64_t depth, units;
  Scratch<uint32_t> codes;
  Scratch<float> step;
  Scratch<int32_t> zero;

  Coded(int64_t rows, int64_t depth)
      : depth(depth), units(units_of(depth)), codes(rows * units), step(rows), zero(rows) {}

  FGASEG_INLINE void write(int64_t row, const float* values) {
    float low = 0, high = 0, finite = 0;  // finite: 0, or NaN if any value is not
    _Pragma("omp simd reduction(min : low) reduction(max : high) reduction(+ : finite)")
    for (int64_t k = 0; k < depth; ++k) {
      low = values[k] < low ? values[k] : low;
      high = values[k] > high ? values[k] : high;
      finite += values[k] * 0;
    }
    const float range = high - low, inverse = range > SMALLEST && finite == 0 ? 255 / range : 0;
    const float shift = __builtin_rintf(-low * inverse);
    step.data()[row] = finite == 0 ? range / 255 : std::numeric_limits<float>::quiet_NaN();
    zero.data()[row] = int32_t(shift);
    uint32_t* to = codes.data() + row * units;
    if (native()) {
      uint8_t* bytes = reinterpret_cast<uint8_t*>(to);
      to[units - 1] = 0;
      if (inverse == 0)
        std::fill(bytes, bytes + depth, 0);  // the values may be NaN, which has no code
      else
        _Pragma("omp simd") for (int64_t k = 0; k < depth; ++k) bytes[k] = code(values[k], inverse, shift);
    } else {
      float* floats = reinterpret_cast<float*>(to);
      for (int64_t k = 0; k < depth; ++k) floats[k] = inverse == 0 ? 0 : code(values[k], inverse, shift) - shift;
    }
  }

 private:
  FGASEG_INLINE static uint8_t code(float value, float inverse, float shift) {
    const float rounded = __builtin_rintf(value * inverse) + shift;
    return uint8_t(int32_t(std::min(std::max(rounded, 0.0f), 255.0f)));
  }
};

// The panel of COLUMNS output channels from `first` on, and the total of every channel's weights.
FGASEG_INLINE void pack(const Weight& w, int64_t first, uint32_t* panel, int32_t* totals) {
  const int64_t units = units_of(w.depth), columns = std::min(COLUMNS, w.rows - first);
  const int8_t* from = w.data + first * w.depth;
  if (native() && w.depth % 4 == 0) {
    pack_panel(reinterpret_cast<const uint32_t*>(from), units, 1, columns, units, panel);
  } else {
    std::fill(panel, panel + units * COLUMNS, 0);
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t k = 0; k < w.depth; ++k) {
        const int8_t value = from[j * w.depth + k];
        if (native())
          reinterpret_cast<int8_t*>(panel + k / 4 * COLUMNS + j)[k % 4] = value;
        else
          reinterpret_cast<float*>(panel)[k * COLUMNS + j] = value;
      }
  }
  static const uint32_t ones = 0x01010101;
  if (native()) tiles_of(Arithmetic::int8)[0](Rows{&ones, 0, 0}, panel, units, totals, COLUMNS, false);
}

// What the sums of coded rows stand for, as float32.
FGASEG_INLINE void decode(const uint32_t* sums, int64_t pitch, Coded& of, int64_t first, int64_t n,
                          const int32_t* totals, const float* scale, int64_t columns, float* values) {
  for (int64_t i = 0; i < n; ++i) {
    const float step = of.step.data()[first + i];
    const int32_t zero = of.zero.data()[first + i];
    float* to = values + i * pitch;
    if (native()) {
      const int32_t* s = reinterpret_cast<const int32_t*>(sums + i * pitch);
      _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j) to[j] = float(s[j] - zero * totals[j]) * (step * scale[j]);
    } else {
      const float* s = reinterpret_cast<const float*>(sums + i * pitch);
      _Pragma("omp simd") for (int64_t j = 0; j < columns; ++j) to[j] = s[j] * (step * scale[j]);
    }
  }
}

const Tile* tiles() { return tiles_of(native() ? Arithmetic::int8 : Arithmetic::float32); }

template <class T>
struct Linear {
  Coded& x;
  Weight w;
  Ending<T> ending;

  FGASEG_INLINE void compute(const Part& part) const {
    const int64_t units = x.units, size = units * COLUMNS;
    const int64_t many = std::clamp<int64_t>(GROUP_BYTES / int64_t(size * sizeof(uint32_t)), 1, part.panels);
    const int64_t pitch = many * COLUMNS;
    Scratch<uint32_t> packed(many * size), sums(ROWS_OF_TILE * pitch);
    Scratch<int32_t> totals(pitch);
    Scratch<float> values(ROWS_OF_TILE * pitch);
    for (int64_t first = part.panel; first < part.panel + part.panels; first += many) {
      const int64_t panels = std::min(many, part.panel + part.panels - first), column = first * COLUMNS;
      const int64_t columns = std::min(panels * COLUMNS, w.rows - column);
      for (int64_t j = 0; j < panels; ++j)
        pack(w, column + j * COLUMNS, packed.data() + j * size, totals.data() + j * COLUMNS);
      for_tiles(part.rows, [&](int64_t i, int64_t n) FGASEG_LAMBDA {
        i += part.row;
        for (int64_t j = 0; j < panels; ++j)
          tiles()[n - 1]({x.codes.data() + i * units, units}, packed.data() + j * size, units,
                         sums.data() + j * COLUMNS, pitch, false);
        decode(sums.data(), pitch, x, i, n, totals.data(), w.scale + column, columns, values.data());
        ending(values.data(), pitch, i, n, column, columns);
      });
    }
  }
};

// x + W2 activation(W1 LayerNorm(x) + b1) + b2
template <class T>
struct Mlp {
  Matrix<T> x;
  Norm norm;
  Weight w1, w2;
  Ending<float> middle;  // its y is set here
  Ending<T> ending;

  FGASEG_INLINE void compute(int64_t first, int64_t last) const {
    Coded rows(BLOCK, w1.depth), hidden(BLOCK, w2.depth);
    const int64_t panels1 = panels_of(w1.rows), panels2 = panels_of(w2.rows);
    const int64_t size1 = rows.units * COLUMNS, size2 = hidden.units * COLUMNS;
    const int64_t pitch = std::max(panels1, panels2) * COLUMNS;
    Scratch<uint32_t> packed(panels1 * size1 + panels2 * size2), sums(BLOCK * pitch);
    Scratch<int32_t> totals(2 * pitch);
    Scratch<float> values(BLOCK * pitch), activated(BLOCK * w1.rows), row(w1.depth);
    uint32_t* packed2 = packed.data() + panels1 * size1;
    int32_t* totals2 = totals.data() + pitch;
    for (int64_t j = 0; j < panels1; ++j)
      pack(w1, j * COLUMNS, packed.data() + j * size1, totals.data() + j * COLUMNS);
    for (int64_t j = 0; j < panels2; ++j) pack(w2, j * COLUMNS, packed2 + j * size2, totals2 + j * COLUMNS);
    Ending<float> middle = this->middle;
    middle.y = activated.data(), middle.row = w1.rows;
    for (int64_t i = first; i < last; i += BLOCK) {
      const int64_t n = std::min(BLOCK, last - i);
      for (int64_t r = 0; r < n; ++r) {
        load_values(x, i + r, norm, row.data());
        rows.write(r, row.data());
      }
      multiply(rows, n, packed.data(), panels1, sums.data(), pitch);
      decode(sums.data(), pitch, rows, 0, n, totals.data(), w1.scale, w1.rows, values.data());
      middle(values.data(), pitch, 0, n, 0, w1.rows);
      for (int64_t r = 0; r < n; ++r) hidden.write(r, activated.data() + r * w1.rows);
      multiply(hidden, n, packed2, panels2, sums.data(), pitch);
      decode(sums.data(), pitch, hidden, 0, n, totals2, w2.scale, w2.rows, values.data());
      ending(values.data(), pitch, i, n, 0, w2.rows);
    }
  }

 private:
  FGASEG_INLINE static void multiply(Coded& rows, int64_t n, const uint32_t* packed, int64_t panels, uint32_t* sums,
                                     int64_t pitch) {
    for (int64_t j = 0; j < panels; ++j)
      for_tiles(n, [&](int64_t r, int64_t count) FGASEG_LAMBDA {
        tiles()[count - 1]({rows.codes.data() + r * rows.units, rows.units}, packed + j * rows.units * COLUMNS,
                           rows.units, sums + r * pitch + j * COLUMNS, pitch, false);
      });
  }
};

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                    \
  FGASEG_CLONES void compute(const Linear<T>& of, const Part& part) { of.compute(part); }                \
  FGASEG_CLONES void compute(const Mlp<T>& of, int64_t first, int64_t last) { of.compute(first, last); } \
  FGASEG_CLONES void encode(const Matrix<T>& x, const Norm& norm, int64_t first, int64_t last, Coded& to) { \
    Scratch<float> values(x.depth);                                                                      \
    for (int64_t i = first; i < last; ++i) {                                                             \
      load_values(x, i, norm, values.data());                                                            \
      to.write(i, values.data());                                                                        \
    }                                                                                                    \
  }
FGASEG_FOR(float)
FGASEG_FOR(uint16_t)
#undef FGASEG_FOR

Weight weight_of(const Tensor& w, const Vector& scale) {
  return {fgaseg::data<int8_t>(w), scale.data, w.size(0), w.size(1)};
}

Tensor whole(const Tensor& x) { return x.is_contiguous() ? x : torch::stable::contiguous(x); }

constexpr int64_t LONGEST = 1 << 16;  // channels: the sums of longer products might not fit 32 bits

void check_weight(const Arguments& call, const Tensor& weight, const Tensor& scale, int64_t outputs, int64_t inputs) {
  call.tensor("weight", weight, {outputs, inputs}, ScalarType::Char);
  call.tensor("scale", scale, {weight.size(0)}, ScalarType::Float);
  call.require(weight.size(1) <= LONGEST, "the weight has more than 65536 input channels");
}

Tensor linear_int8(const Tensor& x, const Tensor& weight, const Tensor& scale_, const std::optional<Tensor>& bias_,
                   const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps,
                   std::string activation, const std::optional<Tensor>& residual_) {
  const Arguments call("linear_int8", "x", x, {ANY, SOME});
  call.single_or_bfloat16();
  check_weight(call, weight, scale_, ANY, x.size(1));
  call.vector("bias", bias_, weight.size(0));
  call.both_or_none(norm_weight, norm_bias);
  call.vector("norm_weight", norm_weight, x.size(1));
  call.vector("norm_bias", norm_bias, x.size(1));
  call.tensor("residual", residual_, {x.size(0), weight.size(0)});
  const Tensor w = whole(weight);
  const Vector scale(scale_), bias(bias_), norm_scale(norm_weight), norm_shift(norm_bias);
  const Activation activate = activation_named(activation);
  std::optional<Tensor> residual = residual_;
  if (residual && residual->stride(1) != 1) residual = torch::stable::contiguous(*residual);
  Tensor y = torch::stable::new_empty(x, {x.size(0), w.size(0)});
  if (y.numel() == 0) return y;
  for_storage(x, [&](auto type) {
    using T = decltype(type);
    const int64_t rows = x.size(0), panels = panels_of(w.size(0)), threads = torch::stable::get_num_threads();
    const Norm norm{norm_scale.data, norm_shift.data, float(eps)};
    Coded coded(rows, x.size(1));
    const int64_t grain = 1 + 16384 / x.size(1);
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      encode(Matrix<T>(x), norm, begin, end, coded);
    });
    const Linear<T> of{coded, weight_of(w, scale), ending_of<T>(bias, activate, residual ? &*residual : nullptr, y)};
    const int64_t down = cut_rows(rows, panels, threads), across = std::clamp<int64_t>(threads / down, 1, panels);
    torch::stable::parallel_for(0, down * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t d = t / across, a = t % across, row = rows * d / down, panel = panels * a / across;
        compute(of, {row, rows * (d + 1) / down - row, panel, panels * (a + 1) / across - panel});
      }
    });
  });
  return y;
}

Tensor mlp_int8(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& weight1,
                const Tensor& scale1, const Tensor& bias1, const Tensor& weight2, const Tensor& scale2,
                const Tensor& bias2, std::string activation) {
  const Arguments call("mlp_int8", "x", x, {ANY, SOME});
  call.single_or_bfloat16();
  call.vector("norm_weight", norm_weight, x.size(1));
  call.vector("norm_bias", norm_bias, x.size(1));
  check_weight(call, weight1, scale1, SOME, x.size(1));
  call.vector("bias1", bias1, weight1.size(0));
  check_weight(call, weight2, scale2, x.size(1), weight1.size(0));
  call.vector("bias2", bias2, x.size(1));
  if ((native() ? 1 : 4) * 2 * weight1.numel() > MLP_BYTES) {
    const Tensor hidden = linear_int8(x, weight1, scale1, bias1, norm_weight, norm_bias, eps, activation, {});
    return linear_int8(hidden, weight2, scale2, bias2, {}, {}, 0, "none", x);
  }
  const Tensor w1 = whole(weight1), w2 = whole(weight2), residual = x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  const Vector s1(scale1), s2(scale2), b1(bias1), b2(bias2), norm_scale(norm_weight), norm_shift(norm_bias);
  const Activation activate = activation_named(activation);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  for_storage(x, [&](auto type) {
    using T = decltype(type);
    const Mlp<T> of{Matrix<T>(x),
                    {norm_scale.data, norm_shift.data, float(eps)},
                    weight_of(w1, s1),
                    weight_of(w2, s2),
                    {b1.data, activate, nullptr, 0, nullptr, 0},
                    ending_of<T>(b2, Activation::none, &residual, y)};
    const int64_t grain = std::max<int64_t>(BLOCK, (1 << 22) / std::max<int64_t>(2 * weight1.numel(), 1));
    torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) { compute(of, begin, end); });
  });
  return y;
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("linear_int8_cpp", TORCH_BOX(&fgaseg::linear_int8));
  m.impl("mlp_int8_cpp", TORCH_BOX(&fgaseg::mlp_int8));
}
