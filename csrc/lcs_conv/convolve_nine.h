// The convolution of lcs_conv on the GPU for 3x3 kernels of 16-bit elements: few instructions beside the products.
//
// BACK, the gradient of the pixels, exchanges classes and channels and mirrors the taps; below, rows are classes and
// summed are channels, or the other way round.
//
// The result is divided into units of 16 M rows x a tile of at most 576 pixels, a unit into steps of 16 summed.
// Every block has the same number of consecutive steps, whichever units they belong to, so that all multiprocessors
// finish together. A block whose steps are all of a unit writes its results; sums over some of the steps are kept in
// float32, and add_shares adds them in a fixed order.
//
//   logits    are copied asynchronously a step ahead, each warp its own rows. A thread normalises four rows of taps (of
//             four channels of a class, or of two channels of two classes) in registers and writes them rounded.
//   pixels    (or the gradient) are read a step ahead and transposed in registers, 8 channels x 4 pixels at a time.
//   operands  lie in shared memory as pieces of 8 summed, [tap][half][row] and [half][pixel of the tile with its halo].
//             Eight adjacent pieces come from different banks, and a tap is an offset that all lanes share, so that an
//             ldmatrix needs no other instruction. Both are double: while some warps prepare a step, the others
//             multiply the one before; one barrier a step.
#pragma once
#include "lcs_conv/stage.h"

namespace fgaseg {
namespace {

constexpr int PIECE = 8;                   // elements of a piece of 16 bytes; a step has two of them
constexpr int NINE_TILES = 9;              // mma tiles of 8 pixels of a warp
constexpr int ADDED = 3;                   // of them in a block of add_shares
constexpr int RUN = 4;                     // pixels that are read at once if they are adjacent and aligned
constexpr float LOG2_E = 1.4426950408889634f;

// Elements between two halves of the kernels of one tap: what a warp writes at once comes from different banks.
template <int M, bool BACK>
constexpr int KERNEL_HALF = (16 * M + (BACK ? 1 : 4)) * PIECE;
template <int M, bool BACK>
constexpr int NINE_KERNELS = NINE * 2 * KERNEL_HALF<M, BACK>;  // elements of all taps
constexpr int WARP_LOGITS = 8 * STEP * NINE;                   // that a warp normalises

template <class T>
struct ConvolutionOfNine {
  Image<T> image;
  Kernels<T> kernels;
  const T* bias;
  int64_t bias_batch, bias_class;  // strides
  T* out;                          // [B, rows, H, W]
  float4* parts;                   // [blocks][2][NINE_TILES][M][THREADS]: sums of a block's first and last unit
  Tiles tiles;
  int rows, row_blocks, steps;  // steps: of a unit
  int all_steps, share;         // of all units; of a block
  int run;                      // pixels that can be read at once, RUN or 1
  bool pieces;                  // logits can be read 16 bytes at a time
};

// Where a unit lies, and the part of its tile with the halo that is inside the image, in runs of pixels.
struct Unit {
  int b, first_row, top, left;
  int first_y, first_x, runs, count;  // runs: in a row; count: of all rows
  unsigned of_runs, of_count;         // for divisions by them
};

constexpr int INVERSE_BITS = 22;  // enough for a dividend times a divisor below 2^22

FGASEG_DEVICE unsigned inverse(int divisor) { return ((1u << INVERSE_BITS) + divisor - 1) / divisor; }
FGASEG_DEVICE int divide(int dividend, unsigned inverse) { return int(dividend * inverse >> INVERSE_BITS); }

template <class T>
FGASEG_DEVICE Unit unit_of(const Tiles& tiles, const Image<T>& image, int run, int tile, int b, int first_row) {
  Unit u{b, first_row, tile / tiles.across * tiles.height, tile % tiles.across * tiles.width};
  u.first_y = max(u.top - 1, 0);
  u.first_x = max(u.left - 1, 0) / run * run;  // the width of the image is a multiple of it
  u.runs = (min(u.left + tiles.width + 1, image.width) - u.first_x + run - 1) / run;
  u.count = (min(u.top + tiles.height + 1, image.height) - u.first_y) * u.runs;
  u.of_runs = inverse(u.runs);
  u.of_count = inverse(u.count);
  return u;
}

template <class T>
FGASEG_DEVICE Unit unit_of(const ConvolutionOfNine<T>& p, int unit, int rows) {
  const int tile = unit % p.tiles.count, block = unit / p.tiles.count;
  return unit_of(p.tiles, p.image, p.run, tile, block / p.row_blocks, block % p.row_blocks * rows);
}

FGASEG_DEVICE int slots_of(const Tiles& tiles) { return (tiles.height + 2) * tiles.row; }

template <class T>
FGASEG_DEVICE const T* logits_of(const Kernels<T>& k, int b, int first_class, int first_channel) {
  return k.logits + b * k.stride_batch + first_class * k.stride_class +
         int64_t(first_channel) * NINE * k.stride_element;
}

// Starts loading the logits of CLASSES x CHANNELS, at `from`, as [class][channel][tap], by one warp. pitch: between
// classes; pieces: rows of whole pieces are aligned.
template <class T, int CLASSES, int CHANNELS>
FGASEG_DEVICE void load_nine(T* __restrict__ to, int pitch, const T* from, const Kernels<T>& k, int first_class,
                             int first_channel, bool pieces) {
  constexpr int ROW = CHANNELS * NINE, LANES = 32 / CLASSES;  // lanes of a class
  const int classes = k.classes - first_class, length = (k.channels - first_channel) * NINE;
  if (pieces && length >= ROW) {
    const int t = lane() / LANES, first = lane() % LANES * PIECE;
    const bool inside = t < classes;
    const T* const row = (inside ? from + t * k.stride_class : k.logits) + first;
#pragma unroll
    for (int i = 0; i < ROW; i += LANES * PIECE)
      if (i + LANES * PIECE <= ROW || i + first < ROW) copy_async<16>(to + t * pitch + first + i, row + i, inside);
  } else {
#pragma unroll 1
    for (int t = 0; t < CLASSES; ++t)
#pragma unroll 1
      for (int i = lane(); i < ROW; i += 32)
        to[t * pitch + i] =
            t < classes && i < length ? from[t * k.stride_class + i * k.stride_element] : from_float<T>(0);
  }
  commit_copies();
}

// Starts loading what this warp normalises, 8 rows x STEP summed; from: the logits of the unit's rows.
template <class T, int M, bool BACK>
FGASEG_DEVICE void load_step(T* __restrict__ to, const T* from, const ConvolutionOfNine<T>& p, const Unit& u,
                             int summed) {
  const Kernels<T>& k = p.kernels;
  if (warp() >= 2 * M) return;
  const int row = u.first_row + warp() * 8;
  if (BACK)
    load_nine<T, STEP, 8>(to, 8 * NINE, from + summed * k.stride_class, k, summed, row, p.pieces);
  else
    load_nine<T, 8, STEP>(to, STEP * NINE, from + summed * (NINE * k.stride_element), k, row, summed, p.pieces);
}

template <class T>
FGASEG_DEVICE void unpack_nine(float (&x)[2 * NINE], const uint32_t (&words)[NINE]) {
#pragma unroll
  for (int i = 0; i < NINE; ++i) {
    const float2 two = unpack<T>(words[i]);
    x[2 * i] = two.x;
    x[2 * i + 1] = two.y;
  }
}

// Softmax of both halves of x. Logits may be as large as FLT_MAX / LOG2_E.
FGASEG_DEVICE void normalise_two(float (&x)[2 * NINE]) {
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float* const row = x + c * NINE;
    float top = row[0], sum = 0;
#pragma unroll
    for (int i = 1; i < NINE; ++i) top = fmaxf(top, row[i]);
    const float shift = -top * LOG2_E;  // its rounding is the same factor in all taps
#pragma unroll
    for (int i = 0; i < NINE; ++i) sum += row[i] = exp2_approximately(fmaf(row[i], LOG2_E, shift));
    const float scale = __fdividef(1, sum);
#pragma unroll
    for (int i = 0; i < NINE; ++i) row[i] *= scale;
  }
}

// Normalises four rows of taps of this warp's logits and writes them as kernels [tap][half][row][summed].
template <class T, int M, bool BACK>
FGASEG_DEVICE void normalise_nine(T* __restrict__ kernels, const T* raw, bool softmax) {
  constexpr int HALF = KERNEL_HALF<M, BACK>;
  if (warp() >= 2 * M) return;
  uint32_t words[2][NINE];
  if (BACK) {  // of channels c and c + 1, classes t and t + 1
    const uint32_t* const from = reinterpret_cast<const uint32_t*>(raw) + lane() / 4 * 8 * NINE + lane() % 4 * NINE;
#pragma unroll
    for (int i = 0; i < 2 * NINE; ++i) words[i / NINE][i % NINE] = from[i / NINE * 4 * NINE + i % NINE];
  } else {  // of channels c to c + 3
#pragma unroll
    for (int i = 0; i < NINE; ++i) {
      const uint2 two = reinterpret_cast<const uint2*>(raw)[lane() * NINE + i];
      words[2 * i / NINE][2 * i % NINE] = two.x;
      words[(2 * i + 1) / NINE][(2 * i + 1) % NINE] = two.y;
    }
  }
  float x[2][2 * NINE];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    unpack_nine<T>(x[i], words[i]);
    if (softmax) normalise_two(x[i]);
  }
  if (BACK) {
    const int t = lane() / 4 * 2;
    kernels += t / PIECE * HALF + (warp() * 8 + lane() % 4 * 2) * PIECE + t % PIECE;
#pragma unroll
    for (int i = 0; i < 2 * NINE; ++i)
      *reinterpret_cast<uint32_t*>(kernels + (NINE - 1 - i % NINE) * 2 * HALF + i / NINE * PIECE) =
          pack<T>(x[0][i], x[1][i]);
  } else {
    const int c = lane() % 4 * 4;
    kernels += c / PIECE * HALF + (warp() * 8 + lane() / 4) * PIECE + c % PIECE;
#pragma unroll
    for (int i = 0; i < NINE; ++i)
      *reinterpret_cast<uint2*>(kernels + i * 2 * HALF) =
          make_uint2(pack<T>(x[0][i], x[0][NINE + i]), pack<T>(x[1][i], x[1][NINE + i]));
  }
}

// Transposes 8 channels of N adjacent pixels into N pieces; words[c]: the pixels of channel c.
FGASEG_DEVICE uint4 piece_of(const uint32_t (&words)[PIECE][2], int pixel) {
  uint32_t piece[4];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    piece[i] = __byte_perm(words[2 * i][pixel / 2], words[2 * i + 1][pixel / 2], pixel % 2 ? 0x7632 : 0x5410);
  return make_uint4(piece[0], piece[1], piece[2], piece[3]);
}

// The first row of a unit's pixels that is inside the image.
template <class T>
FGASEG_DEVICE const T* pixels_of(const Image<T>& image, const Unit& u) {
  return image.data + u.b * image.strides.batch + u.first_y * image.strides.row;
}

// Stages PIECES pieces of channels of the part of a tile that is inside the image, N pixels at a time. data: pixels_of
// the unit; piece_size: elements between pieces.
template <class T, int PIECES, int N>
FGASEG_DEVICE void stage_runs(T* __restrict__ to, const T* data, const Image<T>& image, const Unit& u, int tile_row,
                              int piece_size, int first_channel) {
  const Strides& s = image.strides;
  data += first_channel * s.channel;
  to += (u.first_y - u.top + 1) * tile_row * PIECE;
#pragma unroll 1
  for (int i = threadIdx.x; i < PIECES * u.count; i += THREADS) {
    const int piece = divide(i, u.of_count), j = i - piece * u.count, row = divide(j, u.of_runs);
    const int x = u.first_x + (j - row * u.runs) * N, valid = image.channels - first_channel - piece * PIECE;
    const T* from = data + piece * (PIECE * s.channel) + row * s.row + x * s.column;
    uint32_t words[PIECE][2] = {};
#pragma unroll
    for (int c = 0; c < PIECE; ++c, from += s.channel)
      if (c < valid) {
        if constexpr (N == RUN) {
          const uint2 four = *reinterpret_cast<const uint2*>(from);
          words[c][0] = four.x;
          words[c][1] = four.y;
        } else {
          words[c][0] = *reinterpret_cast<const uint16_t*>(from);
        }
      }
    const int column = x - u.left + 1;
    T* const slot = to + piece * piece_size + (row * tile_row + column) * PIECE;
#pragma unroll
    for (int k = 0; k < N; ++k)
      if (N == 1 || unsigned(column + k) < unsigned(tile_row))
        *reinterpret_cast<uint4*>(slot + k * PIECE) = piece_of(words, k);
  }
}

template <class T, int PIECES>
FGASEG_DEVICE void stage_pieces(T* __restrict__ to, const T* data, const Image<T>& image, const Unit& u, int run,
                                int tile_row, int piece_size, int first_channel) {
  if (run == RUN)
    stage_runs<T, PIECES, RUN>(to, data, image, u, tile_row, piece_size, first_channel);
  else
    stage_runs<T, PIECES, 1>(to, data, image, u, tile_row, piece_size, first_channel);
}

template <int M>
using SumsOfNine = float[NINE_TILES][M][4];

// sums += kernels (16 M rows x STEP x 9 taps) times pixels. slots[j] + offset: the piece at the first tap whose address
// this lane gives (find_slots); row: elements between two rows of the tile.
template <class T, int M, int HALF>
FGASEG_DEVICE void multiply_taps(SumsOfNine<M>& sums, const T* kernels,
                                 const T* const (&slots)[(NINE_TILES + 1) / 2], int offset, int row) {
  const T* const left = kernels + lane() / 16 * HALF + lane() % 16 * PIECE;
#pragma unroll
  for (int tap = 0; tap < NINE; ++tap) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) load_matrices(a[m], left + tap * 2 * HALF + m * 16 * PIECE);
    const int shift = offset + tap / 3 * row;
#pragma unroll
    for (int j = 0; j + 1 < NINE_TILES; j += 2) {
      uint32_t b[4];
      load_matrices(b, slots[j / 2] + shift + tap % 3 * PIECE);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        multiply_add<T>(sums[j][m], a[m], {b[0], b[1]});
        multiply_add<T>(sums[j + 1][m], a[m], {b[2], b[3]});
      }
    }
    uint32_t b[2];
    load_matrices(b, slots[NINE_TILES / 2] + shift + tap % 3 * PIECE);
#pragma unroll
    for (int m = 0; m < M; ++m) multiply_add<T>(sums[NINE_TILES - 1][m], a[m], b);
  }
}

// The pieces at the first tap whose addresses this lane gives, for the tiles 2 j and 2 j + 1.
template <class T>
FGASEG_DEVICE void find_slots(const T* (&slots)[(NINE_TILES + 1) / 2], const T* images, const Tiles& tiles) {
#pragma unroll
  for (int j = 0; j < NINE_TILES; j += 2) {
    int pixel = ((j + lane() / 16) * WARPS + warp()) * 8 + lane() % 8;
    if (pixel >= tiles.height * tiles.width) pixel = 0;
    const int slot = pixel / tiles.width * tiles.row + pixel % tiles.width;
    slots[j / 2] = images + (lane() / 8 % 2 * slots_of(tiles) + slot) * PIECE;
  }
}

// Writes the sums of J tiles of a warp, from first_tile on, plus the bias. They are brought together in `memory`, 16 M
// rows x J tiles x 8 pixels for each warp, so that a loop can write them.
template <class T, int M, int J>
FGASEG_DEVICE void store_tiles(const ConvolutionOfNine<T>& p, const Unit& u, int first_tile,
                               const float (&sums)[J][M][4], T* memory) {
  constexpr int PIXELS = J * 8, LANES = (PIXELS + 31) / 32;
  memory += warp() * 16 * M * PIXELS;
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int row = i * 8 + lane() / 4, r = u.first_row + row;
    const float bias = p.bias && r < p.rows ? to_float(p.bias[u.b * p.bias_batch + r * p.bias_class]) : 0;
#pragma unroll
    for (int j = 0; j < J; ++j)
      *reinterpret_cast<uint32_t*>(memory + row * PIXELS + j * 8 + 2 * (lane() % 4)) =
          pack<T>(sums[j][i / 2][i % 2 * 2] + bias, sums[j][i / 2][i % 2 * 2 + 1] + bias);
  }
  int64_t offsets[LANES];  // in a map; negative: outside
#pragma unroll
  for (int k = 0; k < LANES; ++k) {
    const int q = k * 32 + lane(), pixel = ((first_tile + q / 8) * WARPS + warp()) * 8 + q % 8;
    const int row = pixel / p.tiles.width, y = u.top + row, x = u.left + pixel - row * p.tiles.width;
    const bool inside = q < PIXELS && row < p.tiles.height && y < p.image.height && x < p.image.width;
    offsets[k] = inside ? int64_t(y) * p.image.width + x : -1;
  }
  __syncwarp();
  const int64_t map = int64_t(p.image.height) * p.image.width;
  T* out = p.out + (int64_t(u.b) * p.rows + u.first_row) * map;
  const int rows = min(16 * M, p.rows - u.first_row);
#pragma unroll 1
  for (int row = 0; row < rows; ++row, out += map)
#pragma unroll
    for (int k = 0; k < LANES; ++k)
      if (offsets[k] >= 0) out[offsets[k]] = memory[row * PIXELS + k * 32 + lane()];
}

// Of a block's first unit, or of another one.
template <int M, class T>
FGASEG_DEVICE float4* part_of(const ConvolutionOfNine<T>& p, int block, int unit) {
  const bool later = unit != block * p.share / p.steps;
  return p.parts + (2 * int64_t(block) + later) * NINE_TILES * M * THREADS + threadIdx.x;
}

template <class T, int M, bool BACK>
__global__ void __launch_bounds__(THREADS, 1) convolve_nine(const ConvolutionOfNine<T> p) {
  FGASEG_DYNAMIC_SHARED(T, kernels);  // two steps
  T* const images = kernels + 2 * NINE_KERNELS<M, BACK> + 2 * M * WARP_LOGITS;
  T* const raw = kernels + 2 * NINE_KERNELS<M, BACK> + warp() * WARP_LOGITS;  // of this warp  // two steps
  const Tiles& tiles = p.tiles;
  const int image_size = slots_of(tiles) * STEP;
  const bool busy = warp() * 8 < tiles.height * tiles.width;
  const T* slots[(NINE_TILES + 1) / 2];
  find_slots(slots, images, tiles);
  const int end = min((int(blockIdx.x) + 1) * p.share, p.all_steps);
  for (int done = blockIdx.x * p.share; done < end;) {
    const int index = done / p.steps, first = done - index * p.steps, last = min(first + end - done, p.steps);
    const Unit unit = unit_of(p, index, 16 * M);
    const int row = unit.first_row + warp() * 8;
    const T* const logits = logits_of(p.kernels, unit.b, BACK ? 0 : row, BACK ? row : 0);
    const T* const pixels = pixels_of(p.image, unit);
    const auto prepare = [&](int step) {
      wait_copies<0>();
      __syncwarp();
      normalise_nine<T, M, BACK>(kernels + step % 2 * NINE_KERNELS<M, BACK>, raw, p.kernels.softmax);
      __syncwarp();
      if (step + 1 < last) load_step<T, M, BACK>(raw, logits, p, unit, (step + 1) * STEP);
      stage_pieces<T, 2>(images + step % 2 * image_size, pixels, p.image, unit, p.run, tiles.row, image_size / 2,
                         step * STEP);
    };
    load_step<T, M, BACK>(raw, logits, p, unit, first * STEP);
    for (int i = threadIdx.x; i < 2 * image_size / PIECE; i += THREADS)  // zeros outside the image
      reinterpret_cast<uint4*>(images)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    SumsOfNine<M> sums = {};
#pragma unroll 1
    for (int step = first - 1; step < last; ++step) {
      // of the two warps of a scheduler, one prepares while the other multiplies
#pragma unroll 1
      for (int turn = 0; turn < 2; ++turn)
        if (turn == warp() / (WARPS / 2)) {
          if (step + 1 < last) prepare(step + 1);
        } else if (step >= first && busy) {
          multiply_taps<T, M, KERNEL_HALF<M, BACK>>(sums, kernels + step % 2 * NINE_KERNELS<M, BACK>, slots,
                                                    step % 2 * image_size, tiles.row * PIECE);
        }
      __syncthreads();  // after the last step because of the next unit's zeros
    }
    if (last - first == p.steps) {
      store_tiles<T, M>(p, unit, 0, sums, kernels);
      __syncthreads();  // kernels is used again
    } else {
      float4* const part = part_of<M>(p, blockIdx.x, index);
#pragma unroll
      for (int i = 0; i < NINE_TILES * M; ++i) {
        const float* const four = sums[i / M][i % M];
        part[i * THREADS] = make_float4(four[0], four[1], four[2], four[3]);
      }
    }
    done += last - first;
  }
}

// The results of units whose steps are in several blocks; a block of this kernel has ADDED of a warp's tiles.
template <class T, int M>
__global__ void __launch_bounds__(THREADS) add_shares(const ConvolutionOfNine<T> p) {
  FGASEG_SHARED(memory, T[WARPS * 16 * M * ADDED * 8]);
  const int index = blockIdx.x, first = index * p.steps / p.share, last = ((index + 1) * p.steps - 1) / p.share;
  if (first == last) return;
  const int first_tile = blockIdx.y * ADDED;
  const float4* part = part_of<M>(p, first, index) + first_tile * M * THREADS;
  float sums[ADDED][M][4] = {};
#pragma unroll 1
  for (int block = first; block <= last; ++block) {
#pragma unroll
    for (int i = 0; i < ADDED * M; ++i) {
      const float4 x = part[i * THREADS];
      float* const sum = sums[i / M][i % M];
      sum[0] += x.x;
      sum[1] += x.y;
      sum[2] += x.z;
      sum[3] += x.w;
    }
    // in the next block, the unit is the first
    part = p.parts + (2 * int64_t(block + 1) * NINE_TILES + first_tile) * M * THREADS + threadIdx.x;
  }
  store_tiles<T, M>(p, unit_of(p, index, 16 * M), first_tile, sums, memory);
}

}  // namespace
}  // namespace fgaseg
