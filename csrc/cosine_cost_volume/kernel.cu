// cosine_cost_volume on NVIDIA GPUs. kernels/cosine_cost_volume/op.py has the schema, cuda.cpp the host side.
//
//   out[b,p,t,n] = <texts[b,t,p], pixels[b,:,n]> / (max(|texts[b,t,p]|, eps) max(|pixels[b,:,n]|, eps))
//
// Forward is one launch: the product, with the squares of both sides summed from the same shared memory and the
// division at the end, so there is no normalised copy. docs/design/kernels.md explains the tiles of 64 texts x 64
// pixels.
//
// Neither side needs to be contiguous. The channels of a text are adjacent in memory and those of a pixel H*W apart, so
// the threads follow whichever axis is dense; both sides are stored channels last, for ldmatrix. The next tiles are
// loaded to registers while a tile is multiplied: pixels have to be transposed, which cp.async cannot do. float32 runs
// through the same code with fused multiply-adds in the mma's register layout.
//
// Backward, with u = v / max(|v|, eps): h = sum of grad times the other side's unit vectors (rounded to the inputs'
// type, as PyTorch's are), in float32 scratch memory; then dv = (h - u <u, h>) / |v|, or h / eps where the length was
// raised to eps and is a constant. That is the same product twice, with the lengths before it and the projection after
// it; every sum has a fixed order.
#include <climits>
#include <cmath>
#include <cstring>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int TILE = 64, STEP = 32;  // rows of both sides; elements summed at a time
constexpr int THREADS = 128;         // 2 x 2 warps, 32 x 32 results each
constexpr int PASS_THREADS = 256, PASS_WARPS = 8;  // of the kernels around the product

FGASEG_DEVICE int lane() { return threadIdx.x % 32; }
FGASEG_DEVICE int warp() { return threadIdx.x / 32; }

// Offsets along two dimensions of a tensor as one axis, with `count` elements in the inner one; or along one dimension.
struct Axis {
  int count = INT_MAX;
  int64_t inner = 0, outer = 0;

  FGASEG_DEVICE int64_t operator()(int i) const {
    return i < count ? i * inner : i % count * inner + i / count * outer;
  }
};

// One side of a product: rows, and the axis that is summed.
template <class T>
struct Side {
  const T* data;
  int64_t batch;
  Axis row, summed;
  int rows;
  const float* scales;  // factors [B, summed] of the elements, or null
};

// A thread's part of a tile [row][STEP] for shared memory, where 16 bytes between the rows avoid bank conflicts.
template <class T>
struct Stage {
  static constexpr int PIECE = 16 / sizeof(T), PIECES = STEP / PIECE, STRIDE = STEP + PIECE;
  static constexpr int COUNT = TILE * PIECES / THREADS;  // of a thread
  uint4 pieces[COUNT];

  // Adjacent threads follow the summed axis if that is the dense one, else the rows.
  FGASEG_DEVICE static int row(int i, bool along) {
    const int piece = threadIdx.x + i * THREADS;
    return along ? piece / PIECES : piece % TILE;
  }
  FGASEG_DEVICE static int column(int i, bool along) {
    const int piece = threadIdx.x + i * THREADS;
    return (along ? piece % PIECES : piece / TILE) * PIECE;
  }

  FGASEG_DEVICE void load(const Side<T>& side, int64_t b, int first_row, int first, int length) {
    const bool along = side.summed.inner == 1;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int r = first_row + row(i, along), k = first + column(i, along);
      const T* const from = side.data + b * side.batch + side.row(r);
      const bool whole = along && !side.scales && r < side.rows && k + PIECE <= min(length, side.summed.count);
      if (whole && reinterpret_cast<uintptr_t>(from + k) % 16 == 0) {
        pieces[i] = *reinterpret_cast<const uint4*>(from + k);
        continue;
      }
      T elements[PIECE];
#pragma unroll
      for (int j = 0; j < PIECE; ++j) {
        const bool inside = r < side.rows && k + j < length;
        elements[j] = inside ? from[side.summed(k + j)] : from_float<T>(0);
        if (inside && side.scales)
          elements[j] = from_float<T>(to_float(elements[j]) * side.scales[b * length + k + j]);
      }
      memcpy(&pieces[i], elements, sizeof(uint4));
    }
  }

  FGASEG_DEVICE void store(T* tile, const Side<T>& side) const {
    const bool along = side.summed.inner == 1;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      *reinterpret_cast<uint4*>(tile + row(i, along) * STRIDE + column(i, along)) = pieces[i];
  }
};

using Results = float[2][4][4];  // of a warp: 2 x 16 rows, 4 x 8 columns, in mma's register layout

FGASEG_DEVICE int first_row() { return warp() / 2 * 32; }
FGASEG_DEVICE int first_column() { return warp() % 2 * 32; }

template <class T>
FGASEG_DEVICE void multiply(Results& results, const T* left, const T* right) {
  constexpr int STRIDE = Stage<T>::STRIDE;
#pragma unroll
  for (int k = 0; k < STEP; k += 16) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      load_matrices(a[m], left + (first_row() + m * 16 + lane() % 16) * STRIDE + k + lane() / 16 * 8);
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t b[4];
      const int column = first_column() + j * 8 + lane() / 16 * 8 + lane() % 8;
      load_matrices(b, right + column * STRIDE + k + lane() / 8 % 2 * 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add<T>(results[m][j], a[m], {b[0], b[1]});
        multiply_add<T>(results[m][j + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

// In float32 the products of a step are summed before they are added to the results, which loses fewer bits.
FGASEG_DEVICE void multiply(Results& results, const float* left, const float* right) {
  constexpr int STRIDE = Stage<float>::STRIDE;
  Results sums = {};
#pragma unroll 2
  for (int k = 0; k < STEP; k += 4) {
    float4 a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = *reinterpret_cast<const float4*>(left + (first_row() + i * 8 + lane() / 4) * STRIDE + k);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int column = first_column() + j / 2 * 8 + lane() % 4 * 2 + j % 2;
      const float4 b = *reinterpret_cast<const float4*>(right + column * STRIDE + k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& sum = sums[i / 2][j / 2][i % 2 * 2 + j % 2];
        sum = fmaf(a[i].w, b.w, fmaf(a[i].z, b.z, fmaf(a[i].y, b.y, fmaf(a[i].x, b.x, sum))));
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) results[i / 16][i / 4 % 4][i % 4] += sums[i / 16][i / 4 % 4][i % 4];
}

template <class T>
FGASEG_DEVICE float squares(const T* row) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < STEP; k += Stage<T>::PIECE) {
    const uint4 bits = *reinterpret_cast<const uint4*>(row + k);
    T elements[Stage<T>::PIECE];
    memcpy(elements, &bits, sizeof bits);
    for (T x : elements) sum = fmaf(to_float(x), to_float(x), sum);
  }
  return sum;
}

// out[b, row, column] = sum of left[b, row, k] right[b, column, k]; COSINE: divided by both lengths.
template <class T, class Out, bool COSINE>
__global__ void __launch_bounds__(THREADS) product(const Side<T> left, const Side<T> right, int length, Out* out,
                                                   Axis out_row, float eps) {
  constexpr int ELEMENTS = TILE * Stage<T>::STRIDE;
  FGASEG_SHARED(a, T[ELEMENTS]);
  FGASEG_SHARED(b, T[ELEMENTS]);
  FGASEG_SHARED(inverse, float[2 * TILE]);
  const int across = (right.rows + TILE - 1) / TILE, down = (left.rows + TILE - 1) / TILE;
  const int column = blockIdx.x % across * TILE, row = blockIdx.x / across % down * TILE;
  const int64_t image = blockIdx.x / across / down;

  Results results = {};
  float sum = 0;  // of the squares of row threadIdx.x of a, or of a row of b in the second half of the threads
  Stage<T> next_a, next_b;
  next_a.load(left, image, row, 0, length);
  next_b.load(right, image, column, 0, length);
  for (int k = 0; k < length; k += STEP) {
    next_a.store(a, left);
    next_b.store(b, right);
    __syncthreads();
    next_a.load(left, image, row, k + STEP, length);
    next_b.load(right, image, column, k + STEP, length);
    multiply(results, a, b);
    if (COSINE) sum += squares((threadIdx.x < TILE ? a : b) + threadIdx.x % TILE * Stage<T>::STRIDE);
    __syncthreads();
  }
  if (COSINE) {
    inverse[threadIdx.x] = 1 / fmaxf(sqrtf(sum), eps);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int m = first_row() + i / 16 * 16 + i / 2 % 2 * 8 + lane() / 4;
    const int n = first_column() + i / 4 % 4 * 8 + lane() % 4 * 2 + i % 2;
    float y = results[i / 16][i / 4 % 4][i % 4];
    if (COSINE) y = y * inverse[m] * inverse[TILE + n];
    if (row + m < left.rows && column + n < right.rows)
      out[image * left.rows * right.rows + out_row(row + m) + column + n] = from_float<Out>(y);
  }
}

// `count` vectors per image, each of `length` elements that are `step` apart.
template <class T>
struct Vectors {
  const T* data;
  int64_t batch;
  Axis vector;
  int64_t step;
  int count, length;
};

// The image and vector of a thread, its first element, and the distance to its next. ACROSS: for vectors that are
// adjacent in memory each lane has a vector, whose elements are divided among the warps; else each warp has one.
template <bool ACROSS>
struct Work {
  static constexpr int VECTORS = ACROSS ? 32 : PASS_WARPS;  // of a block
  int64_t image;
  int vector, first = ACROSS ? warp() : lane(), step = ACROSS ? PASS_WARPS : 32;

  FGASEG_DEVICE explicit Work(int count) {  // `count` vectors in an image
    const unsigned blocks = (count + VECTORS - 1) / VECTORS;
    image = blockIdx.x / blocks;
    vector = blockIdx.x % blocks * VECTORS + (ACROSS ? lane() : warp());
  }

  // Sums over all threads of a vector.
  FGASEG_DEVICE float2 total(float x, float y) const {
    if (ACROSS) {
      FGASEG_SHARED(sums, float2[PASS_WARPS][32]);
      sums[warp()][lane()] = make_float2(x, y);
      __syncthreads();
      x = y = 0;
      for (int i = 0; i < PASS_WARPS; ++i) {
        x += sums[i][lane()].x;
        y += sums[i][lane()].y;
      }
    } else {
      for (int i = 16; i > 0; i /= 2) {
        x += __shfl_xor_sync(~0u, x, i);
        y += __shfl_xor_sync(~0u, y, i);
      }
    }
    return make_float2(x, y);
  }
};

// inverse [B, vectors] = 1 / max(|v|, eps).
template <class T, bool ACROSS>
__global__ void __launch_bounds__(PASS_THREADS) inverse_lengths(const Vectors<T> v, float* inverse, float eps) {
  const Work<ACROSS> work(v.count);
  const bool inside = work.vector < v.count;
  const T* const elements = v.data + work.image * v.batch + v.vector(work.vector);
  float squares = 0;
  for (int i = work.first; inside && i < v.length; i += work.step) {
    const float x = to_float(elements[i * v.step]);
    squares = fmaf(x, x, squares);
  }
  squares = work.total(squares, 0).x;
  if (inside && work.first == 0) inverse[work.image * v.count + work.vector] = 1 / fmaxf(sqrtf(squares), eps);
}

// out = (h - u <u, h>) / |v|, u = v / |v|; h and out are contiguous, and their vectors are columns (ACROSS) or rows.
template <class T, bool ACROSS>
__global__ void __launch_bounds__(PASS_THREADS) project(const Vectors<T> v, const float* h, T* out, float eps) {
  const Work<ACROSS> work(v.count);
  const bool inside = work.vector < v.count;
  const int64_t begin = work.image * v.count * v.length;
  const T* const elements = v.data + work.image * v.batch + v.vector(work.vector);
  const auto offset = [&](int i) {
    return begin + (ACROSS ? int64_t(i) * v.count + work.vector : int64_t(work.vector) * v.length + i);
  };
  float squares = 0, dot = 0;
  for (int i = work.first; inside && i < v.length; i += work.step) {
    const float x = to_float(elements[i * v.step]);
    squares = fmaf(x, x, squares);
    dot = fmaf(x, h[offset(i)], dot);
  }
  const float2 total = work.total(squares, dot);
  const float length = fmaxf(sqrtf(total.x), eps);
  dot = sqrtf(total.x) < eps ? 0 : total.y / length;  // a length that was raised to eps is a constant
  for (int i = work.first; inside && i < v.length; i += work.step)
    out[offset(i)] = from_float<T>((h[offset(i)] - to_float(elements[i * v.step]) / length * dot) / length);
}

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// Two dimensions as one axis, with `count` elements in the inner one.
Axis axis(int64_t count, int64_t inner, int64_t outer) {
  if (outer == count * inner) return {INT_MAX, inner, 0};
  return {int(count), inner, outer};
}

struct Sizes {
  int64_t batch, channels, classes, prompts, height, width;
  explicit Sizes(const int64_t* n)
      : batch(n[0]), channels(n[1]), classes(n[2]), prompts(n[3]), height(n[4]), width(n[5]) {}
  int pixels() const { return int(height * width); }
  int texts() const { return int(classes * prompts); }  // ordered class, prompt
};

// The strides s are those of pixels [B, C, H, W] and of texts [B, T, P, C].
template <class T>
Vectors<T> pixel_vectors(const void* data, const int64_t* s, const Sizes& n) {
  return {static_cast<const T*>(data), s[0], axis(n.width, s[3], s[2]), s[1], n.pixels(), int(n.channels)};
}
template <class T>
Vectors<T> text_vectors(const void* data, const int64_t* s, const Sizes& n) {
  return {static_cast<const T*>(data), s[0], axis(n.prompts, s[2], s[1]), s[3], n.texts(), int(n.channels)};
}
template <class T>
Side<T> side(const T* data, int64_t batch, Axis row, Axis summed, int64_t rows, const float* scales = nullptr) {
  return {data, batch, row, summed, int(rows), scales};
}
Axis channels_of(int64_t step) { return {INT_MAX, step, 0}; }

template <bool COSINE, class T, class Out>
int start_product(int64_t batch, const Side<T>& left, const Side<T>& right, int64_t length, Out* out, Axis out_row,
                  float eps, void* stream) {
  const int64_t blocks = batch * blocks_of(left.rows, TILE) * blocks_of(right.rows, TILE);
  return launch(product<T, Out, COSINE>, {blocks}, THREADS, 0, stream, left, right, int(length), out, out_row, eps);
}

template <class T>
int forward(const void* pixels, const int64_t* pixel_strides, const void* texts, const int64_t* text_strides, void* out,
            const int64_t* sizes, float eps, void* stream) {
  const Sizes n(sizes);
  const auto x = pixel_vectors<T>(pixels, pixel_strides, n), t = text_vectors<T>(texts, text_strides, n);
  return start_product<true>(n.batch, side(t.data, t.batch, t.vector, channels_of(t.step), t.count),
                             side(x.data, x.batch, x.vector, channels_of(x.step), x.count), n.channels,
                             static_cast<T*>(out), axis(n.prompts, n.classes * n.pixels(), n.pixels()), eps, stream);
}

template <bool ACROSS, class T>
Grid grid_of(int64_t batch, const Vectors<T>& v) {
  return {batch * blocks_of(v.count, Work<ACROSS>::VECTORS)};
}

template <class T>
int start_inverse(int64_t batch, const Vectors<T>& v, float* inverse, float eps, void* stream) {
  if (v.step == 1)
    return launch(inverse_lengths<T, false>, grid_of<false>(batch, v), PASS_THREADS, 0, stream, v, inverse, eps);
  return launch(inverse_lengths<T, true>, grid_of<true>(batch, v), PASS_THREADS, 0, stream, v, inverse, eps);
}

// scratch has B (T*P + H*W) (C + 1) elements.
template <class T>
int backward(const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,
             const void* texts, const int64_t* text_strides, void* pixels_grad, void* texts_grad, float* scratch,
             const int64_t* sizes, float eps, void* stream) {
  const Sizes n(sizes);
  const auto x = pixel_vectors<T>(pixels, pixel_strides, n), t = text_vectors<T>(texts, text_strides, n);
  float* const x_inverse = scratch;
  float* const t_inverse = x_inverse + n.batch * x.count;
  float* const x_grad = t_inverse + n.batch * t.count;  // h of the pixels, [B, C, H*W]
  float* const t_grad = x_grad + n.batch * n.channels * x.count;  // [B, T*P, C]
  const T* const g = static_cast<const T*>(grad);
  const int64_t* const s = grad_strides;
  const Axis g_text = axis(n.prompts, s[1], s[2]), g_pixel = axis(n.width, s[4], s[3]);
  const int codes[] = {
      start_inverse(n.batch, x, x_inverse, eps, stream),
      start_inverse(n.batch, t, t_inverse, eps, stream),
      start_product<false>(n.batch, side(t.data, t.batch, channels_of(t.step), t.vector, n.channels, t_inverse),
                           side(g, s[0], g_pixel, g_text, x.count), t.count, x_grad, channels_of(x.count), eps, stream),
      start_product<false>(n.batch, side(g, s[0], g_text, g_pixel, t.count),
                           side(x.data, x.batch, channels_of(x.step), x.vector, n.channels, x_inverse), x.count, t_grad,
                           channels_of(n.channels), eps, stream),
      launch(project<T, true>, grid_of<true>(n.batch, x), PASS_THREADS, 0, stream, x, x_grad,
             static_cast<T*>(pixels_grad), eps),
      launch(project<T, false>, grid_of<false>(n.batch, t), PASS_THREADS, 0, stream, t, t_grad,
             static_cast<T*>(texts_grad), eps)};
  for (int code : codes)
    if (code) return code;
  return cudaSuccess;
}

}  // namespace
}  // namespace fgaseg

// Sizes are {B, C, T, P, H, W}.
#define FGASEG_LAUNCHERS(name, type)                                                                                   \
  extern "C" int fgaseg_cosine_cost_volume_forward_##name(const void* pixels, const int64_t* pixel_strides,            \
                                                          const void* texts, const int64_t* text_strides, void* out,   \
                                                          const int64_t* sizes, double eps, void* stream) {            \
    return fgaseg::forward<type>(pixels, pixel_strides, texts, text_strides, out, sizes, float(eps), stream);          \
  }                                                                                                                    \
  extern "C" int fgaseg_cosine_cost_volume_backward_##name(                                                            \
      const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,                 \
      const void* texts, const int64_t* text_strides, void* pixels_grad, void* texts_grad, float* scratch,             \
      const int64_t* sizes, double eps, void* stream) {                                                                \
    return fgaseg::backward<type>(grad, grad_strides, pixels, pixel_strides, texts, text_strides, pixels_grad,         \
                                  texts_grad, scratch, sizes, float(eps), stream);                                     \
  }
FGASEG_LAUNCHERS(float32, float)
FGASEG_LAUNCHERS(float16, __half)
FGASEG_LAUNCHERS(bfloat16, __nv_bfloat16)
