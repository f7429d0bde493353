// How lcs_conv's CUDA kernels bring pixels and logits into shared memory, and their softmax.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstring>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int ROWS = 32;     // of a block's results: classes, or channels of the pixels' gradient
constexpr int STEP = 16;     // summed at a time: channels, or classes
constexpr int PLANE = ROWS * STEP;  // kernel elements of one tap; a thread has two of them
constexpr int NINE = 9;      // taps of a block of kernel_grad
constexpr int WIDE = 64;     // channels of a block of kernel_grad, 8 per warp
constexpr int MOST_TAPS = 32;          // normalised together
constexpr int MOST_SHARED = 98 << 10;  // a little less than every GPU since 8.0 has
constexpr int ENOUGH_BLOCKS = 256;     // two for each multiprocessor of a large GPU
constexpr int LEAST_STEPS = 2;         // of a part, so that one step is loaded while another is multiplied

// mma tiles of 8 pixels per warp. float32 has two sets of accumulators.
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
  int64_t stride_batch, stride_class, stride_element;
  int classes, channels, taps, size;
  bool softmax;
};

// How an image is divided; each tile has a halo of the pixels inside the image that its taps reach.
struct Tiles {
  int height, width, across, count;
  int halo_y, halo_x, row;  // row: pixels in a row of a tile with its halo
};

// The offset of an element in rows of WIDTH elements in shared memory: pieces of 16 bytes are permuted (swizzled) so
// that a column of eight adjacent rows comes from different banks.
template <class T, int WIDTH>
FGASEG_DEVICE int swizzled(int row, int column) {
  constexpr int PIECE = 16 / sizeof(T), PIECES = WIDTH / PIECE, BYTES = WIDTH * sizeof(T);
  constexpr int ROWS_A_LINE = BYTES < 128 ? 128 / BYTES : 1;
  return row * WIDTH + (column / PIECE ^ row / ROWS_A_LINE % PIECES) * PIECE + column % PIECE;
}

FGASEG_DEVICE int lane() { return threadIdx.x % 32; }
FGASEG_DEVICE int warp() { return threadIdx.x / 32; }

// Stages `rows` rows of a tile from (top, left) on, channels [first, first + WIDTH) last; zero outside the image.
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
      *reinterpret_cast<uint4*>(to + swizzled<T, WIDTH>(i, c)) = bits;
    }
}

// Whether rows of `length` elements, `stride` apart, can be copied in pieces of 16 bytes.
template <class T>
FGASEG_DEVICE bool in_pieces(const T* row, int64_t stride, int length) {
  constexpr int PIECE = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(row) % 16 == 0 && stride % PIECE == 0 && length % PIECE == 0;
}

// Starts loading taps [first_tap, first_tap + taps) of CLASSES x CHANNELS rows, `stride` apart; zero outside.
template <class T, int CLASSES, int CHANNELS>
FGASEG_DEVICE void load_logits(T* __restrict__ to, const Kernels<T>& k, int64_t b, int first_class, int first_channel,
                               int first_tap, int taps, int stride) {
  constexpr int PIECE = 16 / sizeof(T), LANES = 8;
  const int64_t element = int64_t(first_channel) * k.taps + first_tap;
  const T* from = k.logits + b * k.stride_batch + first_class * k.stride_class + element * k.stride_element;
  const bool whole =
      taps == k.taps && stride == taps && k.stride_element == 1 && first_channel + CHANNELS <= k.channels;
  if (whole && in_pieces(from, k.stride_class, CHANNELS * taps)) {
    const int pieces = CHANNELS * taps / PIECE;
    for (int i = threadIdx.x; i < CLASSES * pieces; i += THREADS) {
      const bool inside = first_class + i / pieces < k.classes;
      const T* piece = from + i / pieces * k.stride_class + i % pieces * PIECE;
      copy_async<16>(to + i * PIECE, inside ? piece : from, inside);
    }
  } else {
#pragma unroll 2
    for (int row = threadIdx.x / LANES; row < CLASSES * CHANNELS; row += THREADS / LANES) {
      const int t = row / CHANNELS, c = row % CHANNELS;
      const bool inside = first_class + t < k.classes && first_channel + c < k.channels;
      for (int i = threadIdx.x % LANES; i < taps; i += LANES)
        to[row * stride + i] =
            inside ? from[t * k.stride_class + (int64_t(c) * k.taps + i) * k.stride_element] : from_float<T>(0);
    }
  }
  commit_copies();
}

// Running maximum and sum of exp(x - top) over the taps so far. It starts finite, so that a row may begin with -inf.
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

// The softmax of nine taps, all in registers.
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

// The rows of taps, relative to the centre, that a group of taps has inside the halo; mirrored for the gradient.
struct Range {
  int first, last;
};
FGASEG_DEVICE Range tap_rows(int first_tap, int taps, int size, int halo, bool mirrored) {
  const int first = max(first_tap / size - size / 2, -halo), last = min((first_tap + taps - 1) / size - size / 2, halo);
  return mirrored ? Range{-last, -first} : Range{first, last};
}

}  // namespace
}  // namespace fgaseg
