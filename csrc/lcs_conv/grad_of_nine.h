// The gradient of lcs_conv's logits on the GPU for 3x3 kernels of 16-bit elements, with operands laid out as in
// convolve_nine.h: a block has 32 classes x 64 channels x 9 taps in registers, 8 channels for each warp, and loops over
// tiles of at most 320 pixels. All taps of a class and channel are then in one thread, which ends their softmax.
//
//   gradient  [class][pixel], copied asynchronously in pieces of 16 bytes if the tiles are whole, aligned rows.
//   pixels    as pieces of 8 channels, [piece][pixel of the tile with its halo]: a tap is an offset of all lanes.
//   logits    replace the pixels in shared memory at the end, and are replaced by their gradient.
#pragma once
#include "lcs_conv/convolve_nine.h"
#include "lcs_conv/kernel_grad.h"

namespace fgaseg {
namespace {

constexpr int WIDE_PIECES = WIDE / PIECE;
constexpr int LOGITS_PITCH = WIDE * NINE + PIECE;  // of a class in shared memory: classes come from different banks

template <class T>
struct GradOfNine {
  Image<T> grad, pixels;
  Kernels<T> kernels;
  T* out;  // [B, T, C*9]
  Tiles tiles;
  int piece_size;     // of all pixels: the tile with its halo, then zeros for all taps of pixels behind the tile
  int run;            // pixels that can be read at once, RUN or 1
  bool pieces, rows;  // logits, and the gradient, can be read 16 bytes at a time
};

// Starts copying the gradient of ROWS classes and a tile as stage_grad stages it, if the tile is whole rows.
template <class T>
FGASEG_DEVICE void copy_grad(T* __restrict__ to, const Image<T>& grad, const Tiles& tiles, const Unit& u, int stride) {
  const int inside = min(tiles.height, grad.height - u.top) * tiles.width;
  const T* from = grad.data + u.b * grad.strides.batch + (u.first_row + warp()) * grad.strides.channel +
                  u.top * grad.strides.row;
  to += warp() * stride;
#pragma unroll 1
  for (int t = warp(); t < ROWS; t += WARPS, from += WARPS * grad.strides.channel, to += WARPS * stride)
#pragma unroll 1
    for (int i = lane() * PIECE; i < stride - PIECE; i += 32 * PIECE) {
      const bool there = u.first_row + t < grad.channels && i < inside;
      copy_async<16>(to + i, there ? from + i : grad.data, there);
    }
}

// sums[tap] += gradient (ROWS x 16 pixels) times pixels (16, at the nine taps, x 8 channels).
template <class T>
FGASEG_DEVICE void multiply_pixels(NineResults& sums, const T* grad, int stride, const T* pixels, int row) {
  uint32_t a[2][4], b[2];
#pragma unroll
  for (int m = 0; m < 2; ++m) load_matrices(a[m], grad + m * 16 * stride);
#pragma unroll
  for (int tap = 0; tap < NINE; ++tap) {
    load_matrices_transposed(b, pixels + tap / 3 * row + tap % 3 * PIECE);
#pragma unroll
    for (int m = 0; m < 2; ++m) multiply_add<T>(sums[tap][m], a[m], b);
  }
}

// Replaces the logits of two channels by their gradient, p (d - sum of p d).
template <class T>
FGASEG_DEVICE void finish_two(uint32_t* row, float (&d)[2 * NINE], bool softmax) {
  if (softmax) {
    uint32_t words[NINE];
    float x[2 * NINE];
#pragma unroll
    for (int i = 0; i < NINE; ++i) words[i] = row[i];
    unpack_nine<T>(x, words);
    normalise_two(x);
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      float dot = 0;
#pragma unroll
      for (int i = c * NINE; i < (c + 1) * NINE; ++i) dot = fmaf(x[i], d[i], dot);
#pragma unroll
      for (int i = c * NINE; i < (c + 1) * NINE; ++i) d[i] = x[i] * (d[i] - dot);
    }
  }
#pragma unroll
  for (int i = 0; i < NINE; ++i) row[i] = pack<T>(d[2 * i], d[2 * i + 1]);
}

// Writes the rows of this warp's 4 classes.
template <class T>
FGASEG_DEVICE void store_logits(T* out, const T* from, const Kernels<T>& k, const Unit& u, int first_channel) {
  constexpr int ROW = WIDE * NINE;
  const int64_t length = int64_t(k.channels) * NINE;
  const int first = warp() * (ROWS / WARPS), run = min(k.channels - first_channel, WIDE) * NINE;
  T* const to = out + (int64_t(u.b) * k.classes + u.first_row) * length + int64_t(first_channel) * NINE;
  const bool pieces = run == ROW && in_pieces(to, length, ROW);
  for (int t = first; t < first + ROWS / WARPS && u.first_row + t < k.classes; ++t) {
    if (pieces)
      for (int i = lane() * PIECE; i < ROW; i += 32 * PIECE)
        *reinterpret_cast<uint4*>(to + t * length + i) = *reinterpret_cast<const uint4*>(from + t * LOGITS_PITCH + i);
    else
      for (int i = lane(); i < run; i += 32) to[t * length + i] = from[t * LOGITS_PITCH + i];
  }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 2) grad_of_nine(const GradOfNine<T> p) {
  FGASEG_DYNAMIC_SHARED(T, memory);
  const Tiles& tiles = p.tiles;
  const Kernels<T>& k = p.kernels;
  const int channel_blocks = (k.channels + WIDE - 1) / WIDE, class_blocks = (k.classes + ROWS - 1) / ROWS;
  const int first_channel = blockIdx.x % channel_blocks * WIDE, block = blockIdx.x / channel_blocks;
  const int first_class = block % class_blocks * ROWS, b = block / class_blocks;
  const int pixels = tiles.height * tiles.width, stride = grad_stride(pixels, sizeof(T));
  const int piece_size = p.piece_size, row = tiles.row * PIECE;
  T* const grad = memory + WIDE_PIECES * piece_size;
  int* const offsets = reinterpret_cast<int*>(grad + ROWS * stride);
  for (int i = threadIdx.x; i < (pixels + 15) / 16 * 16; i += THREADS)
    offsets[i] = i < pixels ? (i / tiles.width * tiles.row + i % tiles.width) * PIECE : (tiles.height + 2) * row;

  NineResults sums = {};
#pragma unroll 1
  for (int tile = 0; tile < tiles.count; ++tile) {
    const Unit u = unit_of(tiles, p.pixels, p.run, tile, b, first_class);
    __syncthreads();
    for (int i = threadIdx.x; i < WIDE_PIECES * piece_size / PIECE; i += THREADS)  // zeros outside the image
      reinterpret_cast<uint4*>(memory)[i] = make_uint4(0, 0, 0, 0);
    if (p.rows) copy_grad(grad, p.grad, tiles, u, stride);
    commit_copies();
    __syncthreads();
    stage_pieces<T, WIDE_PIECES>(memory, pixels_of(p.pixels, u), p.pixels, u, p.run, tiles.row, piece_size,
                                 first_channel);
    if (!p.rows) stage_grad(grad, p.grad, tiles, b, first_class, u.top, u.left);
    wait_copies<0>();
    __syncthreads();
    const T* const left = grad + lane() % 16 * stride + lane() / 16 * 8;
#pragma unroll 1
    for (int i = 0; i < pixels; i += 16)
      multiply_pixels(sums, left + i, stride, memory + warp() * piece_size + offsets[i + lane() % 16], row);
  }
  __syncthreads();

  if (k.softmax) {
    const int first = warp() * (ROWS / WARPS);
    load_nine<T, ROWS / WARPS, WIDE>(memory + first * LOGITS_PITCH, LOGITS_PITCH,
                                     logits_of(k, b, first_class + first, first_channel), k, first_class + first,
                                     first_channel, p.pieces);
    wait_copies<0>();
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float d[2 * NINE];
#pragma unroll
    for (int j = 0; j < 2 * NINE; ++j) d[j] = sums[j % NINE][i / 2][i % 2 * 2 + j / NINE];
    T* const logits = memory + (i * 8 + lane() / 4) * LOGITS_PITCH + (warp() * 8 + lane() % 4 * 2) * NINE;
    finish_two<T>(reinterpret_cast<uint32_t*>(logits), d, k.softmax);
  }
  __syncthreads();
  store_logits(p.out, memory, k, Unit{b, first_class}, first_channel);
}

}  // namespace
}  // namespace fgaseg
