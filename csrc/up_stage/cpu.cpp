// up_stage on a CPU: a transposed convolution and two [3x3 convolution, GroupNorm, ReLU] in three passes over the maps.
//
//  1. y1 = conv1(up(x)) + guidance: the rows of up(x) are computed where the convolution reads them
//  2. y2 = conv2(relu(norm1(y1))): normalised where the convolution reads them
//  3. relu(norm2(y2))
//
// A pass is parallel over pairs of rows of all maps, so that few maps use many cores. The means and variances that a
// norm needs are added up pair by pair, in an order that does not depend on the threads.
#include <algorithm>
#include <cmath>
#include <optional>

#include "common/arguments.h"
#include "common/moments.h"
#include "winograd.h"

namespace fgaseg {
namespace {

// T: of x, guidance and the result, and of what is multiplied.
template <class T>
struct Stage {
  int64_t maps, maps_per_image, height, width, inputs, middle, outputs, groups;  // height and width of x
  Convolution<T> first, second;
  const T *x, *up_weight, *guidance;
  const float* up_bias;
  int64_t pairs() const { return height; }  // of rows of the result
  int64_t row_size() const { return 2 * width * outputs; }
};

// GroupNorm of a map from the moments of its pairs of rows, as y -> scale * y + shift for every channel.
template <class T>
void affine(const Moments* parts, const Stage<T>& s, const float* weight, const float* bias, double eps, float* scale,
            float* shift) {
  const int64_t size = s.outputs / s.groups, count = s.pairs();
  const double values = 4.0 * s.width * size;  // of a group in two rows
  for (int64_t g = 0; g < s.groups; ++g) {
    const auto [mean, squares] = together(parts + g, count, s.groups, [=](int64_t) { return values; });
    const double inverse = 1 / std::sqrt(squares / (values * count) + eps);
    for (int64_t c = g * size; c < (g + 1) * size; ++c) {
      scale[c] = weight[c] * inverse;
      shift[c] = bias[c] - mean * inverse * weight[c];
    }
  }
}

template <class T>
FGASEG_INLINE void normalise(const float* from, const float* scale, const float* shift, int64_t pixels, int64_t channels,
                             T* to, int64_t pitch) {
  for (int64_t i = 0; i < pixels; ++i)
    _Pragma("omp simd") for (int64_t c = 0; c < channels; ++c) {
      const float y = scale[c] * from[i * channels + c] + shift[c];
      from_float(0 > y ? 0 : y, to[i * pitch + c]);  // NaN stays
    }
}

// Scratch memory of one thread: the last four input rows of a convolution, and what a row of tiles needs.
template <class T>
struct Work {
  explicit Work(const Convolution<T>& conv, int64_t outputs)
      : row((conv.width + 2) * conv.inputs),
        rows_(4 * row),
        v_(PLANES * conv.plane()),
        m_(PLANES * ROWS_OF_TILE * COLUMNS),
        sums_(2 * outputs) {}
  float* ring(int64_t y) { return rows_.data() + (y & 3) * row; }  // y from -1
  int64_t row;
  T* v() { return v_.data(); }
  float* m() { return m_.data(); }
  float* sums() { return sums_.data(); }

 private:
  Aligned<float> rows_;
  Aligned<T> v_;
  Aligned<float> m_, sums_;
};

// A row of up(x), with an empty pixel before it and behind it.
template <class T>
FGASEG_INLINE void up_row(const Stage<T>& s, int64_t map, int64_t y, Work<T>& w) {
  float* to = w.ring(y) + s.first.inputs;
  const int64_t columns = 2 * s.first.inputs;  // both pixels that come from one
  const T* x = s.x + (map * s.height + y / 2) * s.width * s.inputs;
  for (int64_t n = 0; n < columns; n += COLUMNS) {
    const T* panel = s.up_weight + ((y & 1) * columns + n) * s.inputs;
    for_tiles(s.width, [&](int64_t i, int64_t count) FGASEG_LAMBDA {
      multiply(count, x + i * s.inputs, s.inputs, panel, s.inputs, w.m());
      for (int64_t r = 0; r < count; ++r)
        _Pragma("omp simd") for (int64_t c = 0; c < COLUMNS; ++c) to[(i + r) * columns + n + c] =
            w.m()[r * COLUMNS + c] + s.up_bias[n + c];
    });
  }
}

// The convolution of pairs of rows [begin, end) of all maps; load(map, y) puts row y of the input into the ring.
template <class T, class Load>
FGASEG_INLINE void pass(const Stage<T>& s, const Convolution<T>& conv, const T* guidance, int64_t begin, int64_t end,
                        Work<T>& w, const Load& load, float* y, Moments* parts) {
  const int64_t pairs = s.pairs(), size = 2 * s.row_size();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t map = i / pairs, pair = i % pairs;
    const bool continues = i > begin && pair > 0;
    const float* rows[4];
    for (int64_t k = 0; k < 4; ++k) {
      const int64_t row = 2 * pair - 1 + k;
      rows[k] = w.ring(row);
      if (continues && k < 2) continue;
      if (row < 0 || row >= 2 * pairs)
        std::fill(w.ring(row), w.ring(row) + w.row, 0.0f);
      else
        load(map, row);
    }
    const T* g = guidance ? guidance + (map / s.maps_per_image * pairs + pair) * size : nullptr;
    convolve(rows, conv, g, w.v(), w.m(), y + i * size);
    moments(y + i * size, 2 * conv.width, s.outputs, s.groups, w.sums(), parts + i * s.groups);
  }
}

template <class T>
FGASEG_INLINE void normalised_pass(const Stage<T>& s, const float* y1, const float* scale, const float* shift,
                                   int64_t begin, int64_t end, Work<T>& w, float* y, Moments* parts) {
  const int64_t channels = s.second.inputs;
  const auto load = [&](int64_t map, int64_t row) FGASEG_LAMBDA {
    normalise(y1 + (map * 2 * s.pairs() + row) * s.row_size(), scale + map * s.outputs, shift + map * s.outputs,
              2 * s.width, s.outputs, w.ring(row) + channels, channels);
  };
  pass<T>(s, s.second, nullptr, begin, end, w, load, y, parts);
}

template <class T>
FGASEG_INLINE void transform_weights(const float* weight, int64_t stride, const Convolution<T>& conv, int64_t inputs,
                                     int64_t begin, int64_t end, T* to) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i / inputs * LANES<float>, c = i % inputs;
    T* panel = to + first / COLUMNS * conv.panel_size();
    transform_weight(weight, stride, conv, first, c, panel + in_panel<T>(c, first % COLUMNS));
  }
}

// [inputs, middle, 2, 2] -> [2 of y][panels][inputs][32], the columns of a y ordered [2 of x][middle, padded]
template <class T>
FGASEG_INLINE void pack_up_rows(const float* weight, const Stage<T>& s, int64_t begin, int64_t end, T* to) {
  const int64_t padded = s.first.inputs;
  for (int64_t k = begin; k < end; ++k)
    for (int64_t i = 0; i < 4; ++i)
      for (int64_t c = 0; c < s.middle; c += LANES<float>) {
        const int64_t column = i / 2 * 2 * padded + i % 2 * padded + c, panel = column / COLUMNS;
        T* at = to + panel * COLUMNS * s.inputs + in_panel<T>(k, column % COLUMNS);
        const float* from = weight + (k * s.middle + c) * 4 + i;
        const int64_t count = std::min(LANES<float>, s.middle - c);
        _Pragma("omp simd") for (int64_t j = 0; j < count; ++j) from_float(from[4 * j], at[j * PER_UNIT<T>]);
      }
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                                   \
  FGASEG_CLONES void first_pass(const Stage<T>& s, int64_t begin, int64_t end, Work<T>& w, float* y, Moments* parts) {  \
    const auto load = [&](int64_t map, int64_t row) FGASEG_LAMBDA { up_row(s, map, row, w); };                          \
    pass<T>(s, s.first, s.guidance, begin, end, w, load, y, parts);                                                     \
  }                                                                                                                     \
  FGASEG_CLONES void second_pass(const Stage<T>& s, const float* y1, const float* scale, const float* shift,            \
                                 int64_t begin, int64_t end, Work<T>& w, float* y, Moments* parts) {                    \
    normalised_pass(s, y1, scale, shift, begin, end, w, y, parts);                                                      \
  }                                                                                                                     \
  FGASEG_CLONES void last_pass(const Stage<T>& s, const float* y2, const float* scale, const float* shift,              \
                               int64_t begin, int64_t end, T* y) {                                                      \
    const int64_t size = 2 * s.row_size();                                                                              \
    for (int64_t i = begin; i < end; ++i) {                                                                             \
      const int64_t c = i / s.pairs() * s.outputs;                                                                      \
      normalise(y2 + i * size, scale + c, shift + c, 4 * s.width, s.outputs, y + i * size, s.outputs);                  \
    }                                                                                                                   \
  }                                                                                                                     \
  FGASEG_CLONES void pack_conv(const float* weight, int64_t stride, const Convolution<T>& conv, int64_t inputs,         \
                               int64_t begin, int64_t end, T* to) {                                                     \
    transform_weights(weight, stride, conv, inputs, begin, end, to);                                                    \
  }                                                                                                                     \
  FGASEG_CLONES void pack_up(const float* weight, const Stage<T>& s, int64_t begin, int64_t end, T* to) {               \
    pack_up_rows(weight, s, begin, end, to);                                                                            \
  }
FGASEG_FOR(float)
FGASEG_FOR(uint16_t)
#undef FGASEG_FOR

template <class T>
void pack(const Tensor& weight, Convolution<T>& conv, Aligned<T>& to) {
  const int64_t inputs = weight.size(1), vectors = whole_vectors(conv.outputs, LANES<float>) / LANES<float>;
  torch::stable::parallel_for(0, vectors * inputs, 16, [&](int64_t begin, int64_t end) {
    pack_conv(data<float>(weight), weight.stride(0), conv, inputs, begin, end, to.data());
  });
  conv.weight = to.data();
}

// x in float32, with contiguous taps of every kernel.
Tensor kernels_of(const Tensor& weight) {
  const Tensor y = weight.scalar_type() == ScalarType::Float ? weight : torch::stable::to(weight, ScalarType::Float);
  return y.stride(3) == 1 && y.stride(2) == 3 && y.stride(1) == 9 ? y : torch::stable::contiguous(y);
}

struct Parameters {
  Tensor up, up_bias, conv1, norm1, norm1_bias, conv2, norm2, norm2_bias;
};

// The weights in the forms in which they are multiplied.
template <class T>
struct Packed {
  Aligned<T> up, conv1, conv2;
  Aligned<float> up_bias;

  Packed(const Parameters& p, Stage<T>& s)
      : up(4 * s.first.inputs * s.inputs),
        conv1(s.first.panels() * s.first.panel_size()),
        conv2(s.second.panels() * s.second.panel_size()),
        up_bias(2 * s.first.inputs) {
    pack(p.conv1, s.first, conv1);
    pack(p.conv2, s.second, conv2);
    torch::stable::parallel_for(0, s.inputs / PER_UNIT<T>, 16, [&](int64_t begin, int64_t end) {
      pack_up(data<float>(p.up), s, begin * PER_UNIT<T>, end * PER_UNIT<T>, up.data());
    });
    const float* bias = data<float>(p.up_bias);
    for (int64_t i = 0; i < 2; ++i) std::copy(bias, bias + s.middle, up_bias.data() + i * s.first.inputs);
    s.up_weight = up.data(), s.up_bias = up_bias.data();
  }
};

template <class T>
Stage<T> stage_of(const Tensor& x, const Tensor& guidance, const Tensor& conv1, int64_t groups) {
  Stage<T> s{};
  s.maps = x.size(0), s.height = x.size(1), s.width = x.size(2), s.inputs = x.size(3);
  s.outputs = conv1.size(0), s.middle = conv1.size(1), s.groups = groups;
  s.first = {2 * s.width, whole_vectors(s.middle, LANES<float>), s.outputs, nullptr};
  s.second = {2 * s.width, whole_vectors(s.outputs, LANES<float>), s.outputs, nullptr};
  s.x = data<T>(x);
  s.maps_per_image = s.maps;
  if (guidance.defined()) {
    s.guidance = data<T>(guidance);
    s.maps_per_image = s.maps / std::max<int64_t>(guidance.size(0), 1);
  }
  return s;
}

// y1, y2 [maps, 2H, 2W, outputs] float32, y the same in T; y may be y2
template <class T>
void run(Stage<T> s, const Parameters& p, double eps, float* y1, float* y2, T* y) {
  const Packed<T> packed(p, s);
  const int64_t rows = s.maps * s.pairs();
  std::vector<Moments> parts(rows * s.groups);
  std::vector<float> scale(s.maps * s.outputs), shift(s.maps * s.outputs);
  const auto norm = [&](const Tensor& weight, const Tensor& bias) {
    for (int64_t map = 0; map < s.maps; ++map)
      affine(parts.data() + map * s.pairs() * s.groups, s, data<float>(weight), data<float>(bias), eps,
             scale.data() + map * s.outputs, shift.data() + map * s.outputs);
  };
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    Work<T> work(s.first, s.outputs);
    first_pass(s, begin, end, work, y1, parts.data());
  });
  norm(p.norm1, p.norm1_bias);
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    Work<T> work(s.second, s.outputs);
    second_pass(s, y1, scale.data(), shift.data(), begin, end, work, y2, parts.data());
  });
  norm(p.norm2, p.norm2_bias);
  torch::stable::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    last_pass(s, y2, scale.data(), shift.data(), begin, end, y);
  });
}

void check(const Tensor& x, const std::optional<Tensor>& guidance, const Tensor& up, const Tensor& up_bias,
           const Tensor& conv1, const Tensor& norm1, const Tensor& norm1_bias, const Tensor& conv2, const Tensor& norm2,
           const Tensor& norm2_bias, int64_t groups) {
  const Arguments call("up_stage", "x", x, {ANY, SOME, SOME, SOME});
  call.not_double();
  call.tensor("up_weight", up, {x.size(3), SOME, 2, 2});
  call.tensor("up_bias", up_bias, {up.size(1)});
  call.tensor("weight1", conv1, {SOME, up.size(1), 3, 3});
  const int64_t outputs = conv1.size(0);
  call.tensor("weight2", conv2, {outputs, outputs, 3, 3});
  call.tensor("norm1_weight", norm1, {outputs});
  call.tensor("norm1_bias", norm1_bias, {outputs});
  call.tensor("norm2_weight", norm2, {outputs});
  call.tensor("norm2_bias", norm2_bias, {outputs});
  call.tensor("guidance", guidance, {ANY, times(2, x.size(1)), times(2, x.size(2)), outputs});
  if (guidance) call.rows_of_images(x.size(0), guidance->size(0));
  call.require(groups >= 1 && outputs % groups == 0, "groups must divide the output channels");
}

Tensor up_stage(const Tensor& x_, std::optional<Tensor> guidance_, const Tensor& up, const Tensor& up_bias,
                const Tensor& conv1, const Tensor& norm1, const Tensor& norm1_bias, const Tensor& conv2,
                const Tensor& norm2, const Tensor& norm2_bias, int64_t groups, double eps) {
  check(x_, guidance_, up, up_bias, conv1, norm1, norm1_bias, conv2, norm2, norm2_bias, groups);
  const Parameters p{prepared(up),      prepared(up_bias),     kernels_of(conv1), prepared(norm1), prepared(norm1_bias),
                     kernels_of(conv2), prepared(norm2), prepared(norm2_bias)};
  const bool native = x_.scalar_type() == ScalarType::BFloat16 && x_.size(3) % 2 == 0 &&
                      product_of_bfloat16() == Arithmetic::bfloat16;
  const auto stored = [&](const Tensor& t) { return native ? torch::stable::contiguous(t) : prepared(t); };
  const Tensor x = stored(x_), guidance = guidance_ ? stored(*guidance_) : Tensor();
  const int64_t sizes[] = {x.size(0), 2 * x.size(1), 2 * x.size(2), conv1.size(0)};
  Tensor y1 = torch::stable::new_empty(p.norm1, sizes), y2 = torch::stable::new_empty(p.norm1, sizes);
  float *maps1 = mutable_data<float>(y1), *maps2 = mutable_data<float>(y2);
  if (!native) {
    run(stage_of<float>(x, guidance, p.conv1, groups), p, eps, maps1, maps2, maps2);
    return finished(y2, x_);
  }
  Tensor y = torch::stable::new_empty(x, sizes);
  run(stage_of<uint16_t>(x, guidance, p.conv1, groups), p, eps, maps1, maps2, mutable_data<uint16_t>(y));
  return y;
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("up_stage_cpp", TORCH_BOX(&fgaseg::up_stage));
}
