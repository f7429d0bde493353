// embed_maps and score_maps on a CPU: the convolutions of the model with a single channel on one side.
//
// A row of a map of one channel is a Toeplitz matrix: the taps of a kernel's row are adjacent, and the next pixel's begin
// one element later. So embed_maps is the product of common/product.h with rows that overlap, one tap for every row of the
// kernel. score_maps has a single output, which leaves nothing to share: sums of products along the channels.
#include <algorithm>

#include "common/arguments.h"
#include "common/product.h"

namespace fgaseg {
namespace {

bool is_bfloat16(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16; }

// x as float32, or bfloat16 as it is; contiguous.
Tensor stored(const Tensor& x) {
  if (!is_bfloat16(x)) return prepared(x);
  return x.is_contiguous() ? x : torch::stable::contiguous(x);
}

// Calls f with a float or, for bfloat16, a uint16_t.
template <class F>
void for_storage(const Tensor& x, const F& f) {
  if (is_bfloat16(x))
    f(uint16_t());
  else
    f(float());
}

struct Embedding {
  int64_t height, width, size, hidden;  // size of the kernels
  const float *panels, *bias;           // panels [hidden / 32][size * size][32]
  int64_t padded() const { return width + size - 1; }
};

// One map with its frame of zeros, from which rows of the result are computed.
template <class T>
FGASEG_INLINE void frame(const Embedding& e, const T* map, float* to) {
  std::fill(to, to + (e.height + e.size - 1) * e.padded(), 0.0f);
  for (int64_t y = 0; y < e.height; ++y)
    for (int64_t x = 0; x < e.width; ++x)
      to[(y + e.size / 2) * e.padded() + x + e.size / 2] = to_float(map[y * e.width + x]);
}

template <class T>
FGASEG_INLINE void embed_row(const Embedding& e, const float* framed, const Rows& taps, float* sums, int64_t y, T* to) {
  static const Tile* const tiles = tiles_of(Arithmetic::float32);
  Rows rows = taps;
  for_tiles(e.width, [&](int64_t x, int64_t count) FGASEG_LAMBDA {
    rows.data = reinterpret_cast<const uint32_t*>(framed + y * e.padded() + x);
    for (int64_t first = 0; first < e.hidden; first += COLUMNS) {
      const float* panel = e.panels + first * e.size * e.size;
      tiles[count - 1](rows, reinterpret_cast<const uint32_t*>(panel), e.size, sums, COLUMNS, false);
      const int64_t columns = std::min(COLUMNS, e.hidden - first);
      for (int64_t i = 0; i < count; ++i) {
        T* pixel = to + (y * e.width + x + i) * e.hidden + first;
        _Pragma("omp simd") for (int64_t c = 0; c < columns; ++c)
          from_float(sums[i * COLUMNS + c] + e.bias[first + c], pixel[c]);
      }
    }
  });
}

// Rows [begin, end) of all maps.
template <class T>
FGASEG_INLINE void embed(const Embedding& e, const T* maps, int64_t begin, int64_t end, float* framed, T* y) {
  std::vector<int64_t> taps(e.size);
  for (int64_t k = 0; k < e.size; ++k) taps[k] = k * e.padded();
  const Rows rows{nullptr, 1, 1, taps.data(), e.size};
  alignas(64) float sums[ROWS_OF_TILE * COLUMNS];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t map = i / e.height, pixels = e.height * e.width;
    if (i == begin || i % e.height == 0) frame(e, maps + map * pixels, framed);
    embed_row(e, framed, rows, sums, i % e.height, y + map * pixels * e.hidden);
  }
}

struct Scoring {
  int64_t height, width, channels;
  const float* weight;  // [3][3][channels]
  float bias;
};

// Adds the row `from` of the input, times the three taps of the kernel's row, to sums [width][lanes].
template <class T, int64_t L>
FGASEG_INLINE void add_taps(const Scoring& s, const T* from, const float* taps, int64_t first, float* sums) {
  const int64_t n = s.channels;
  const T* x = from + first;
  const float *left = taps + first, *middle = left + n, *right = middle + n;
  const auto add = [&](int64_t i, int64_t begin, int64_t end) FGASEG_LAMBDA {
    for (; begin < end; ++begin) {
      const float* w = begin < i ? left : begin == i ? middle : right;
      _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) sums[i * L + j] += to_float(x[begin * n + j]) * w[j];
    }
  };
  if (s.width < 3) {
    for (int64_t i = 0; i < s.width; ++i) add(i, std::max<int64_t>(i - 1, 0), std::min(i + 2, s.width));
    return;
  }
  add(0, 0, 2);
  for (int64_t i = 1; i + 1 < s.width; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < L; ++j) sums[i * L + j] +=
        to_float(x[(i - 1) * n + j]) * left[j] + to_float(x[i * n + j]) * middle[j] + to_float(x[(i + 1) * n + j]) * right[j];
  add(s.width - 1, s.width - 2, s.width);
}

template <class T>
FGASEG_INLINE void score(const Scoring& s, const T* maps, int64_t begin, int64_t end, float* sums, T* scores) {
  constexpr int64_t L = LANES<float>;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t y = i % s.height, row = s.width * s.channels;
    std::fill(sums, sums + s.width * L, 0.0f);
    for (int64_t k = std::max<int64_t>(1 - y, 0); k < std::min<int64_t>(3, s.height + 1 - y); ++k) {
      const T* from = maps + (i + k - 1) * row;
      const float* taps = s.weight + k * 3 * s.channels;
      int64_t c = 0;
      for (; c + L <= s.channels; c += L) add_taps<T, L>(s, from, taps, c, sums);
      for (; c < s.channels; ++c)  // single channels, in the first lanes
        for (int64_t x = 0; x < s.width; ++x)
          for (int64_t j = std::max<int64_t>(1 - x, 0); j < std::min<int64_t>(3, s.width + 1 - x); ++j)
            sums[x * L] += to_float(from[(x + j - 1) * s.channels + c]) * taps[j * s.channels + c];
    }
    for (int64_t x = 0; x < s.width; ++x) {
      float sum = 0;
      _Pragma("omp simd reduction(+ : sum)") for (int64_t j = 0; j < L; ++j) sum += sums[x * L + j];
      from_float(sum + s.bias, scores[i * s.width + x]);
    }
  }
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T)                                                                                           \
  FGASEG_CLONES void embed_rows(const Embedding& e, const T* x, int64_t begin, int64_t end, float* s, T* y) {   \
    embed(e, x, begin, end, s, y);                                                                              \
  }                                                                                                             \
  FGASEG_CLONES void score_rows(const Scoring& s, const T* x, int64_t begin, int64_t end, float* sums, T* y) {  \
    score(s, x, begin, end, sums, y);                                                                           \
  }
FGASEG_FOR(float)
FGASEG_FOR(uint16_t)
#undef FGASEG_FOR

Tensor embed_maps(const Tensor& maps_, const Tensor& weight_, const Tensor& bias_) {
  const Arguments call("embed_maps", "maps", maps_, {ANY, SOME, SOME});
  call.not_double();
  call.require(weight_.dim() == 4, "weight must be [D, 1, K, K]");
  call.kernel_size(weight_.size(3));
  call.tensor("weight", weight_, {SOME, 1, weight_.size(3), weight_.size(3)});
  call.tensor("bias", bias_, {weight_.size(0)});
  const Tensor maps = stored(maps_), weight = prepared(weight_), bias = prepared(bias_);
  Embedding e{maps.size(1), maps.size(2), weight.size(2), weight.size(0), nullptr, data<float>(bias)};
  const int64_t taps = e.size * e.size;
  Scratch<float> panels(panels_of(e.hidden) * taps * COLUMNS);
  for (int64_t first = 0; first < e.hidden; first += COLUMNS)
    pack_panel(reinterpret_cast<const uint32_t*>(data<float>(weight) + first * taps), taps, 1,
               std::min(COLUMNS, e.hidden - first), taps, reinterpret_cast<uint32_t*>(panels.data() + first * taps));
  e.panels = panels.data();
  Tensor y = torch::stable::new_empty(maps, {maps.size(0), e.height, e.width, e.hidden});
  for_storage(maps, [&](auto type) {
    using T = decltype(type);
    T* to = mutable_data<T>(y);
    const int64_t grain = 1 + 65536 / (e.width * e.hidden * taps);
    torch::stable::parallel_for(0, maps.size(0) * e.height, grain, [&](int64_t begin, int64_t end) {
      Scratch<float> framed((e.height + e.size - 1) * e.padded());
      embed_rows(e, data<T>(maps), begin, end, framed.data(), to);
    });
  });
  return finished(y, maps_);
}

Tensor score_maps(const Tensor& x_, const Tensor& weight_, const Tensor& bias_) {
  const Arguments call("score_maps", "x", x_, {ANY, SOME, SOME, SOME});
  call.not_double();
  call.tensor("weight", weight_, {1, x_.size(3), 3, 3});
  call.tensor("bias", bias_, {1});
  const Tensor x = stored(x_), weight = prepared(weight_), bias = prepared(bias_);
  const int64_t channels = x.size(3);
  std::vector<float> taps(9 * channels);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t k = 0; k < 9; ++k) taps[k * channels + c] = data<float>(weight)[c * 9 + k];
  const Scoring s{x.size(1), x.size(2), channels, taps.data(), *data<float>(bias)};
  Tensor y = torch::stable::new_empty(x, {x.size(0), s.height, s.width});
  for_storage(x, [&](auto type) {
    using T = decltype(type);
    T* to = mutable_data<T>(y);
    const int64_t grain = 1 + 65536 / (s.width * channels * 9);
    torch::stable::parallel_for(0, x.size(0) * s.height, grain, [&](int64_t begin, int64_t end) {
      Scratch<float> sums(s.width * LANES<float>);
      score_rows(s, data<T>(x), begin, end, sums.data(), to);
    });
  });
  return finished(y, x_);
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("embed_maps_cpp", TORCH_BOX(&fgaseg::embed_maps));
  m.impl("score_maps_cpp", TORCH_BOX(&fgaseg::score_maps));
}
