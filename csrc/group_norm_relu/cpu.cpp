// group_norm_relu on a CPU. A map is cut into blocks of pixels that fit into the first-level cache:
//
//  forward   moments of every block, which are combined; then every block is normalised
//  backward  sums of g and g u over the pixels of every block (g: the gradient, 0 where ReLU cut off, u: the normalised
//            x), which are added up; then every block gets its gradient
//
// With fewer maps than threads a map is shared out by its blocks. What a block gives does not depend on the threads, and
// blocks and maps are added up in order.
#include <cmath>
#include <limits>

#include "common/arguments.h"
#include "common/library.h"
#include "common/moments.h"
#include "common/storage.h"

namespace fgaseg {
namespace {

constexpr int64_t ELEMENTS = 2048;  // of a block; in backward four arrays of so many stay in the first-level cache

// T: computed in, S: of the maps in memory.
template <class T, class S>
struct Norm {
  int64_t maps, pixels, channels, groups;
  bool relu;
  Tensor x_, weight_, bias_;
  const S* x;
  const T *weight, *bias;

  Norm(const Tensor& x__, const Tensor& w, const Tensor& b, int64_t groups_, bool relu_)
      : maps(x__.size(0)),
        pixels(x__.size(1) * x__.size(2)),
        channels(x__.size(3)),
        groups(groups_),
        relu(relu_),
        x_(stored_rows(x__)),
        weight_(prepared(w)),
        bias_(prepared(b)),
        x(data<S>(x_)),
        weight(data<T>(weight_)),
        bias(data<T>(bias_)) {}

  static Tensor stored_rows(const Tensor& x) {
    const Tensor y = readable(x);
    return y.is_contiguous() ? y : torch::stable::contiguous(y);
  }
  int64_t size() const { return channels / groups; }
  int64_t block() const { return std::max<int64_t>(ELEMENTS / channels, 1); }
  int64_t blocks() const { return (pixels + block() - 1) / block(); }
  int64_t pixels_of(int64_t b) const { return std::min(block(), pixels - b * block()); }
  int64_t offset(int64_t map, int64_t b) const { return (map * pixels + b * block()) * channels; }
  int64_t scratch() const { return 2 * block() * channels + 2 * channels; }
};

// Of a map, for every channel: u = (x - mean) * inverse, y = u * weight + bias.
template <class T>
struct Channels {
  explicit Channels(int64_t n) : size(n), values_(5 * n) {}
  T* mean() { return values_.data(); }
  T* inverse() { return values_.data() + size; }
  T* scale() { return values_.data() + 2 * size; }  // inverse * weight
  T* offset() { return values_.data() + 3 * size; }  // what is taken from g * weight ...
  T* slope() { return values_.data() + 4 * size; }   // ... and, times u, in backward
  int64_t size;

 private:
  Aligned<T> values_;
};

template <class T, class S>
FGASEG_INLINE void block_moments(const Norm<T, S>& n, int64_t map, int64_t b, T* scratch, Moments* to) {
  const S* x = n.x + n.offset(map, b);
  const int64_t pixels = n.pixels_of(b), count = pixels * n.channels;
  T *values = scratch, *sums = scratch + 2 * n.block() * n.channels;
  if constexpr (std::is_same_v<T, S>) {
    moments(x, pixels, n.channels, n.groups, sums, to);
  } else {
    _Pragma("omp simd") for (int64_t i = 0; i < count; ++i) values[i] = loaded<T>(x[i]);
    moments(values, pixels, n.channels, n.groups, sums, to);
  }
}

template <class T, class S>
FGASEG_INLINE void block_forward(const Norm<T, S>& n, int64_t map, int64_t b, Channels<T>& c, S* y) {
  const int64_t at = n.offset(map, b), pixels = n.pixels_of(b), channels = n.channels;
  const S* x = n.x + at;
  const T *mean = c.mean(), *scale = c.scale(), *bias = n.bias, least = n.relu ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < pixels; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < channels; ++j) {
      const T z = (loaded<T>(x[i * channels + j]) - mean[j]) * scale[j] + bias[j];
      y[at + i * channels + j] = stored<S>(least > z ? least : z);  // NaN stays
    }
}

// g, which is 0 where ReLU cut off, and u of one element
template <class T>
FGASEG_INLINE T gradient(T g, T u, T weight, T bias, T least) {
  return u * weight + bias <= least ? T(0) : g;
}

template <class T, class S>
FGASEG_INLINE void block_sums(const Norm<T, S>& n, const S* grad, int64_t map, int64_t b, Channels<T>& c, T* scratch,
                              T* sums) {
  const int64_t at = n.offset(map, b), pixels = n.pixels_of(b), channels = n.channels;
  const S *x = n.x + at, *g_ = grad + at;
  T *g = scratch, *gu = scratch + n.block() * channels;
  const T *mean = c.mean(), *inverse = c.inverse(), *weight = n.weight, *bias = n.bias;
  const T least = n.relu ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < pixels; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < channels; ++j) {
      const int64_t k = i * channels + j;
      const T u = (loaded<T>(x[k]) - mean[j]) * inverse[j];
      g[k] = gradient(loaded<T>(g_[k]), u, weight[j], bias[j], least);
      gu[k] = g[k] * u;
    }
  for (int64_t j = 0; j < channels; j += LANES<T>) {
    const int64_t count = std::min(LANES<T>, channels - j);
    over_pixels(pixels, j, count, sums, [=](int64_t i, int64_t k) FGASEG_LAMBDA { return g[i * channels + k]; });
    over_pixels(pixels, j, count, sums + channels, [=](int64_t i, int64_t k) FGASEG_LAMBDA {
      return gu[i * channels + k];
    });
  }
}

template <class T, class S>
FGASEG_INLINE void block_backward(const Norm<T, S>& n, const S* grad, int64_t map, int64_t b, Channels<T>& c, S* dx) {
  const int64_t at = n.offset(map, b), pixels = n.pixels_of(b), channels = n.channels;
  const T *mean = c.mean(), *inverse = c.inverse(), *offset = c.offset(), *slope = c.slope();
  const T *weight = n.weight, *bias = n.bias, least = n.relu ? T(0) : -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < pixels; ++i)
    _Pragma("omp simd") for (int64_t j = 0; j < channels; ++j) {
      const int64_t k = at + i * channels + j;
      const T u = (loaded<T>(n.x[k]) - mean[j]) * inverse[j];
      const T g = gradient(loaded<T>(grad[k]), u, weight[j], bias[j], least);
      dx[k] = stored<S>((g * weight[j] - offset[j] - u * slope[j]) * inverse[j]);
    }
}

// target_clones needs functions that are not templates.
#define FGASEG_FOR(T, S)                                                                                             \
  FGASEG_CLONES void moments_of(const Norm<T, S>& n, int64_t map, int64_t b, T* scratch, Moments* to) {              \
    block_moments(n, map, b, scratch, to);                                                                           \
  }                                                                                                                  \
  FGASEG_CLONES void normalise(const Norm<T, S>& n, int64_t map, int64_t b, Channels<T>& c, S* y) {                  \
    block_forward(n, map, b, c, y);                                                                                  \
  }                                                                                                                  \
  FGASEG_CLONES void sums_of(const Norm<T, S>& n, const S* grad, int64_t map, int64_t b, Channels<T>& c, T* scratch, \
                             T* sums) {                                                                              \
    block_sums(n, grad, map, b, c, scratch, sums);                                                                   \
  }                                                                                                                  \
  FGASEG_CLONES void backward(const Norm<T, S>& n, const S* grad, int64_t map, int64_t b, Channels<T>& c, S* dx) {   \
    block_backward(n, grad, map, b, c, dx);                                                                          \
  }
FGASEG_FOR(float, float)
FGASEG_FOR(float, uint16_t)
FGASEG_FOR(double, double)
#undef FGASEG_FOR

// For every map: begin(map, work), first(map, block, work, scratch) for all blocks, middle(map, work), and last likewise.
template <class Work, class T, class S, class Begin, class First, class Middle, class Last>
void for_maps(const Norm<T, S>& n, const Begin& begin_map, const First& first, const Middle& middle, const Last& last) {
  const auto run = [&](int64_t map, Work& work, const auto& over_blocks) {
    begin_map(map, work);
    over_blocks([&](int64_t b, T* scratch) { first(map, b, work, scratch); });
    middle(map, work);
    over_blocks([&](int64_t b, T*) { last(map, b, work); });
  };
  if (n.maps >= int64_t(torch::stable::get_num_threads())) {
    torch::stable::parallel_for(0, n.maps, 1, [&](int64_t begin, int64_t end) {
      Work work(n);
      Aligned<T> scratch(n.scratch());
      for (int64_t map = begin; map < end; ++map)
        run(map, work, [&](const auto& f) {
          for (int64_t b = 0; b < n.blocks(); ++b) f(b, scratch.data());
        });
    });
    return;
  }
  Work work(n);
  for (int64_t map = 0; map < n.maps; ++map)
    run(map, work, [&](const auto& f) {
      torch::stable::parallel_for(0, n.blocks(), 8, [&](int64_t begin, int64_t end) {
        Aligned<T> scratch(n.scratch());
        for (int64_t b = begin; b < end; ++b) f(b, scratch.data());
      });
    });
}

// What a map needs while it is computed: sums of its blocks, and values of its channels.
template <class T, class Part>
struct Work {
  template <class S>
  explicit Work(const Norm<T, S>& n) : channels(n.channels), parts(n.blocks() * 2 * n.channels) {}
  Channels<T> channels;
  std::vector<Part> parts;
};

template <class T, class S>
void run_forward(const Norm<T, S>& n, double eps, S* y, T* moments) {
  using W = Work<T, Moments>;
  const auto values = [&](int64_t b) { return double(n.pixels_of(b) * n.size()); };
  for_maps<W>(
      n, [](int64_t, W&) {},
      [&](int64_t map, int64_t b, W& w, T* scratch) { moments_of(n, map, b, scratch, &w.parts[b * n.groups]); },
      [&](int64_t map, W& w) {
        for (int64_t g = 0; g < n.groups; ++g) {
          const auto [mean, squares] = together(&w.parts[g], n.blocks(), n.groups, values);
          const double inverse = 1 / std::sqrt(squares / double(n.pixels * n.size()) + eps);
          T* to = moments + (map * n.groups + g) * 2;
          to[0] = T(mean), to[1] = T(inverse);
          for (int64_t c = g * n.size(); c < (g + 1) * n.size(); ++c) {
            w.channels.mean()[c] = T(mean);
            w.channels.scale()[c] = T(inverse * n.weight[c]);
          }
        }
      },
      [&](int64_t map, int64_t b, W& w) { normalise(n, map, b, w.channels, y); });
}

// sums [maps][2][channels]: of g and of g u
template <class T, class S>
void run_backward(const Norm<T, S>& n, const S* grad, const T* moments, S* dx, double* sums) {
  using W = Work<T, T>;
  for_maps<W>(
      n,
      [&](int64_t map, W& w) {
        for (int64_t c = 0; c < n.channels; ++c) {
          const T* of = moments + (map * n.groups + c / n.size()) * 2;
          w.channels.mean()[c] = of[0], w.channels.inverse()[c] = of[1];
        }
      },
      [&](int64_t map, int64_t b, W& w, T* scratch) {
        sums_of(n, grad, map, b, w.channels, scratch, &w.parts[b * 2 * n.channels]);
      },
      [&](int64_t map, W& w) {
        double* all = sums + map * 2 * n.channels;
        for (int64_t b = 0; b < n.blocks(); ++b)
          for (int64_t c = 0; c < 2 * n.channels; ++c) all[c] += w.parts[b * 2 * n.channels + c];
        for (int64_t g = 0; g < n.groups; ++g) {
          const double values = double(n.pixels * n.size());
          double offset = 0, slope = 0;
          for (int64_t c = g * n.size(); c < (g + 1) * n.size(); ++c) {
            offset += all[c] * n.weight[c];
            slope += all[n.channels + c] * n.weight[c];
          }
          for (int64_t c = g * n.size(); c < (g + 1) * n.size(); ++c) {
            w.channels.offset()[c] = T(offset / values);
            w.channels.slope()[c] = T(slope / values);
          }
        }
      },
      [&](int64_t map, int64_t b, W& w) { backward(n, grad, map, b, w.channels, dx); });
}

std::tuple<Tensor, Tensor> group_norm_relu(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups,
                                           double eps, bool relu) {
  check_group_norm_relu("group_norm_relu", x, weight, bias, groups);
  Tensor y = torch::stable::new_empty(x, x.sizes(), storage_type(x));
  Tensor moments = torch::stable::new_empty(x, {x.size(0), groups, 2}, compute_type(x));
  for_storage_type(x, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Norm<T, S> n(x, weight, bias, groups, relu);
    run_forward(n, eps, mutable_data<S>(y), mutable_data<T>(moments));
  });
  return {finished(y, x), moments};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_relu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                            const Tensor& bias, const Tensor& moments, int64_t groups,
                                                            bool relu) {
  const Arguments call = check_group_norm_relu("group_norm_relu_backward", x, weight, bias, groups);
  call.tensor("grad", grad, {x.size(0), x.size(1), x.size(2), x.size(3)});
  call.tensor("moments", moments, {x.size(0), groups, 2}, compute_type(x));
  Tensor dx = torch::stable::new_empty(x, x.sizes(), storage_type(x));
  Tensor dweight = torch::stable::new_empty(weight, weight.sizes(), compute_type(x));
  Tensor dbias = torch::stable::new_empty(bias, bias.sizes(), compute_type(x));
  for_storage_type(x, [&](auto type, auto storage) {
    using T = decltype(type);
    using S = decltype(storage);
    const Norm<T, S> n(x, weight, bias, groups, relu);
    const Tensor g = Norm<T, S>::stored_rows(grad), m = prepared(moments);
    std::vector<double> sums(n.maps * 2 * n.channels);
    run_backward(n, data<S>(g), data<T>(m), mutable_data<S>(dx), sums.data());
    for (int64_t c = 0; c < n.channels; ++c) {
      double of_bias = 0, of_weight = 0;
      for (int64_t map = 0; map < n.maps; ++map) {
        of_bias += sums[map * 2 * n.channels + c];
        of_weight += sums[(map * 2 + 1) * n.channels + c];
      }
      mutable_data<T>(dbias)[c] = T(of_bias), mutable_data<T>(dweight)[c] = T(of_weight);
    }
  });
  return {finished(dx, x), finished(dweight, weight), finished(dbias, bias)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("group_norm_relu_cpp", TORCH_BOX(&fgaseg::group_norm_relu));
  m.impl("group_norm_relu_backward_cpp", TORCH_BOX(&fgaseg::group_norm_relu_backward));
}
