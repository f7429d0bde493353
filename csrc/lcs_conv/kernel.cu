// lcs_conv on NVIDIA GPUs. kernels/lcs_conv/op.py has the schema, cuda.cpp the host side.
//
//   out[b,t,n] = bias[b,t] + sum over c and taps of kernels[b,t,c,tap] * pixels[b,c,n + shift(tap)]
//
// Counted for S3 of the design (B = 5, T = 847, C = 512, 24x24, K = 3, bfloat16): 39 MB of logits, 2.9 MB of pixels and
// 4.9 MB of output, each once (16 us at 3 TB/s), and 2*B*T*C*K*K*H*W = 22.5 G operations (28 us at 790 T/s). What this
// kernel asks of the second-level cache: the logits once for every tile of up to 576 pixels (once at 24x24, four times
// at 48x48), and the pixels once for every 32 classes, 1.17 times with the halo: 93 MB here.
//
// convolve: a block has 32 classes and a tile of pixels, and walks the channels 16 at a time. The tile is as large as
// the accumulators allow (9 x 8 pixels for each of 8 warps, 72 registers), because every tile normalises its kernels
// again: by instruction rates the exponentials take a fifth of the products' time at 576 pixels, two thirds at 192.
//   logits    arrive in the background (cp.async) while the previous step multiplies; where memory does not allow that,
//             by plain loads. A thread normalises two neighbouring channels of a class in float32 registers and
//             writes them rounded, as [tap][class][channel]: the left operand of every tap.
//   pixels    lie in shared memory channels last with their halo, so that every tap's right operand is the same memory
//             at shifted rows: K*K products and no unfolded copy.
//   K > 5     the kernels of 32 x 16 would not fit: taps are worked off in groups of 32 bytes, after a first walk over
//             the same logits (in the second-level cache by then) for maximum and sum.
// With few classes and images the channels are divided among blocks: partial sums in float32, added in a fixed order.
//
// The gradient of the pixels is the same kernel with classes and channels exchanged and taps mirrored: the stored
// kernels are read transposed. That of the logits sums over pixels: kernel_grad has 32 classes x 64 channels x 9 taps
// in registers, all of a 3x3 kernel, so its softmax ends there; larger kernels take a float32 scratch and a last pass
// (finish). Both gradients normalise the kernels again, nothing is kept. No atomics: every run gives the same bits.
//
// float32 runs through the same code with fused multiply-adds in the mma's register layout, on tiles of 320 pixels:
// each accumulator has a second one behind it, so that no long chain of additions loses bits.
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int ROWS = 32;     // of a block's results: classes, or channels of the gradient of the pixels
constexpr int STEP = 16;     // summed at a time: channels, or classes
constexpr int PLANE = ROWS * STEP;  // kernels of one tap; a thread has two of them
constexpr int NINE = 9;      // taps of kernel_grad
constexpr int WIDE = 64;     // channels of kernel_grad, 8 a warp
constexpr int MOST_TAPS = 32;          // normalised together
constexpr int MOST_SHARED = 98 << 10;  // a little less than any GPU since 8.0 has
constexpr int ENOUGH_BLOCKS = 256;     // two for each multiprocessor of the large ones
constexpr int LEAST_STEPS = 2;         // of a part, so that a step can be loaded while another multiplies

// mma tiles of 8 pixels, a warp. float32 has its accumulators twice.
template <class T>
constexpr int N_TILES = sizeof(T) == 2 ? 9 : 5;

struct Strides {
  int64_t batch, channel, row, column;
};

template <class T>
struct Image {
  const T* data;
  Strides strides;
  int channels, height, width;
};

template <class T>
struct Kernels {
  const T* logits;
  int64_t batch, klass, number;  // strides
  int classes, channels, taps, size;
  bool softmax;
};

// How an image is divided, each tile with a halo of what its taps reach inside of the image.
struct Tiles {
  int height, width, across, count;
  int halo_y, halo_x, row;  // row: pixels of a tile's row with its halo
};

// Where rows of WIDTH numbers are in shared memory: pieces of 16 bytes are exchanged so that one column of eight
// neighbouring rows comes from different banks.
template <class T, int WIDTH>
FGASEG_DEVICE int place(int row, int column) {
  constexpr int PIECE = 16 / sizeof(T), PIECES = WIDTH / PIECE, BYTES = WIDTH * sizeof(T);
  constexpr int ROWS_A_LINE = BYTES < 128 ? 128 / BYTES : 1;
  return row * WIDTH + (column / PIECE ^ row / ROWS_A_LINE % PIECES) * PIECE + column % PIECE;
}

FGASEG_DEVICE int lane() { return threadIdx.x % 32; }
FGASEG_DEVICE int warp() { return threadIdx.x / 32; }

// `rows` rows of a tile from (top, left) on, channels [first, first + WIDTH) last; zero outside.
template <class T, int WIDTH>
FGASEG_DEVICE void stage_image(T* __restrict__ to, const Image<T>& image, int64_t b, int first, int top, int left,
                               int rows, int row_pixels) {
  constexpr int PIECE = 16 / sizeof(T);
  const Strides& s = image.strides;
  for (int c = 0; c < WIDTH; c += PIECE)
    for (int i = threadIdx.x; i < rows * row_pixels; i += THREADS) {
      const int y = top + i / row_pixels, x = left + i % row_pixels;
      const bool inside = y >= 0 && y < image.height && x >= 0 && x < image.width;
      const T* from = image.data + b * s.batch + (first + c) * s.channel + y * s.row + x * s.column;
      T piece[PIECE];
      uint4 bits;
#pragma unroll
      for (int k = 0; k < PIECE; ++k)
        piece[k] = inside && first + c + k < image.channels ? from[k * s.channel] : from_float<T>(0);
      memcpy(&bits, piece, sizeof bits);
      *reinterpret_cast<uint4*>(to + place<T, WIDTH>(i, c)) = bits;
    }
}

// Whether rows of `length` numbers, `stride` apart, can be moved in pieces of 16 bytes.
template <class T>
FGASEG_DEVICE bool in_pieces(const T* row, int64_t stride, int length) {
  constexpr int PIECE = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(row) % 16 == 0 && stride % PIECE == 0 && length % PIECE == 0;
}

// Starts to load taps [first_tap, first_tap + taps) of CLASSES x CHANNELS rows, `stride` apart; zero outside.
template <class T, int CLASSES, int CHANNELS>
FGASEG_DEVICE void load_logits(T* __restrict__ to, const Kernels<T>& k, int64_t b, int first_class, int first_channel,
                               int first_tap, int taps, int stride) {
  constexpr int PIECE = 16 / sizeof(T), LANES = 8;
  const int64_t number = int64_t(first_channel) * k.taps + first_tap;
  const T* from = k.logits + b * k.batch + first_class * k.klass + number * k.number;
  const bool whole = taps == k.taps && stride == taps && k.number == 1 && first_channel + CHANNELS <= k.channels;
  if (whole && in_pieces(from, k.klass, CHANNELS * taps)) {
    const int pieces = CHANNELS * taps / PIECE;
    for (int i = threadIdx.x; i < CLASSES * pieces; i += THREADS) {
      const bool inside = first_class + i / pieces < k.classes;
      const T* piece = from + i / pieces * k.klass + i % pieces * PIECE;
      copy_async<16>(to + i * PIECE, inside ? piece : from, inside);
    }
  } else {
#pragma unroll 2
    for (int row = threadIdx.x / LANES; row < CLASSES * CHANNELS; row += THREADS / LANES) {
      const int t = row / CHANNELS, c = row % CHANNELS;
      const bool inside = first_class + t < k.classes && first_channel + c < k.channels;
      for (int i = threadIdx.x % LANES; i < taps; i += LANES)
        to[row * stride + i] = inside ? from[t * k.klass + (int64_t(c) * k.taps + i) * k.number] : from_float<T>(0);
    }
  }
  commit_copies();
}

// exp(x - top) for all taps so far: the largest, and the sum. Finite at first, so that a row may begin with -inf.
struct Softmax {
  float top = -FLT_MAX, sum = 0;
};

template <class T>
FGASEG_DEVICE void include(Softmax& s, const T* row, int taps) {
  float top = s.top;
  for (int i = 0; i < taps; ++i) top = fmaxf(top, to_float(row[i]));
  s.sum *= expf(s.top - top);
  for (int i = 0; i < taps; ++i) s.sum += expf(to_float(row[i]) - top);
  s.top = top;
}

// The same, all in registers.
template <class T>
FGASEG_DEVICE void softmax_of_nine(float (&x)[NINE], const T* row) {
  float top = to_float(row[0]), sum = 0;
#pragma unroll
  for (int i = 0; i < NINE; ++i) top = fmaxf(top, x[i] = to_float(row[i]));
#pragma unroll
  for (int i = 0; i < NINE; ++i) sum += x[i] = expf(x[i] - top);
  const float scale = 1 / sum;
#pragma unroll
  for (int i = 0; i < NINE; ++i) x[i] *= scale;
}

FGASEG_DEVICE void store_pair(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = make_float2(x, y); }
template <class T>
FGASEG_DEVICE void store_pair(T* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = pack<T>(x, y);
}

// A thread's two rows of logits, neighbouring channels, as kernels [tap][class][CHANNELS].
template <class T, int CHANNELS>
FGASEG_DEVICE void write_kernels(T* kernels, const T* rows, const Softmax (&s)[2], int taps, int stride, bool softmax) {
  const int at = place<T, CHANNELS>(2 * threadIdx.x / CHANNELS, 2 * threadIdx.x % CHANNELS);
  const float scale[] = {1 / s[0].sum, 1 / s[1].sum};
  for (int i = 0; i < taps; ++i) {
    float x[] = {to_float(rows[i]), to_float(rows[stride + i])};
    if (softmax)
      for (int j = 0; j < 2; ++j) x[j] = expf(x[j] - s[j].top) * scale[j];
    store_pair(kernels + i * PLANE + at, x[0], x[1]);
  }
}

template <class T, int CHANNELS>
FGASEG_DEVICE void write_nine(T* kernels, const T* rows) {
  const int at = place<T, CHANNELS>(2 * threadIdx.x / CHANNELS, 2 * threadIdx.x % CHANNELS);
  float x[2][NINE];
  softmax_of_nine(x[0], rows);
  softmax_of_nine(x[1], rows + NINE);
#pragma unroll
  for (int i = 0; i < NINE; ++i) store_pair(kernels + i * PLANE + at, x[0][i], x[1][i]);
}

// The pixel in column h of this thread's fragment of mma tile j. The tiles go around the warps, so a small image keeps
// all of them busy.
FGASEG_DEVICE int pixel_of(int j, int h) { return (j * WARPS + warp()) * 8 + 2 * (lane() % 4) + h; }

using HalfSlots = int[(N_TILES<__half> + 1) / 2];
using FloatSlots = int[N_TILES<float>][2];

template <class T>
using Results = float[2][N_TILES<T>][4];

// results += kernels of one tap (ROWS x STEP) times pixels at `shift`: tensor cores. slots[j]: the row whose address
// this lane gives for the pair of tiles j.
template <bool BACK, class T>
FGASEG_DEVICE void multiply(Results<T>& results, const T* kernels, const T* image, const HalfSlots& slots, int shift,
                            int tiles) {
  uint32_t left[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m)
    if (BACK)
      load_matrices_transposed(
          left[m], kernels + place<T, ROWS>(lane() / 16 * 8 + lane() % 8, m * 16 + lane() / 8 % 2 * 8));
    else
      load_matrices(left[m], kernels + place<T, STEP>(m * 16 + lane() % 16, lane() / 16 * 8));
#pragma unroll
  for (int j = 0; j < N_TILES<T>; j += 2) {
    if (j * WARPS + warp() >= tiles) break;
    uint32_t right[4];
    load_matrices(right, image + place<T, STEP>(slots[j / 2] + shift, lane() / 8 % 2 * 8));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      multiply_add<T>(results[m][j], left[m], {right[0], right[1]});
      if (j + 1 < N_TILES<T>) multiply_add<T>(results[m][j + 1], left[m], {right[2], right[3]});
    }
  }
}

// The same in float32. slots[j][h]: the row of pixel_of(j, h). The products of a tap are added up before they join the
// results, and those of a group of taps before they join the totals: thousands of terms in a row would lose their bits.
template <bool BACK>
FGASEG_DEVICE void multiply(Results<float>& results, const float* kernels, const float* image, const FloatSlots& slots,
                            int shift, int tiles) {
  float left[4][STEP];
#pragma unroll
  for (int i = 0; i < 4 * STEP; ++i) {
    const int row = i / STEP / 2 * 16 + i / STEP % 2 * 8 + lane() / 4, k = i % STEP;
    left[i / STEP][k] = kernels[BACK ? place<float, ROWS>(k, row) : place<float, STEP>(row, k)];
  }
#pragma unroll
  for (int j = 0; j < N_TILES<float>; ++j) {
    if (j * WARPS + warp() >= tiles) break;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sums[4] = {};
#pragma unroll
      for (int k = 0; k < STEP; k += 4) {
        const float4 x = *reinterpret_cast<const float4*>(image + place<float, STEP>(slots[j][h] + shift, k));
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

// The slot, in a tile staged from its first row on, of pixel p at tap (0, 0); beyond the tile any that exists.
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

// The rows of taps, from the centre, that a group of taps has inside of the halo; mirrored for the gradient.
struct Range {
  int first, last;
};
FGASEG_DEVICE Range tap_rows(int first_tap, int taps, int size, int halo, bool mirrored) {
  const int first = max(first_tap / size - size / 2, -halo), last = min((first_tap + taps - 1) / size - size / 2, halo);
  return mirrored ? Range{-last, -first} : Range{first, last};
}

constexpr int NOWHERE = INT_MIN;  // a tap that is outside of the image at every pixel

FGASEG_DEVICE int shift_of(int tap, int size, const Tiles& tiles, int first_row, bool mirrored) {
  const int dy = tap / size - size / 2, dx = tap % size - size / 2;
  if (abs(dy) > tiles.halo_y || abs(dx) > tiles.halo_x) return NOWHERE;
  return ((mirrored ? -dy : dy) - first_row) * tiles.row + (mirrored ? -dx : dx);
}

template <class T>
struct Convolution {
  Image<T> image;  // pixels; grad
  Kernels<T> kernels;
  const T* bias;
  int64_t bias_batch, bias_class;  // strides
  T* out;                          // [B, rows, H, W]
  float* parts;                    // [parts][B, rows, H, W], instead of out
  int64_t size;                    // of a part
  int rows, row_blocks, steps;     // steps: of STEP channels (classes), those of one part
  Tiles tiles;
  int group, stride;  // taps normalised together; numbers between two rows of raw logits
  bool whole_halo;    // all rows of the halo are staged once a step, not those of each group of taps
};

template <class T, bool BACK>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 2 : 1) convolve(const Convolution<T> p) {
  constexpr int CLASSES = BACK ? STEP : ROWS, CHANNELS = BACK ? ROWS : STEP;
  FGASEG_DYNAMIC_SHARED(T, kernels);
  FGASEG_SHARED(shifts, int[MOST_TAPS]);  // of a group
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
    __syncthreads();  // the logits are there, and the previous products have been made
    if (threadIdx.x < taps) shifts[threadIdx.x] = shift_of(first_tap + threadIdx.x, size, tiles, range.first, BACK);
    if (last_walk && (group == 0 || !p.whole_halo))
      stage_image<T, STEP>(image, p.image, b, (first_step + step) * STEP, top + range.first, left - tiles.halo_x,
                           tiles.height + range.last - range.first, tiles.row);
    if (p.kernels.softmax && group == 0 && (walks == 1 || !last_walk)) softmax[0] = softmax[1] = Softmax();
    if (p.kernels.softmax && p.kernels.taps == NINE && walks == 1) {
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
      const int64_t at = ((int64_t(b) * p.rows + row) * p.image.height + y) * p.image.width + x;
      if (p.parts)
        p.parts[blockIdx.y * p.size + at] = sum;
      else
        p.out[at] = from_float<T>(sum + (p.bias ? to_float(p.bias[b * p.bias_batch + row * p.bias_class]) : 0));
    }
  }
}

// out = sum of the parts, in their order, plus the bias of the row.
template <class T>
__global__ void __launch_bounds__(THREADS) add_parts(const Convolution<T> p, int parts) {
  const int64_t at = int64_t(blockIdx.x) * THREADS + threadIdx.x;
  if (at >= p.size) return;
  const int64_t row = at / (int64_t(p.image.height) * p.image.width);
  float sum = p.bias ? to_float(p.bias[row / p.rows * p.bias_batch + row % p.rows * p.bias_class]) : 0;
  for (int i = 0; i < parts; ++i) sum += p.parts[i * p.size + at];
  p.out[at] = from_float<T>(sum);
}

template <class T>
struct KernelGrad {
  Image<T> grad, pixels;
  Kernels<T> kernels;
  T* out;          // [B, T, C*K*K], for K = 3
  float* scratch;  // the same in float32, before the softmax, for all others
  Tiles tiles;
  int spare;  // the slot that is zero, behind all others
};

using NineResults = float[NINE][2][4];

FGASEG_DEVICE int grad_stride(int pixels, int number_size) { return (pixels + 15) / 16 * 16 + 16 / number_size; }

// The gradient at ROWS classes and the pixels of a tile: [class][pixel], zero outside.
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

// results[tap] += grad (ROWS x 16 pixels) times pixels (16, shifted, x 8 channels of this warp): tensor cores.
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
    load_matrices_transposed(right, pixels + place<T, WIDE>(slot < 0 ? spare : slot + shifts[i], warp() * 8));
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
      const int at = place<float, WIDE>(slot, warp() * 8 + 2 * (lane() % 4));
      const float2 x = *reinterpret_cast<const float2*>(pixels + at);
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

// `rows` classes x WIDE channels of `taps` numbers from shared memory to out [.., C, K*K], from first_tap on.
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

// In place of nine logits: their gradient, p (d - sum of p d).
template <class T>
FGASEG_DEVICE void finish_nine(T* row, const float (&d)[NINE], bool softmax) {
  float p[NINE], dot = 0;
  if (softmax) softmax_of_nine(p, row);
#pragma unroll
  for (int i = 0; i < NINE; ++i) dot += softmax ? p[i] * d[i] : 0;
#pragma unroll
  for (int i = 0; i < NINE; ++i) row[i] = from_float<T>(softmax ? p[i] * (d[i] - dot) : d[i]);
}

// f(class, channel, nine gradients) for each pair of class (of 16 m ..) and channel of this thread.
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

template <class T, bool ALL>  // ALL: these nine taps are all there are
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
  int shifts[NINE];  // -1: no such tap inside of the image
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

// out = p (d - sum of p d), a warp for each class and channel.
template <class T>
__global__ void __launch_bounds__(THREADS) finish(const KernelGrad<T> p, int64_t rows) {
  const Kernels<T>& k = p.kernels;
  const int64_t row = int64_t(blockIdx.x) * WARPS + warp();
  if (row >= rows) return;
  const int64_t t = row / k.channels;
  const int64_t number = row % k.channels * k.taps;
  const T* const x = k.logits + t / k.classes * k.batch + t % k.classes * k.klass + number * k.number;
  const float* const d = p.scratch + row * k.taps;
  float top = -FLT_MAX, sum = 0, dot = 0;
  if (k.softmax) {
    for (int i = lane(); i < k.taps; i += 32) top = fmaxf(top, to_float(x[i * k.number]));
    top = over_warp(top, [](float a, float b) { return fmaxf(a, b); });
    for (int i = lane(); i < k.taps; i += 32) {
      const float e = expf(to_float(x[i * k.number]) - top);
      sum += e;
      dot += e * d[i];
    }
    sum = over_warp(sum, [](float a, float b) { return a + b; });
    dot = over_warp(dot, [](float a, float b) { return a + b; }) / sum;
  }
  for (int i = lane(); i < k.taps; i += 32) {
    const float y = k.softmax ? expf(to_float(x[i * k.number]) - top) / sum * (d[i] - dot) : d[i];
    p.out[row * k.taps + i] = from_float<T>(y);
  }
}

int64_t blocks_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

struct Sizes {
  int64_t batch, channels, classes, height, width, size;
  explicit Sizes(const int64_t* n)
      : batch(n[0]), channels(n[1]), classes(n[2]), height(n[3]), width(n[4]), size(n[5]) {}
};

// Tiles of at most `pixels` pixels: the whole image, or near to square, as the halo is smallest then.
Tiles tiles_of(const Sizes& s, int64_t pixels, int64_t widest) {
  int64_t width = s.width, height = s.height;
  if (width * height > pixels) {
    width = blocks_of(s.width, blocks_of(s.width, widest));
    height = min(s.height, pixels / width);
    height = blocks_of(s.height, blocks_of(s.height, height));
  }
  const int64_t across = blocks_of(s.width, width), halo_x = min(s.size / 2, s.width - 1);
  return {int(height), int(width), int(across), int(across * blocks_of(s.height, height)),
          int(min(s.size / 2, s.height - 1)), int(halo_x), int(width + 2 * halo_x)};
}

struct Tiling {
  Tiles tiles;
  int64_t bytes;
  bool whole_halo;
};

// The largest tiles, `most` pixels or less, whose shared memory, bytes(tiles), fits; all of the halo if that fits.
template <class F>
Tiling fit(const Sizes& s, int most, const F& bytes) {
  constexpr int PIXELS[] = {576, 320, 192, 64, 16}, WIDEST[] = {32, 24, 16, 8, 4};
  for (bool whole_halo : {true, false})
    for (int i = 0; i < 5; ++i) {
      const Tiles tiles = tiles_of(s, PIXELS[i], WIDEST[i]);
      const int64_t needed = bytes(tiles, whole_halo);
      if (PIXELS[i] <= most && (needed <= MOST_SHARED || (i == 4 && !whole_halo))) return {tiles, needed, whole_halo};
    }
  return {};
}

// Rows of taps, less one, that a group of taps reaches.
int64_t extra_rows(const Sizes& s, int64_t group) {
  return min(2 * min(s.size / 2, s.height - 1), (group + s.size - 2) / s.size);
}

int group_of(const Sizes& s, int64_t number_size) {
  const int64_t taps = s.size * s.size;
  return int(taps * number_size <= 64 ? taps : 32 / number_size);
}

Tiling convolution_tiling(const Sizes& s, int64_t number_size) {
  const int64_t group = group_of(s, number_size);
  return fit(s, number_size == 2 ? 576 : 320, [&](const Tiles& tiles, bool whole_halo) {
    const int64_t rows = tiles.height + (whole_halo ? 2 * tiles.halo_y : extra_rows(s, group));
    return ((group + (group | 1)) * PLANE + rows * tiles.row * STEP) * number_size;
  });
}

// Among how many blocks the sum over `summed` channels or classes is divided.
int64_t parts_of(const Sizes& s, int64_t rows, int64_t summed, int64_t number_size) {
  const int64_t blocks = s.batch * blocks_of(rows, ROWS) * convolution_tiling(s, number_size).tiles.count;
  const int64_t steps = max(blocks_of(summed, STEP), int64_t(1)), most = max(steps / LEAST_STEPS, int64_t(1));
  const int64_t parts = min(most, max(ENOUGH_BLOCKS / max(blocks, int64_t(1)), int64_t(1)));
  return blocks_of(steps, blocks_of(steps, parts));
}

template <class T>
Image<T> image_of(const void* data, const int64_t* strides, int64_t channels, const Sizes& s) {
  return {static_cast<const T*>(data), {strides[0], strides[1], strides[2], strides[3]},
          int(channels), int(s.height), int(s.width)};
}

template <class T>
Kernels<T> kernels_of(const void* logits, const int64_t* strides, const Sizes& s, bool softmax) {
  return {static_cast<const T*>(logits), strides[0], strides[1], strides[2], int(s.classes), int(s.channels),
          int(s.size * s.size), int(s.size), softmax};
}

// Of pixels with the kernels (plus bias), or back: of the gradient at the output with the mirrored kernels.
template <class T, bool BACK>
int start_convolution(const void* image, const int64_t* image_strides, const void* logits, const int64_t* logit_strides,
                      const void* bias, const int64_t* bias_strides, void* out, float* parts, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
  const int64_t rows = BACK ? s.channels : s.classes, summed = BACK ? s.classes : s.channels;
  const int64_t row_blocks = blocks_of(rows, ROWS), number = parts_of(s, rows, summed, sizeof(T));
  const Tiling tiling = convolution_tiling(s, sizeof(T));
  const int group = group_of(s, sizeof(T));
  Convolution<T> p{image_of<T>(image, image_strides, summed, s),
                   kernels_of<T>(logits, logit_strides, s, softmax),
                   static_cast<const T*>(bias),
                   bias ? bias_strides[0] : 0,
                   bias ? bias_strides[1] : 0,
                   static_cast<T*>(out),
                   parts,
                   s.batch * rows * s.height * s.width,
                   int(rows),
                   int(row_blocks),
                   int(blocks_of(max(blocks_of(summed, STEP), int64_t(1)), number)),
                   tiling.tiles,
                   group,
                   group | 1,
                   tiling.whole_halo};
  const int64_t blocks = s.batch * row_blocks * tiling.tiles.count;
  const int error = launch(convolve<T, BACK>, {blocks, number}, THREADS, tiling.bytes, stream, p);
  if (error || !parts) return error;
  return launch(add_parts<T>, {blocks_of(p.size, THREADS)}, THREADS, 0, stream, p, int(number));
}

template <class T>
int start_kernel_grad(const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,
                      const void* logits, const int64_t* logit_strides, void* out, float* scratch, const int64_t* sizes,
                      bool softmax, void* stream) {
  const Sizes s(sizes);
  const int64_t taps = s.size * s.size;
  int spare = 0;
  const Tiling tiling = fit(s, 192, [&](const Tiles& tiles, bool) {
    spare = int((tiles.height + extra_rows(s, NINE)) * tiles.row);
    const int64_t pixels = int64_t(tiles.height) * tiles.width, stride = blocks_of(pixels, 16) * 16 + 16 / sizeof(T);
    const int64_t staged = ((spare + 1) * WIDE + ROWS * stride) * sizeof(T) + blocks_of(pixels, 16) * 16 * sizeof(int);
    return max(staged, int64_t(taps == NINE ? ROWS * sizeof(T) : ROWS / 2 * sizeof(float)) * WIDE * NINE);
  });
  const KernelGrad<T> p{image_of<T>(grad, grad_strides, s.classes, s),
                        image_of<T>(pixels, pixel_strides, s.channels, s),
                        kernels_of<T>(logits, logit_strides, s, softmax),
                        static_cast<T*>(out),
                        scratch,
                        tiling.tiles,
                        spare};
  const int64_t blocks = s.batch * blocks_of(s.classes, ROWS) * blocks_of(s.channels, WIDE) * blocks_of(taps, NINE);
  if (taps == NINE) return launch(kernel_grad<T, true>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int error = launch(kernel_grad<T, false>, {blocks}, THREADS, tiling.bytes, stream, p);
  const int64_t rows = s.batch * s.classes * s.channels;
  return error ? error : launch(finish<T>, {blocks_of(rows, WARPS)}, THREADS, 0, stream, p, rows);
}

}  // namespace
}  // namespace fgaseg

// Sizes are {B, C, T, H, W, K}, strides those of [B, C, H, W], [B, T, C*K*K] and [B, T]. How many parts, each as large
// as the result in float32, the convolution (back: the gradient of the pixels) wants; 1: none, `parts` is null then.
extern "C" int64_t fgaseg_lcs_conv_parts(const int64_t* sizes, int64_t number_size, bool back) {
  const fgaseg::Sizes s(sizes);
  return fgaseg::parts_of(s, back ? s.channels : s.classes, back ? s.classes : s.channels, number_size);
}

#define FGASEG_LAUNCHERS(name, type)                                                                                   \
  extern "C" int fgaseg_lcs_conv_forward_##name(                                                                       \
      const void* pixels, const int64_t* pixel_strides, const void* logits, const int64_t* logit_strides,              \
      const void* bias, const int64_t* bias_strides, void* out, float* parts, const int64_t* sizes, bool softmax,      \
      void* stream) {                                                                                                  \
    return fgaseg::start_convolution<type, false>(pixels, pixel_strides, logits, logit_strides, bias, bias_strides,    \
                                                  out, parts, sizes, softmax, stream);                                 \
  }                                                                                                                    \
  extern "C" int fgaseg_lcs_conv_pixel_grad_##name(const void* grad, const int64_t* grad_strides, const void* logits,  \
                                                   const int64_t* logit_strides, void* out, float* parts,              \
                                                   const int64_t* sizes, bool softmax, void* stream) {                 \
    return fgaseg::start_convolution<type, true>(grad, grad_strides, logits, logit_strides, nullptr, nullptr, out,     \
                                                 parts, sizes, softmax, stream);                                       \
  }                                                                                                                    \
  extern "C" int fgaseg_lcs_conv_logit_grad_##name(                                                                    \
      const void* grad, const int64_t* grad_strides, const void* pixels, const int64_t* pixel_strides,                 \
      const void* logits, const int64_t* logit_strides, void* out, float* scratch, const int64_t* sizes, bool softmax, \
      void* stream) {                                                                                                  \
    return fgaseg::start_kernel_grad<type>(grad, grad_strides, pixels, pixel_strides, logits, logit_strides, out,      \
                                           scratch, sizes, softmax, stream);                                           \
  }
FGASEG_LAUNCHERS(float32, float)
FGASEG_LAUNCHERS(float16, __half)
FGASEG_LAUNCHERS(bfloat16, __nv_bfloat16)
