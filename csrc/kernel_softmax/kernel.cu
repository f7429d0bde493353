// kernel_softmax on the GPU:  p = exp(x - max x) / sum exp(x - max x),  dx = p (g - sum p g).
//
// Both are bound by memory (docs/design/kernels.md has the counts), so:
//
//   taps      The K*K taps of a channel are too few, and start at odd offsets, for vector loads. Blocks of whole
//             channels pass through shared memory in 16-byte pieces; there 1 to 32 lanes share a row and keep it in
//             registers.
//   channels  Adjacent elements belong to different softmaxes. A thread keeps one running maximum and sum for every
//             column of its 16-byte piece; its stride is a multiple of K*K, so the columns stay the same. The threads'
//             results are combined in shared memory. The second read comes from cache: a class has C*K*K elements.
//
// Arithmetic is float32. Unaligned classes are copied element by element.
#include <cfloat>
#include <type_traits>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int THREADS = 256;
constexpr int LONGEST = 1024;  // taps that a warp keeps in registers

// A class has `channels` rows of `taps` elements; class (b, t) begins at b * stride_b + t * stride_t.
struct Classes {
  int64_t images, classes, channels, taps, stride_b, stride_t;

  FGASEG_DEVICE int64_t size() const { return channels * taps; }
  FGASEG_DEVICE int64_t begin(unsigned i) const {  // i is derived from a block index, so it fits in 32 bits
    const unsigned b = i / static_cast<unsigned>(classes), t = i % static_cast<unsigned>(classes);
    return b * stride_b + t * stride_t;
  }
};

template <class T, int COUNT>
struct alignas(sizeof(T) * COUNT) Vector {
  T elements[COUNT];
};

FGASEG_DEVICE bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Copies n elements to shared memory; complete after wait_copies<0>() and a barrier.
template <class T>
FGASEG_DEVICE void copy_in(T* to, const T* from, int n) {
  constexpr int COUNT = 16 / sizeof(T);
  const int whole = is_aligned(from) ? n / COUNT : 0;
  for (int i = threadIdx.x; i < whole; i += THREADS) copy_async<16>(to + i * COUNT, from + i * COUNT);
  commit_copies();
  for (int i = whole * COUNT + threadIdx.x; i < n; i += THREADS) to[i] = from[i];
}

template <class T>
FGASEG_DEVICE void copy_out(T* to, const T* from, int n) {
  constexpr int COUNT = 16 / sizeof(T);
  using Piece = Vector<T, COUNT>;
  const int whole = is_aligned(to) ? n / COUNT : 0;
  for (int i = threadIdx.x; i < whole; i += THREADS)
    reinterpret_cast<Piece*>(to)[i] = reinterpret_cast<const Piece*>(from)[i];
  for (int i = whole * COUNT + threadIdx.x; i < n; i += THREADS) to[i] = from[i];
}

// The maximum over the LANES adjacent lanes that share a row.
template <int LANES>
FGASEG_DEVICE float row_max(float x) {
#pragma unroll
  for (int flip = LANES / 2; flip > 0; flip /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, flip));
  return x;
}

template <int LANES>
FGASEG_DEVICE float row_sum(float x) {
#pragma unroll
  for (int flip = LANES / 2; flip > 0; flip /= 2) x += __shfl_xor_sync(~0u, x, flip);
  return x;
}

// The rows of one class that a block processes: THREADS / LANES of them, fewer at the end.
template <int LANES>
struct Rows {
  static constexpr int COUNT = THREADS / LANES;
  int64_t begin;  // offset of the block's first row within the class
  int class_index;
  int length;  // elements in all rows
  int row;     // offset of this thread's row within the block; the row exists if that is below length

  FGASEG_DEVICE Rows(const Classes& all, int chunks) {
    class_index = blockIdx.x / chunks;
    const int64_t first = int64_t(blockIdx.x % chunks) * COUNT, left = all.channels - first;
    begin = first * all.taps;
    length = static_cast<int>((left < COUNT ? left : COUNT) * all.taps);
    row = static_cast<int>(threadIdx.x / LANES * all.taps);
  }
};

// For rows of at most LANES * SLOTS taps: slot j of a lane is tap j * LANES + lane.
template <class T, int LANES, int SLOTS>
__global__ void __launch_bounds__(THREADS) softmax_taps(const T* x, T* y, Classes all, int chunks) {
  FGASEG_DYNAMIC_SHARED(T, block);
  const Rows<LANES> rows(all, chunks);
  copy_in(block, x + all.begin(rows.class_index) + rows.begin, rows.length);
  wait_copies<0>();
  __syncthreads();
  const int lane = threadIdx.x % LANES, taps = rows.row < rows.length ? static_cast<int>(all.taps) : 0;
  T* row = block + rows.row;
  float e[SLOTS], top = -INFINITY, sum = 0;
#pragma unroll
  for (int j = 0; j < SLOTS; ++j) {
    e[j] = j * LANES + lane < taps ? to_float(row[j * LANES + lane]) : -INFINITY;
    top = fmaxf(top, e[j]);
  }
  top = row_max<LANES>(top);
#pragma unroll
  for (int j = 0; j < SLOTS; ++j)
    if (j * LANES + lane < taps) {
      e[j] = expf(e[j] - top);
      sum += e[j];
    }
  const float inverse = 1 / row_sum<LANES>(sum);
#pragma unroll
  for (int j = 0; j < SLOTS; ++j)
    if (j * LANES + lane < taps) row[j * LANES + lane] = from_float<T>(e[j] * inverse);
  __syncthreads();
  copy_out(y + rows.class_index * all.size() + rows.begin, block, rows.length);
}

// kernels are contiguous; `all` describes grad.
template <class T, int LANES, int SLOTS>
__global__ void __launch_bounds__(THREADS)
    softmax_taps_backward(const T* grad, const T* kernels, T* y, Classes all, int chunks) {
  FGASEG_DYNAMIC_SHARED(T, blocks);
  const Rows<LANES> rows(all, chunks);
  T *block_p = blocks, *block_g = blocks + Rows<LANES>::COUNT * all.taps;
  const int64_t begin = rows.class_index * all.size() + rows.begin;
  copy_in(block_p, kernels + begin, rows.length);
  copy_in(block_g, grad + all.begin(rows.class_index) + rows.begin, rows.length);
  wait_copies<0>();
  __syncthreads();
  const int lane = threadIdx.x % LANES, taps = rows.row < rows.length ? static_cast<int>(all.taps) : 0;
  T *row_p = block_p + rows.row, *row_g = block_g + rows.row;
  float p[SLOTS], g[SLOTS], dot = 0;
#pragma unroll
  for (int j = 0; j < SLOTS; ++j)
    if (j * LANES + lane < taps) {
      p[j] = to_float(row_p[j * LANES + lane]);
      g[j] = to_float(row_g[j * LANES + lane]);
      dot += p[j] * g[j];
    }
  dot = row_sum<LANES>(dot);
#pragma unroll
  for (int j = 0; j < SLOTS; ++j)
    if (j * LANES + lane < taps) row_p[j * LANES + lane] = from_float<T>(p[j] * (g[j] - dot));
  __syncthreads();
  copy_out(y + begin, block_p, rows.length);
}

// The elements of one thread, COUNT at a time, always in the same columns: a block takes `width` adjacent columns of
// one class (all of them, unless COUNT is 1).
template <int COUNT>
struct Columns {
  int64_t first, end, step;
  int class_index, width, rows, begin;  // rows: results per column; begin: offset of this thread's results

  FGASEG_DEVICE Columns(const Classes& all, int tiles) {
    const int64_t first_column = int64_t(blockIdx.x % tiles) * THREADS, left = all.taps - first_column;
    class_index = blockIdx.x / tiles;
    width = static_cast<int>(left < THREADS ? left : THREADS);
    const int threads = THREADS / width * width;
    rows = COUNT * threads / width;
    begin = COUNT * threadIdx.x;
    step = rows * all.taps;
    end = threadIdx.x < static_cast<unsigned>(threads) ? all.size() : 0;
    first = begin / width * all.taps + first_column + begin % width;
  }

  // Calls f(i, column of the thread's element i).
  template <class F>
  FGASEG_DEVICE void for_each(const F& f) const {
    int column = begin % width;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      f(i, column);
      column = column + 1 == width ? 0 : column + 1;
    }
  }
};

template <class T, int COUNT>
FGASEG_DEVICE void load(float (&x)[COUNT], const T* from) {
  const auto piece = *reinterpret_cast<const Vector<T, COUNT>*>(from);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = to_float(piece.elements[i]);
}

template <class T, int COUNT>
FGASEG_DEVICE void store(T* to, const float (&x)[COUNT]) {
  Vector<T, COUNT> piece;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) piece.elements[i] = from_float<T>(x[i]);
  *reinterpret_cast<Vector<T, COUNT>*>(to) = piece;
}

// Reduces `rows` rows of `width` results to the first row, with a barrier before and after.
template <class Combine>
FGASEG_DEVICE void fold(int rows, int width, const Combine& combine) {
  __syncthreads();
  while (rows > 1) {
    const int upper = (rows + 1) / 2;
    for (int i = threadIdx.x; i < (rows - upper) * width; i += THREADS) combine(i, i + upper * width);
    rows = upper;
    __syncthreads();
  }
}

template <class T, int COUNT>
__global__ void __launch_bounds__(THREADS)
    softmax_columns(const T* __restrict__ x, T* __restrict__ y, Classes all, int tiles) {
  FGASEG_SHARED(tops, float[COUNT * THREADS]);
  FGASEG_SHARED(sums, float[COUNT * THREADS]);
  const Columns<COUNT> columns(all, tiles);
  x += all.begin(columns.class_index);
  y += columns.class_index * all.size();
  float top[COUNT], sum[COUNT], piece[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    top[i] = -FLT_MAX;  // finite, so that top - top is 0
    sum[i] = 0;
  }
  for (int64_t offset = columns.first; offset < columns.end; offset += columns.step) {
    load(piece, x + offset);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const float e = expf(-fabsf(piece[i] - top[i]));
      const bool above = piece[i] > top[i];
      sum[i] = above ? sum[i] * e + (1 + (piece[i] - piece[i])) : sum[i] + e;  // NaN for +inf, as in PyTorch
      top[i] = above ? piece[i] : top[i];
    }
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    tops[columns.begin + i] = top[i];
    sums[columns.begin + i] = sum[i];
  }
  fold(columns.rows, columns.width, [&](int to, int from) {
    const float both = fmaxf(tops[to], tops[from]);
    sums[to] = sums[to] * expf(tops[to] - both) + sums[from] * expf(tops[from] - both);
    tops[to] = both;
  });
  columns.for_each([&](int i, int column) {
    top[i] = tops[column];
    sum[i] = 1 / sums[column];
  });
  for (int64_t offset = columns.first; offset < columns.end; offset += columns.step) {
    load(piece, x + offset);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) piece[i] = expf(piece[i] - top[i]) * sum[i];
    store(y + offset, piece);
  }
}

template <class T, int COUNT>
__global__ void __launch_bounds__(THREADS)
    softmax_columns_backward(const T* __restrict__ grad, const T* __restrict__ kernels, T* __restrict__ y, Classes all,
                             int tiles) {
  FGASEG_SHARED(dots, float[COUNT * THREADS]);
  const Columns<COUNT> columns(all, tiles);
  grad += all.begin(columns.class_index);
  kernels += columns.class_index * all.size();
  y += columns.class_index * all.size();
  float dot[COUNT] = {}, p[COUNT], g[COUNT];
  for (int64_t offset = columns.first; offset < columns.end; offset += columns.step) {
    load(p, kernels + offset);
    load(g, grad + offset);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) dot[i] += p[i] * g[i];
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) dots[columns.begin + i] = dot[i];
  fold(columns.rows, columns.width, [&](int to, int from) { dots[to] += dots[from]; });
  columns.for_each([&](int i, int column) { dot[i] = dots[column]; });
  for (int64_t offset = columns.first; offset < columns.end; offset += columns.step) {
    load(p, kernels + offset);
    load(g, grad + offset);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) p[i] *= g[i] - dot[i];
    store(y + offset, p);
  }
}

// Rows are independent of their class: if the classes are contiguous, joining them leaves fewer partial blocks.
Classes joined(Classes all) {
  const bool no_gaps = (all.classes == 1 || all.stride_t == all.channels * all.taps) &&
                       (all.images == 1 || all.stride_b == all.classes * all.channels * all.taps);
  return no_gaps ? Classes{1, 1, all.images * all.classes * all.channels, all.taps, 0, 0} : all;
}

// Calls f with the number of lanes per row and of taps per lane.
template <class F>
int for_row_length(int64_t taps, const F& f) {
  if (taps <= 9) return f(std::integral_constant<int, 1>(), std::integral_constant<int, 9>());
  if (taps <= 32) return f(std::integral_constant<int, 4>(), std::integral_constant<int, 8>());
  if (taps <= 128) return f(std::integral_constant<int, 8>(), std::integral_constant<int, 16>());
  return f(std::integral_constant<int, 32>(), std::integral_constant<int, LONGEST / 32>());
}

// Whether every class is aligned to 16 bytes, has a multiple of 16 bytes, and all of its columns fit in a block.
template <class T>
bool in_vectors(const Classes& all, const void* x, const void* y) {
  const int64_t count = 16 / sizeof(T), together = reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y);
  return all.taps <= THREADS && (all.channels * all.taps | all.stride_b | all.stride_t) % count == 0 &&
         together % 16 == 0;
}

int64_t tiles(const Classes& all) { return (all.taps + THREADS - 1) / THREADS; }

template <class T>
int forward(const void* x_, void* y_, Classes all, bool channels, void* stream) {
  const T* x = static_cast<const T*>(x_);
  T* y = static_cast<T*>(y_);
  if (!channels) {
    all = joined(all);
    return for_row_length(all.taps, [&](auto lanes, auto slots) {
      const int64_t count = THREADS / lanes, chunks = (all.channels + count - 1) / count;
      return launch(softmax_taps<T, lanes, slots>, {all.images * all.classes * chunks}, THREADS,
                    count * all.taps * sizeof(T), stream, x, y, all, static_cast<int>(chunks));
    });
  }
  const Grid grid{all.images * all.classes * tiles(all)};
  const auto kernel = in_vectors<T>(all, x, y) ? softmax_columns<T, 16 / sizeof(T)> : softmax_columns<T, 1>;
  return launch(kernel, grid, THREADS, 0, stream, x, y, all, static_cast<int>(tiles(all)));
}

template <class T>
int backward(const void* grad_, const void* kernels_, void* y_, Classes all, bool channels, void* stream) {
  const T *grad = static_cast<const T*>(grad_), *kernels = static_cast<const T*>(kernels_);
  T* y = static_cast<T*>(y_);
  if (!channels) {
    all = joined(all);
    return for_row_length(all.taps, [&](auto lanes, auto slots) {
      const int64_t count = THREADS / lanes, chunks = (all.channels + count - 1) / count;
      return launch(softmax_taps_backward<T, lanes, slots>, {all.images * all.classes * chunks}, THREADS,
                    2 * count * all.taps * sizeof(T), stream, grad, kernels, y, all, static_cast<int>(chunks));
    });
  }
  const Grid grid{all.images * all.classes * tiles(all)};
  const bool vectors = in_vectors<T>(all, grad, y) && in_vectors<T>(all, kernels, y);
  const auto kernel = vectors ? softmax_columns_backward<T, 16 / sizeof(T)> : softmax_columns_backward<T, 1>;
  return launch(kernel, grid, THREADS, 0, stream, grad, kernels, y, all, static_cast<int>(tiles(all)));
}

}  // namespace
}  // namespace fgaseg

// x and grad: class (b, t) begins at b * stride_b + t * stride_t; kernels and y are contiguous. over_channels: 0
// normalises over the taps, at most 1024 then, 1 over the channels.
#define FGASEG_LAUNCHERS(T, dtype)                                                                                     \
  extern "C" int fgaseg_kernel_softmax_forward_##dtype(const void* x, void* y, int64_t images, int64_t classes,        \
                                                       int64_t channels, int64_t taps, int64_t stride_b,               \
                                                       int64_t stride_t, int64_t over_channels, void* stream) {        \
    return fgaseg::forward<T>(x, y, {images, classes, channels, taps, stride_b, stride_t}, over_channels, stream);     \
  }                                                                                                                    \
  extern "C" int fgaseg_kernel_softmax_backward_##dtype(                                                               \
      const void* grad, const void* kernels, void* y, int64_t images, int64_t classes, int64_t channels, int64_t taps, \
      int64_t stride_b, int64_t stride_t, int64_t over_channels, void* stream) {                                       \
    return fgaseg::backward<T>(grad, kernels, y, {images, classes, channels, taps, stride_b, stride_t}, over_channels, \
                               stream);                                                                                \
  }
FGASEG_LAUNCHERS(float, float32)
FGASEG_LAUNCHERS(__half, float16)
FGASEG_LAUNCHERS(__nv_bfloat16, bfloat16)
