// The convolution of lcs_conv on the GPU: a block has 32 classes and a tile of pixels, and loops over the channels, 16
// at a time. The tile is as large as the accumulators allow (9 x 8 pixels for each of 8 warps, 72 registers), because
// every tile normalises its kernels again: by instruction rates the exponentials take a fifth of the products' time at
// 576 pixels, two thirds at 192.
//
//   logits    are loaded asynchronously (cp.async) while the previous step is multiplied, or by plain loads if they are
//             not aligned. A thread normalises two adjacent channels of a class in float32 registers and writes them
//             rounded, as [tap][class][channel]: the left operand of every tap.
//   pixels    lie in shared memory channels last with their halo, so that every tap's right operand is the same memory
//             at shifted rows: K*K products and no unfolded copy.
//   K > 5     the kernels of 32 x 16 would not fit: taps are processed in groups of 32 bytes, after a first pass over
//             the same logits (then in the second-level cache) for maximum and sum.
//
// With few classes and images the channels are divided among blocks: partial sums in float32, added in a fixed order.
// BACK, the gradient of the pixels, exchanges classes and channels and mirrors the taps: the stored kernels are read
// transposed. float32 runs through the same code with fused multiply-adds in the mma's register layout, on tiles of 320
// pixels, and has a second set of accumulators, so that no long chain of additions loses bits.
#pragma once
#include <climits>
#include <type_traits>

#include "lcs_conv/stage.h"

namespace fgaseg {
namespace {

FGASEG_DEVICE void store_pair(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = make_float2(x, y); }
template <class T>
FGASEG_DEVICE void store_pair(T* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(x, y);
}

// Writes a thread's two rows of logits, of adjacent channels, as kernels [tap][class][CHANNELS].
template <class T, int CHANNELS>
FGASEG_DEVICE void write_kernels(T* kernels, const T* rows, const Softmax (&s)[2], int taps, int stride, bool softmax) {
  const int offset = swizzled<T, CHANNELS>(2 * threadIdx.x / CHANNELS, 2 * threadIdx.x % CHANNELS);
  const float scale[] = {1 / s[0].sum, 1 / s[1].sum};
  for (int i = 0; i < taps; ++i) {
    float x[] = {to_float(rows[i]), to_float(rows[stride + i])};
    if (softmax)
      for (int j = 0; j < 2; ++j) x[j] = expf(x[j] - s[j].top) * scale[j];
    store_pair(kernels + i * PLANE + offset, x[0], x[1]);
  }
}

template <class T, int CHANNELS>
FGASEG_DEVICE void write_nine(T* kernels, const T* rows) {
  const int offset = swizzled<T, CHANNELS>(2 * threadIdx.x / CHANNELS, 2 * threadIdx.x % CHANNELS);
  float x[2][NINE];
  softmax_of_nine(x[0], rows);
  softmax_of_nine(x[1], rows + NINE);
#pragma unroll
  for (int i = 0; i < NINE; ++i) store_pair(kernels + i * PLANE + offset, x[0][i], x[1][i]);
}

// The pixel in column h of this thread's fragment of mma tile j. The tiles are dealt out to the warps in turn, so that
// a small image keeps all of them busy.
FGASEG_DEVICE int pixel_of(int j, int h) { return (j * WARPS + warp()) * 8 + 2 * (lane() % 4) + h; }

using HalfSlots = int[(N_TILES<__half> + 1) / 2];
using FloatSlots = int[N_TILES<float>][2];

template <class T>
using Results = float[2][N_TILES<T>][4];

// results += kernels of one tap (ROWS x STEP) times pixels at `shift`, with tensor cores. slots[j]: the row whose
// address this lane supplies for the pair of tiles j.
template <bool BACK, class T>
FGASEG_DEVICE void multiply(Results<T>& results, const T* kernels, const T* image, const HalfSlots& slots, int shift,
                            int tiles) {
  uint32_t left[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
    if (BACK)
      load_matrices_transposed(
          left[m], kernels + swizzled<T, ROWS>(lane() / 16 * 8 + lane() % 8, m * 16 + lane() / 8 % 2 * 8));
    else
      load_matrices(left[m], kernels + swizzled<T, STEP>(m * 16 + lane() % 16, lane() / 16 * 8));
#pragma unroll
  for (int j = 0; j < N_TILES<T>; j += 2) {
    if (j * WARPS + warp() >= tiles) break;
    uint32_t right[4];
    load_matrices(right, image + swizzled<T, STEP>(slots[j / 2] + shift, lane() / 8 % 2 * 8));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add<T>(results[m][j], left[m], {right[0], right[1]});
      if (j + 1 < N_TILES<T>) multiply_add<T>(results[m][j + 1], left[m], {right[2], right[3]});
    }
  }
}

// The same in float32. slots[j][h]: the row of pixel_of(j, h). The products of a tap are summed before they are added
// to the results, and those of a group of taps before they are added to the totals: one long chain of additions would
// lose bits.
template <bool BACK>
FGASEG_DEVICE void multiply(Results<float>& results, const float* kernels, const float* image, const FloatSlots& slots,
                            int shift, int tiles) {
  float left[4][STEP];
#pragma unroll
  for (int i = 0; i < 4 * STEP; ++i) {
    const int row = i / STEP / 2 * 16 + i / STEP % 2 * 8 + lane() / 4, k = i % STEP;
    left[i / STEP][k] = kernels[BACK ? swizzled<float, ROWS>(k, row) : swizzled<float, STEP>(row, k)];
  }
#pragma unroll
  for (int j = 0; j < N_TILES<float>; ++j) {
    if (j * WARPS + warp() >= tiles) break;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sums[4] = {};
#pragma unroll
      for (int k = 0; k < STEP; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(image + swizzled<float, STEP>(slots[j][h] + shift, k));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* y = left[i] + k;
          sums[i] = fmaf(y[3], x.w, fmaf(y[2], x.z, fmaf(y[1], x.y, fmaf(y[0], x.x, sums[i]))));
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) results[i / 2][j][i % 2 * 2 + h] += sums[i];
    }
  }
}

template <class T>
FGASEG_DEVICE void flush(Results<T>& from, Results<T>& to) {
#pragma unroll
  for (int i = 0; i < 2 * N_TILES<T> * 4; ++i) {
    float& x = from[i / 4 % 2][i / 8][i % 4];
    to[i / 4 % 2][i / 8][i % 4] += x;
    x = 0;
  }
}

// The slot of pixel p at tap (0, 0) in a tile that is staged from its first row on; for pixels beyond the tile any
// slot.
FGASEG_DEVICE int slot_of(const Tiles& tiles, int p) {
  if (p >= tiles.height * tiles.width) p = 0;
  return p / tiles.width * tiles.row + p % tiles.width + tiles.halo_x;
}

FGASEG_DEVICE void find_slots(HalfSlots& slots, const Tiles& tiles) {
#pragma unroll
  for (int j = 0; j < N_TILES<__half>; j += 2)
    slots[j / 2] = slot_of(tiles, ((j + lane() / 16) * WARPS + warp()) * 8 + lane() % 8);
}
FGASEG_DEVICE void find_slots(FloatSlots& slots, const Tiles& tiles) {
#pragma unroll
  for (int j = 0; j < N_TILES<float>; ++j)
    for (int h = 0; h < 2; ++h) slots[j][h] = slot_of(tiles, pixel_of(j, h));
}

constexpr int NOWHERE = INT_MIN;  // the shift of a tap that is outside the image for every pixel

FGASEG_DEVICE int shift_of(int tap, int size, const Tiles& tiles, int first_row, bool mirrored) {
  const int dy = tap / size - size / 2, dx = tap % size - size / 2;
  if (abs(dy) > tiles.halo_y || abs(dx) > tiles.halo_x) return NOWHERE;
  return ((mirrored ? -dy : dy) - first_row) * tiles.row + (mirrored ? -dx : dx);
}

template <class T>
struct Convolution {
  Image<T> image;  // the pixels, or the gradient
  Kernels<T> kernels;
  const T* bias;
  int64_t bias_batch, bias_class;  // strides
  T* out;                          // [B, rows, H, W]
  float* parts;                    // partial sums [parts][B, rows, H, W], or null to write out
  int64_t size;                    // of a part
  int rows, row_blocks, steps;     // steps: of STEP channels (classes), in one part
  Tiles tiles;
  int group, stride;  // taps normalised together; elements between two rows of raw logits
  bool whole_halo;    // the whole halo is staged once per step, instead of the rows of each group of taps
};

template <class T, bool BACK>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 2 : 1) convolve(const Convolution<T> p) {
  constexpr int CLASSES = BACK ? STEP : ROWS, CHANNELS = BACK ? ROWS : STEP;
  FGASEG_DYNAMIC_SHARED(T, kernels);
  FGASEG_SHARED(shifts, int[MOST_TAPS]);  // of a group of taps
  T* const raw = kernels + p.group * PLANE;
  T* const image = raw + p.stride * PLANE;
  const Tiles& tiles = p.tiles;
  const int tile = blockIdx.x % tiles.count, row_block = blockIdx.x / tiles.count % p.row_blocks;
  const int b = blockIdx.x / tiles.count / p.row_blocks;
  const int top = tile / tiles.across * tiles.height, left = tile % tiles.across * tiles.width;
  const int pixels = tiles.height * tiles.width, first_row = row_block * ROWS;

  const int groups = (p.kernels.taps + p.group - 1) / p.group;
  const int walks = p.kernels.softmax && groups > 1 ? 2 : 1;  // the first for maximum and sum
  const int first_step = blockIdx.y * p.steps, all_steps = (p.image.channels + STEP - 1) / STEP;
  const int items = (min(first_step + p.steps, all_steps) - first_step) * walks * groups;
  const auto load = [&](int item) {
    const int summed = (first_step + item / (walks * groups)) * STEP, first_tap = item % groups * p.group;
    load_logits<T, CLASSES, CHANNELS>(raw, p.kernels, b, BACK ? summed : first_row, BACK ? first_row : summed,
                                      first_tap, min(p.group, p.kernels.taps - first_tap), p.stride);
  };

  constexpr bool HALF = sizeof(T) == 2;
  Results<T> results = {}, group_results = {};
  std::conditional_t<HALF, HalfSlots, FloatSlots> slots;
  find_slots(slots, tiles);
  Softmax softmax[2];
  if (items > 0) load(0);
  for (int item = 0; item < items; ++item) {
    const int step = item / (walks * groups), group = item % groups, size = p.kernels.size;
    const bool last_walk = item / groups % walks == walks - 1;
    const int first_tap = group * p.group, taps = min(p.group, p.kernels.taps - first_tap);
    const T* rows = raw + 2 * threadIdx.x * p.stride;
    Range range = tap_rows(first_tap, taps, size, tiles.halo_y, BACK);
    if (p.whole_halo) range = {-tiles.halo_y, tiles.halo_y};
    wait_copies<0>();
    __syncthreads();  // the logits have arrived, and the previous products are done
    if (threadIdx.x < taps) shifts[threadIdx.x] = shift_of(first_tap + threadIdx.x, size, tiles, range.first, BACK);
    if (last_walk && (group == 0 || !p.whole_halo))
      stage_image<T, STEP>(image, p.image, b, (first_step + step) * STEP, top + range.first, left - tiles.halo_x,
                           tiles.height + range.last - range.first, tiles.row);
    if (p.kernels.softmax && group == 0 && (walks == 1 || !last_walk)) softmax[0] = softmax[1] = Softmax();
    if (!HALF && p.kernels.softmax && p.kernels.taps == NINE && walks == 1) {
      write_nine<T, CHANNELS>(kernels, rows);
    } else {
      if (p.kernels.softmax && (walks == 1 || !last_walk))
        for (int i = 0; i < 2; ++i) include(softmax[i], rows + i * p.stride, taps);
      if (last_walk) write_kernels<T, CHANNELS>(kernels, rows, softmax, taps, p.stride, p.kernels.softmax);
    }
    __syncthreads();
    if (item + 1 < items) load(item + 1);
    if (!last_walk) continue;
#pragma unroll 1
    for (int i = 0; i < taps; ++i)
      if (shifts[i] != NOWHERE)
        multiply<BACK>(HALF ? results : group_results, kernels + i * PLANE, image, slots, shifts[i], (pixels + 7) / 8);
    if (!HALF) flush<T>(group_results, results);
  }

#pragma unroll
  for (int i = 0; i < N_TILES<T> * 2; ++i) {
    const int j = i / 2, h = i % 2, pixel = pixel_of(j, h);
    const int y = top + pixel / tiles.width, x = left + pixel % tiles.width;
    if (pixel >= pixels || y >= p.image.height || x >= p.image.width) continue;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int row = first_row + k / 2 * 16 + k % 2 * 8 + lane() / 4;
      if (row >= p.rows) continue;
      const float sum = results[k / 2][j][k % 2 * 2 + h];
      const int64_t offset = ((int64_t(b) * p.rows + row) * p.image.height + y) * p.image.width + x;
      if (p.parts)
        p.parts[blockIdx.y * p.size + offset] = sum;
      else
        p.out[offset] = from_float<T>(sum + (p.bias ? to_float(p.bias[b * p.bias_batch + row * p.bias_class]) : 0));
    }
  }
}

// out = the sum of the parts, in their order, plus the bias of the row.
template <class T>
__global__ void __launch_bounds__(THREADS) add_parts(const Convolution<T> p, int parts) {
  const int64_t offset = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (offset >= p.size) return;
  const int64_t row = offset / (int64_t(p.image.height) * p.image.width);
  float sum = p.bias ? to_float(p.bias[row / p.rows * p.bias_batch + row % p.rows * p.bias_class]) : 0;
  for (int i = 0; i < parts; ++i) sum += p.parts[i * p.size + offset];
  p.out[offset] = from_float<T>(sum);
}

}  // namespace
}  // namespace fgaseg
