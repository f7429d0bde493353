// linear and mlp on the CPU. The schemas are in kernels/linear/op.py.
//
// The weight is packed inside the call, one group of panels at a time, into memory that fits the second-level cache:
// that costs 2 to 3 % at 600 rows, by a count of its operations, and nothing at 5000, keeps no second copy of the
// weights, and cannot become stale. LayerNorm is applied while a tile of rows is loaded; bias, activation and residual
// while its sums are stored. An mlp keeps the hidden values of BLOCK rows in the cache.
//
// bfloat16 is multiplied as such where the processor can (AVX512_BF16) and the depth is even, elsewhere in float32.
// Everything else is computed in float32.
#include <algorithm>
#include <cmath>
#include <optional>
#include <string>

#include "common/arguments.h"
#include "common/rows.h"
#include "linear/linear.h"

namespace fgaseg {
namespace {

constexpr int64_t GROUP_BYTES = 256 << 10;   // of packed panels
constexpr int64_t MLP_BYTES = 768 << 10;     // of the two packed weights of an mlp
constexpr int64_t BLOCK = 2 * ROWS_OF_TILE;  // rows of an mlp that are computed together
constexpr int64_t DEPTH = 512;               // units of a product of transposed matrices that are packed together

// Where the values of an arithmetic are in units already, and how many of them make one.
template <class T>
struct Form {
  Arithmetic arithmetic;
  int64_t per_unit;

  explicit Form(bool even) : arithmetic(Arithmetic::float32), per_unit(1) {
    if (sizeof(T) == 2 && even && product_of_bfloat16() == Arithmetic::bfloat16)
      arithmetic = Arithmetic::bfloat16, per_unit = 2;
  }
  bool same() const { return sizeof(T) * per_unit == sizeof(uint32_t); }
};

// One row as float32, normalised if asked for, in units of the form.
template <class T>
FGASEG_INLINE void load_row(const Matrix<T>& x, int64_t i, const Norm& norm, const Form<T>& form, float* values,
                            uint32_t* to) {
  const int64_t n = x.depth;
  load_values(x, i, norm, values);
  if (form.arithmetic == Arithmetic::bfloat16) {
    uint16_t* y = reinterpret_cast<uint16_t*>(to);
    _Pragma("omp simd") for (int64_t k = 0; k < n; ++k) y[k] = to_bfloat16(values[k]);
  } else if (reinterpret_cast<float*>(to) != values) {
    std::copy(values, values + n, reinterpret_cast<float*>(to));
  }
}

// The panel of COLUMNS output channels from `first` on.
template <class T>
FGASEG_INLINE void pack(const Matrix<T>& w, const Form<T>& form, int64_t first, float* values, uint32_t* panel) {
  const int64_t units = w.depth / form.per_unit, columns = std::min(COLUMNS, w.rows - first);
  const T* from = w.data + first * w.row;
  if (form.same()) {
    pack_panel(reinterpret_cast<const uint32_t*>(from), w.row / form.per_unit, w.step, columns, units, panel);
    return;
  }
  if (columns < COLUMNS) std::fill(panel, panel + units * COLUMNS, 0);
  for (int64_t j = 0; j < columns; ++j) {  // bfloat16 that is multiplied in float32
    for (int64_t k = 0; k < units; ++k) values[k] = to_float(from[j * w.row + k * w.step]);
    for (int64_t k = 0; k < units; ++k) std::memcpy(panel + k * COLUMNS + j, values + k, sizeof(float));
  }
}

template <class T>
struct Linear {
  Matrix<T> x, w;
  Norm norm;
  Form<T> form;
  Ending<T> ending;
  const Tile* tiles = tiles_of(form.arithmetic);
  std::optional<Rows> rows = {};  // x in units, if it is given so, or was loaded before

  int64_t units() const { return x.depth / form.per_unit; }
  int64_t group(int64_t panels) const {
    const int64_t bytes = std::max<int64_t>(units() * COLUMNS * sizeof(uint32_t), 1);
    return std::max<int64_t>(std::min(GROUP_BYTES / bytes, panels), 1);
  }

  FGASEG_INLINE void compute(const Part& part) const {
    if (x.depth == 0 || (rows && rows->step != 1)) return compute_transposed(part);
    const int64_t many = group(part.panels), pitch = many * COLUMNS, units = this->units();
    Scratch<uint32_t> packed(many * units * COLUMNS), loaded(ROWS_OF_TILE * units);
    Scratch<float> sums(ROWS_OF_TILE * pitch), values(x.depth);
    for (int64_t first = part.panel; first < part.panel + part.panels; first += many) {
      const int64_t panels = std::min(many, part.panel + part.panels - first), column = first * COLUMNS;
      for (int64_t j = 0; j < panels; ++j)
        pack(w, form, column + j * COLUMNS, values.data(), packed.data() + j * units * COLUMNS);
      for_tiles(part.rows, [&](int64_t i, int64_t n) FGASEG_LAMBDA {
        i += part.row;
        Rows from{loaded.data(), units};
        if (rows) {
          from = *rows;
          from.data += i * from.row;
        } else {
          for (int64_t r = 0; r < n; ++r) load_row(x, i + r, norm, form, values.data(), loaded.data() + r * units);
        }
        for (int64_t j = 0; j < panels; ++j)
          tiles[n - 1](from, packed.data() + j * units * COLUMNS, units, sums.data() + j * COLUMNS, pitch, false);
        ending(sums.data(), pitch, i, n, column, std::min(panels * COLUMNS, w.rows - column));
      });
    }
  }

 private:
  // The product of a gradient of a weight: as deep as there are rows in the batch, and of a left operand whose values
  // along the depth are far apart. Both operands are packed, DEPTH units at a time.
  FGASEG_INLINE void compute_transposed(const Part& part) const {
    const int64_t most = std::clamp<int64_t>(x.depth, 1, DEPTH), size = most * COLUMNS;
    const int64_t many = std::max<int64_t>(std::min(GROUP_BYTES / int64_t(size * sizeof(float)), part.panels), 1);
    const int64_t pitch = many * COLUMNS;
    Scratch<uint32_t> packed(many * size), left(most * ROWS_OF_TILE);
    Scratch<float> sums(part.rows * pitch);
    for (int64_t first = part.panel; first < part.panel + part.panels; first += many) {
      const int64_t panels = std::min(many, part.panel + part.panels - first), column = first * COLUMNS;
      std::fill(sums.data(), sums.data() + part.rows * pitch, 0.0f);
      for (int64_t from = 0; from < x.depth; from += DEPTH) {
        const int64_t units = std::min(DEPTH, x.depth - from);
        for (int64_t j = 0; j < panels; ++j) {
          const int64_t row = column + j * COLUMNS;
          pack_panel(reinterpret_cast<const uint32_t*>(w.data) + row * w.row + from * w.step, w.row, w.step,
                     std::min(COLUMNS, w.rows - row), units, packed.data() + j * size);
        }
        for_tiles(part.rows, [&](int64_t i, int64_t n) FGASEG_LAMBDA {
          const uint32_t* values = rows->data + (part.row + i) * rows->row + from * rows->step;
          pack_rows(values, rows->row, rows->step, n, units, left.data());
          for (int64_t j = 0; j < panels; ++j)
            tiles[n - 1]({left.data(), 1, ROWS_OF_TILE}, packed.data() + j * size, units,
                         sums.data() + i * pitch + j * COLUMNS, pitch, true);
        });
      }
      ending(sums.data(), pitch, part.row, part.rows, column, std::min(panels * COLUMNS, w.rows - column));
    }
  }

  // [units][ROWS_OF_TILE]
  FGASEG_INLINE static void pack_rows(const uint32_t* from, int64_t row, int64_t step, int64_t n, int64_t units,
                                      uint32_t* to) {
    if (row == 1 && n == ROWS_OF_TILE) {
      for (int64_t u = 0; u < units; ++u)
        std::memcpy(to + u * ROWS_OF_TILE, from + u * step, ROWS_OF_TILE * sizeof(uint32_t));
      return;
    }
    for (int64_t u = 0; u < units; ++u)
      for (int64_t r = 0; r < n; ++r) to[u * ROWS_OF_TILE + r] = from[r * row + u * step];
  }
};

// x + W2 activation(W1 LayerNorm(x) + b1) + b2
template <class T>
struct Mlp {
  Matrix<T> x, w1, w2;
  Norm norm;
  Form<T> form;
  const float* bias;  // of w1
  Activation activation;
  Ending<T> ending;

  FGASEG_INLINE void compute(int64_t first, int64_t last) const {
    const Tile* tiles = tiles_of(form.arithmetic);
    const int64_t units = x.depth / form.per_unit, inner = w1.rows / form.per_unit;
    const int64_t panels1 = panels_of(w1.rows), panels2 = panels_of(w2.rows);
    const int64_t size1 = units * COLUMNS, size2 = inner * COLUMNS, pitch1 = panels1 * COLUMNS;
    const int64_t pitch2 = panels2 * COLUMNS;
    Scratch<uint32_t> packed(panels1 * size1 + panels2 * size2), loaded(BLOCK * units), hidden(BLOCK * inner);
    Scratch<float> sums(BLOCK * std::max(pitch1, pitch2)), values(std::max(x.depth, w1.rows));
    uint32_t* packed2 = packed.data() + panels1 * size1;
    for (int64_t j = 0; j < panels1; ++j) pack(w1, form, j * COLUMNS, values.data(), packed.data() + j * size1);
    for (int64_t j = 0; j < panels2; ++j) pack(w2, form, j * COLUMNS, values.data(), packed2 + j * size2);
    for (int64_t i = first; i < last; i += BLOCK) {
      const int64_t n = std::min(BLOCK, last - i);
      for (int64_t r = 0; r < n; ++r) load_row(x, i + r, norm, form, values.data(), loaded.data() + r * units);
      multiply(tiles, loaded.data(), units, n, packed.data(), panels1, sums.data(), pitch1);
      activated(sums.data(), pitch1, n, hidden.data(), inner);
      multiply(tiles, hidden.data(), inner, n, packed2, panels2, sums.data(), pitch2);
      ending(sums.data(), pitch2, i, n, 0, w2.rows);
    }
  }

 private:
  FGASEG_INLINE static void multiply(const Tile* tiles, const uint32_t* rows, int64_t units, int64_t n,
                                     const uint32_t* packed, int64_t panels, float* sums, int64_t pitch) {
    for (int64_t j = 0; j < panels; ++j)
      for_tiles(n, [&](int64_t r, int64_t count) FGASEG_LAMBDA {
        tiles[count - 1]({rows + r * units, units}, packed + j * units * COLUMNS, units,
                         sums + r * pitch + j * COLUMNS, pitch, false);
      });
  }

  FGASEG_INLINE void activated(const float* sums, int64_t pitch, int64_t n, uint32_t* hidden, int64_t inner) const {
    with_activation(activation, [&](auto activate) FGASEG_LAMBDA {
      for (int64_t r = 0; r < n; ++r) {
        const float* s = sums + r * pitch;
        if (form.arithmetic == Arithmetic::bfloat16) {
          uint16_t* to = reinterpret_cast<uint16_t*>(hidden + r * inner);
          _Pragma("omp simd") for (int64_t j = 0; j < w1.rows; ++j) to[j] = to_bfloat16(activate(s[j] + bias[j]));
        } else {
          float* to = reinterpret_cast<float*>(hidden + r * inner);
          _Pragma("omp simd") for (int64_t j = 0; j < w1.rows; ++j) to[j] = activate(s[j] + bias[j]);
        }
      }
    });
  }
};

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                         \
  FGASEG_CLONES void compute(const Linear<T>& of, const Part& part) { of.compute(part); }                     \
  FGASEG_CLONES void compute(const Mlp<T>& of, int64_t first, int64_t last) { of.compute(first, last); }      \
  FGASEG_CLONES void load(const Matrix<T>& x, const Norm& norm, const Form<T>& form, int64_t first,           \
                          int64_t last, uint32_t* to) {                                                       \
    Scratch<float> values(x.depth);                                                                           \
    const int64_t units = x.depth / form.per_unit;                                                            \
    for (int64_t i = first; i < last; ++i) load_row(x, i, norm, form, values.data(), to + i * units);         \
  }
FGASEG_FOR(float)
FGASEG_FOR(uint16_t)
#undef FGASEG_FOR

template <class T>
void run(const Linear<T>& of, int64_t down, int64_t across) {
  const int64_t rows = of.x.rows, panels = panels_of(of.w.rows);
  torch::stable::parallel_for(0, down * across, 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t d = t / across, a = t % across, row = rows * d / down, panel = panels * a / across;
      compute(of, {row, rows * (d + 1) / down - row, panel, panels * (a + 1) / across - panel});
    }
  });
}

template <class T>
void run(Linear<T> of) {
  const int64_t panels = panels_of(of.w.rows), threads = torch::stable::get_num_threads();
  const int64_t down = cut_rows(of.x.rows, panels, threads);
  const int64_t across = std::clamp<int64_t>(threads / down, 1, panels);
  if (of.form.same() && !of.norm.weight)
    of.rows = Rows{reinterpret_cast<const uint32_t*>(of.x.data), of.x.row / of.form.per_unit, of.x.step};
  if (of.rows || (across == 1 && of.group(panels) == panels)) return run(of, down, across);
  // rows that several groups of panels read are loaded once for all of them
  Scratch<uint32_t> loaded(of.x.rows * of.units());
  const int64_t grain = 1 + 16384 / std::max<int64_t>(of.x.depth, 1);
  torch::stable::parallel_for(0, of.x.rows, grain, [&](int64_t begin, int64_t end) {
    load(of.x, of.norm, of.form, begin, end, loaded.data());
  });
  of.rows = Rows{loaded.data(), of.units()};
  run(of, down, across);
}

// A matrix whose rows can be read in units: of bfloat16 these are two adjacent values.
Tensor readable(const Tensor& x) {
  const bool half = x.scalar_type() != ScalarType::Float;
  return half && (x.stride(1) != 1 || x.stride(0) % 2) ? torch::stable::contiguous(x) : x;
}

}  // namespace

Tensor linear(const Tensor& x_, const Tensor& weight, const std::optional<Tensor>& bias_,
              const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias, double eps,
              std::string activation, const std::optional<Tensor>& residual_) {
  const Arguments call("linear", "x", x_, {ANY, ANY});
  call.single_or_bfloat16();
  call.tensor("weight", weight, {ANY, x_.size(1)});
  call.tensor("bias", bias_, {weight.size(0)});
  call.both_or_none(norm_weight, norm_bias);
  call.tensor("norm_weight", norm_weight, {x_.size(1)});
  call.tensor("norm_bias", norm_bias, {x_.size(1)});
  call.tensor("residual", residual_, {x_.size(0), weight.size(0)});
  const Tensor x = readable(x_), w = readable(weight);
  const Vector bias(bias_), scale(norm_weight), shift(norm_bias);
  const Activation activate = activation_named(activation);
  std::optional<Tensor> residual = residual_;
  if (residual && residual->stride(1) != 1) residual = torch::stable::contiguous(*residual);
  Tensor y = torch::stable::new_empty(x, {x.size(0), w.size(0)});
  if (y.numel() == 0) return y;
  for_storage(x, [&](auto type) {
    using T = decltype(type);
    const Ending<T> ending = ending_of<T>(bias, activate, residual ? &*residual : nullptr, y);
    const Norm norm{scale.data, shift.data, float(eps)};
    run(Linear<T>{Matrix<T>(x), Matrix<T>(w), norm, Form<T>(x.size(1) % 2 == 0), ending});
  });
  return y;
}

namespace {

Tensor mlp(const Tensor& x_, const Tensor& norm_weight, const Tensor& norm_bias, double eps, const Tensor& weight1,
           const Tensor& bias1, const Tensor& weight2, const Tensor& bias2, std::string activation) {
  const Arguments call("mlp", "x", x_, {ANY, ANY});
  call.single_or_bfloat16();
  call.tensor("norm_weight", norm_weight, {x_.size(1)});
  call.tensor("norm_bias", norm_bias, {x_.size(1)});
  call.tensor("weight1", weight1, {ANY, x_.size(1)});
  call.tensor("bias1", bias1, {weight1.size(0)});
  call.tensor("weight2", weight2, {x_.size(1), weight1.size(0)});
  call.tensor("bias2", bias2, {x_.size(1)});
  const int64_t bytes = sizeof(float) * 2 * weight1.numel();
  const bool large = bytes > (x_.scalar_type() == ScalarType::Float ? MLP_BYTES : 2 * MLP_BYTES);
  if (large || weight1.size(0) == 0) {  // a product over nothing leaves the sums of a block as they were
    const Tensor hidden = linear(x_, weight1, bias1, norm_weight, norm_bias, eps, activation, {});
    return linear(hidden, weight2, bias2, {}, {}, 0, "none", x_);
  }
  const Tensor x = readable(x_), w1 = readable(weight1), w2 = readable(weight2);
  const Tensor residual = x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  const Vector b1(bias1), b2(bias2), scale(norm_weight), shift(norm_bias);
  const Activation activate = activation_named(activation);
  Tensor y = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  for_storage(x, [&](auto type) {
    using T = decltype(type);
    const Norm norm{scale.data, shift.data, float(eps)};
    const Form<T> form(x.size(1) % 2 == 0 && w1.size(0) % 2 == 0);
    const Mlp<T> of{Matrix<T>(x), Matrix<T>(w1), Matrix<T>(w2), norm, form, b1.data, activate,
                    ending_of<T>(b2, Activation::none, &residual, y)};
    const int64_t grain = std::max<int64_t>(BLOCK, (1 << 20) / std::max<int64_t>(2 * weight1.numel(), 1));
    torch::stable::parallel_for(0, x.size(0), grain, [&](int64_t begin, int64_t end) { compute(of, begin, end); });
  });
  return y;
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("linear_cpp", TORCH_BOX(&fgaseg::linear));
  m.impl("mlp_cpp", TORCH_BOX(&fgaseg::mlp));
}
