// The gradient of lcs_conv's logits on the GPU, a sum over pixels: a block of kernel_grad has 32 classes x 64 channels
// x 9 taps in registers, all of a 3x3 kernel, so its softmax ends there; larger kernels go through float32 scratch
// memory and a last pass (finish).
#pragma once
#include <cfloat>
#include <cmath>

#include "lcs_conv/stage.h"

namespace fgaseg {
namespace {

template <class T>
struct KernelGrad {
  Image<T> grad, pixels;
  Kernels<T> kernels;
  T* out;          // [B, T, C*K*K]
  float* scratch;  // for K other than 3: the same in float32, before the softmax
  Tiles tiles;
  int spare;  // a slot of zeros behind all others
};

using NineResults = float[NINE][2][4];

FGASEG_DEVICE int grad_stride(int pixels, int element_size) { return (pixels + 15) / 16 * 16 + 16 / element_size; }

// Stages the gradient of ROWS classes and the pixels of a tile as [class][pixel], zero outside.
template <class T>
FGASEG_DEVICE void stage_grad(T* __restrict__ to, const Image<T>& grad, const Tiles& tiles, int64_t b, int first_class,
                              int top, int left) {
  const int pixels = tiles.height * tiles.width, stride = grad_stride(pixels, sizeof(T));
  const Strides& s = grad.strides;
  for (int p = threadIdx.x % 64; p < (pixels + 15) / 16 * 16; p += 64) {
    const int y = top + p / tiles.width, x = left + p % tiles.width;
    const bool inside = p < pixels && y < grad.height && x < grad.width;
    const T* from = grad.data + b * s.batch + first_class * s.channel + y * s.row + x * s.column;
#pragma unroll
    for (int t = threadIdx.x / 64; t < ROWS; t += THREADS / 64)
      to[t * stride + p] = inside && first_class + t < grad.channels ? from[t * s.channel] : from_float<T>(0);
  }
}

// results[tap] += grad (ROWS x 16 pixels) times pixels (16, shifted, x 8 channels of this warp), with tensor cores.
template <class T>
FGASEG_DEVICE void multiply_nine(NineResults& results, const T* grad, int stride, const T* pixels, const int* slots,
                                 const int (&shifts)[NINE], int spare) {
  uint32_t left[2][4], right[2];
#pragma unroll
  for (int m = 0; m < 2; ++m) load_matrices(left[m], grad + (m * 16 + lane() % 16) * stride + lane() / 16 * 8);
  const int slot = slots[lane() % 16];
#pragma unroll
  for (int i = 0; i < NINE; ++i) {
    if (shifts[i] < 0) continue;
    load_matrices_transposed(right, pixels + swizzled<T, WIDE>(slot < 0 ? spare : slot + shifts[i], warp() * 8));
#pragma unroll
    for (int m = 0; m < 2; ++m) multiply_add<T>(results[i][m], left[m], right);
  }
}

FGASEG_DEVICE void multiply_nine(NineResults& results, const float* grad, int stride, const float* pixels,
                                 const int* slots, const int (&shifts)[NINE], int spare) {
  float left[4][16];
#pragma unroll
  for (int i = 0; i < 4 * 16; ++i)
    left[i / 16][i % 16] = grad[(i / 32 * 16 + i / 16 % 2 * 8 + lane() / 4) * stride + i % 16];
#pragma unroll
  for (int i = 0; i < NINE; ++i) {
    if (shifts[i] < 0) continue;
    float sums[4][2] = {};
#pragma unroll
    for (int p = 0; p < 16; ++p) {
      const int slot = slots[p] < 0 ? spare : slots[p] + shifts[i];
      const int offset = swizzled<float, WIDE>(slot, warp() * 8 + 2 * (lane() % 4));
      const float2 x = *reinterpret_cast<const float2*>(pixels + offset);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sums[k][0] = fmaf(left[k][p], x.x, sums[k][0]);
        sums[k][1] = fmaf(left[k][p], x.y, sums[k][1]);
      }
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) results[i][k / 4][k % 4] += sums[k / 2][k % 2];
  }
}

// Writes `rows` classes x WIDE channels of `taps` elements from shared memory to out [.., C, K*K], from first_tap on.
template <class T>
FGASEG_DEVICE void store_rows(T* out, const T* from, const Kernels<T>& k, int64_t b, int first_class, int rows,
                              int first_channel, int first_tap, int taps) {
  constexpr int PIECE = 16 / sizeof(T);
  const int64_t length = int64_t(k.channels) * k.taps;
  T* const to = out + (b * k.classes + first_class) * length + int64_t(first_channel) * k.taps + first_tap;
  rows = min(rows, k.classes - first_class);
  const int channels = min(WIDE, k.channels - first_channel), run = channels * taps;
  if (taps == NINE && k.taps == NINE && channels == WIDE && in_pieces(to, length, run)) {
    for (int i = threadIdx.x; i < rows * run / PIECE; i += THREADS)
      *reinterpret_cast<uint4*>(to + i / (run / PIECE) * length + i % (run / PIECE) * PIECE) =
          *reinterpret_cast<const uint4*>(from + i * PIECE);
    return;
  }
  for (int i = threadIdx.x; i < rows * run; i += THREADS) {
    const int t = i / run, c = i % run / taps, tap = i % run % taps;
    to[t * length + int64_t(c) * k.taps + tap] = from[(t * WIDE + c) * NINE + tap];
  }
}

// Replaces nine logits by their gradient, p (d - sum of p d).
template <class T>
FGASEG_DEVICE void finish_nine(T* row, const float (&d)[NINE], bool softmax) {
  float p[NINE], dot = 0;
  if (softmax) softmax_of_nine(p, row);
#pragma unroll
  for (int i = 0; i < NINE; ++i) dot += softmax ? p[i] * d[i] : 0;
#pragma unroll
  for (int i = 0; i < NINE; ++i) row[i] = from_float<T>(softmax ? p[i] * (d[i] - dot) : d[i]);
}

// Calls f(class, channel, nine gradients) for every class (from 16 m on) and channel of this thread.
template <class F>
FGASEG_DEVICE void for_each_nine(const NineResults& results, int m, const F& f) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float nine[NINE];
#pragma unroll
    for (int i = 0; i < NINE; ++i) nine[i] = results[i][m][k];
    f(k / 2 * 8 + lane() / 4, warp() * 8 + 2 * (lane() % 4) + k % 2, nine);
  }
}

template <class T, bool ALL>  // ALL: the kernel has only these nine taps
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 2 : 1) kernel_grad(const KernelGrad<T> p) {
  FGASEG_DYNAMIC_SHARED(T, memory);
  const Tiles& tiles = p.tiles;
  const Kernels<T>& k = p.kernels;
  const int groups = (k.taps + NINE - 1) / NINE, blocks = (k.channels + WIDE - 1) / WIDE;
  const int class_blocks = (k.classes + ROWS - 1) / ROWS;
  int block = blockIdx.x;
  const int first_tap = block % groups * NINE, first_channel = (block /= groups) % blocks * WIDE;
  const int first_class = (block /= blocks) % class_blocks * ROWS, b = block / class_blocks;
  const int taps = min(NINE, k.taps - first_tap), pixels = tiles.height * tiles.width;
  const int stride = grad_stride(pixels, sizeof(T));
  T* const grad = memory + (p.spare + 1) * WIDE;
  int* const slots = reinterpret_cast<int*>(grad + ROWS * stride);

  const Range range = tap_rows(first_tap, taps, k.size, tiles.halo_y, false);
  int shifts[NINE];  // -1: there is no such tap inside the image
#pragma unroll
  for (int i = 0; i < NINE; ++i) {
    const int dy = (first_tap + i) / k.size - k.size / 2, dx = (first_tap + i) % k.size - k.size / 2;
    const bool reaches = i < taps && abs(dy) <= tiles.halo_y && abs(dx) <= tiles.halo_x;
    shifts[i] = reaches ? (dy - range.first) * tiles.row + dx + tiles.halo_x : -1;
  }
  for (int i = threadIdx.x; i < (pixels + 15) / 16 * 16; i += THREADS)
    slots[i] = i < pixels ? i / tiles.width * tiles.row + i % tiles.width : -1;
  for (int i = threadIdx.x; i < WIDE; i += THREADS) memory[p.spare * WIDE + i] = from_float<T>(0);

  NineResults results = {};
  for (int tile = 0; tile < tiles.count && range.first <= range.last; ++tile) {
    const int top = tile / tiles.across * tiles.height, left = tile % tiles.across * tiles.width;
    __syncthreads();
    stage_image<T, WIDE>(memory, p.pixels, b, first_channel, top + range.first, left - tiles.halo_x,
                         tiles.height + range.last - range.first, tiles.row);
    stage_grad(grad, p.grad, tiles, b, first_class, top, left);
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < pixels; i += 16)
      multiply_nine(results, grad + i, stride, memory, slots + i, shifts, p.spare);
  }
  __syncthreads();

  if (ALL) {
    load_logits<T, ROWS, WIDE>(memory, k, b, first_class, first_channel, 0, NINE, NINE);
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m)
      for_each_nine(results, m, [&](int t, int c, const float(&d)[NINE]) {
        finish_nine(memory + ((m * 16 + t) * WIDE + c) * NINE, d, k.softmax);
      });
    __syncthreads();
    store_rows(p.out, memory, k, b, first_class, ROWS, first_channel, 0, NINE);
  } else {
    float* const rows = reinterpret_cast<float*>(memory);
    const Kernels<float> to{nullptr, 0, 0, 0, k.classes, k.channels, k.taps, k.size, false};
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      for_each_nine(results, m, [&](int t, int c, const float(&d)[NINE]) {
        for (int i = 0; i < NINE; ++i) rows[(t * WIDE + c) * NINE + i] = d[i];
      });
      __syncthreads();
      store_rows(p.scratch, rows, to, b, first_class + m * 16, 16, first_channel, first_tap, taps);
      __syncthreads();
    }
  }
}

template <class F>
FGASEG_DEVICE float over_warp(float x, const F& combine) {
  for (int i = 16; i > 0; i /= 2) x = combine(x, __shfl_xor_sync(~0u, x, i));
  return x;
}

// out = p (d - sum of p d), one warp per class and channel.
template <class T>
__global__ void __launch_bounds__(THREADS) finish(const KernelGrad<T> p, int64_t rows) {
  const Kernels<T>& k = p.kernels;
  const int64_t row = int64_t(blockIdx.x) * WARPS + warp();
  if (row >= rows) return;
  const int64_t t = row / k.channels;
  const int64_t element = row % k.channels * k.taps;
  const T* const x =
      k.logits + t / k.classes * k.stride_batch + t % k.classes * k.stride_class + element * k.stride_element;
  const float* const d = p.scratch + row * k.taps;
  float top = -FLT_MAX, sum = 0, dot = 0;
  if (k.softmax) {
    for (int i = lane(); i < k.taps; i += 32) top = fmaxf(top, to_float(x[i * k.stride_element]));
    top = over_warp(top, [](float a, float b) { return fmaxf(a, b); });
    for (int i = lane(); i < k.taps; i += 32) {
      const float e = expf(to_float(x[i * k.stride_element]) - top);
      sum += e;
      dot += e * d[i];
    }
    sum = over_warp(sum, [](float a, float b) { return a + b; });
    dot = over_warp(dot, [](float a, float b) { return a + b; }) / sum;
  }
  for (int i = lane(); i < k.taps; i += 32) {
    const float y = k.softmax ? expf(to_float(x[i * k.stride_element]) - top) / sum * (d[i] - dot) : d[i];
    p.out[row * k.taps + i] = from_float<T>(y);
  }
}

}  // namespace
}  // namespace fgaseg
