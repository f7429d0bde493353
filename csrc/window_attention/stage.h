// What the CUDA kernels of window_attention share: a window's tokens, their pixels, regions and rows in shared memory.
//
// A block has one window of one row (class map) and up to HEADS heads of it. Token t of a window is its pixel
// (t / window, t % window); there are TOKENS of them, and what a smaller window, or a grid that ends inside the window,
// leaves of these is padding. Rows in shared memory are HEADS * SIZE elements, zero for padding, in pieces of 16 bytes.
//
// A fragment of the tensor cores has its 16-bit elements in pairs along the sum. Which channels form a pair is free as
// long as both operands agree, so a lane takes the 16 bytes at piece lane % 4 of a head's row: one load is the operand
// of two products, and rows from global memory are operands without passing through shared memory.
#pragma once
#include <type_traits>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int SIZE = 32;           // channels of a head
constexpr int TOKENS = 144;        // of a window, at most
constexpr int TILE = 16;           // tokens of a unit of work; a unit has all keys, or all queries, of its window
constexpr int STEPS = TOKENS / TILE;
constexpr int PIECE = 8;           // elements in 16 bytes
constexpr int REGIONS = 4;         // that the shift brings together in a window
constexpr int BIASES = TOKENS + 8;  // of a region, with a gap, so that four regions come from different banks
constexpr float LOG2E = 1.4426950408889634f;
constexpr float SCALE = 0.17677669529663687f;  // 1 / sqrt(SIZE)
constexpr float MASK = -100 / SCALE;           // on scores before they are scaled

// Maps [N, H * W, D] with contiguous channels.
template <class T>
struct Maps {
  const T* data;
  int64_t stride_row;
  int stride_pixel;
};

// The pixels of one row of maps, from a channel on.
template <class T>
struct Pixels {
  T* first;
  unsigned stride;  // in bytes

  FGASEG_DEVICE Pixels(const Maps<std::remove_const_t<T>>& maps, int64_t row, int channel)
      : first(maps.data + row * maps.stride_row + channel), stride(maps.stride_pixel * sizeof(T)) {}
  FGASEG_DEVICE Pixels(T* dense, int channels) : first(dense), stride(channels * sizeof(T)) {}
  FGASEG_DEVICE Pixels from(int channel) const {
    Pixels other = *this;
    other.first += channel;
    return other;
  }

  // Pixel 0 for padding: an address that may be read. (A product of 32-bit numbers is one instruction.)
  FGASEG_DEVICE T* at(int pixel) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first) + uint64_t(unsigned(max(pixel, 0))) * stride);
  }
};

struct Shape {
  int height, width, down, across, window, shift, heads, classes;

  FGASEG_DEVICE int tiles() const { return (window * window + TILE - 1) / TILE; }
};

// The window and the heads of a block.
template <int HEADS>
struct Place {
  int64_t row, image;
  int top, left, first_head, heads;  // top, left: of the window on the padded grid, before it wraps around

  FGASEG_DEVICE explicit Place(const Shape& s) {
    const unsigned groups = (s.heads + HEADS - 1) / HEADS, windows = s.down * s.across;
    const unsigned index = blockIdx.x / groups, place = index % windows;
    row = index / windows;
    image = static_cast<unsigned>(row) / static_cast<unsigned>(s.classes);
    top = place / s.across * s.window + s.shift;
    left = place % s.across * s.window + s.shift;
    first_head = blockIdx.x % groups * HEADS;
    heads = min(HEADS, s.heads - first_head);
  }
};

// What is known of a window's tokens; no larger, so that three blocks of 72 KB of rows fit on a multiprocessor.
struct Tokens {
  int places[TOKENS];           // 4 (y * W + x) + region, or -1 for padding
  float bias[REGIONS][BIASES];  // added to scores, by the region of the other token

  FGASEG_DEVICE int pixel(int t) const { return places[t] >> 2; }  // -1 for padding
  FGASEG_DEVICE const float* bias_for(int t) const { return bias[places[t] & 3]; }
};

template <bool MASKED, int THREADS, int HEADS>
FGASEG_DEVICE void describe(Tokens& tokens, const Shape& s, const Place<HEADS>& place) {
  const int tall = s.down * s.window, wide = s.across * s.window;
  for (int t = threadIdx.x; t < TOKENS; t += THREADS) {
    int y = place.top + t / s.window, x = place.left + t % s.window;
    const int region = 2 * (y >= tall) + (x >= wide);
    y -= y >= tall ? tall : 0;
    x -= x >= wide ? wide : 0;
    const bool inside = t < s.window * s.window && y < s.height && x < s.width;
    tokens.places[t] = inside ? 4 * (y * s.width + x) + region : -1;
#pragma unroll
    for (int other = 0; MASKED && other < REGIONS; ++other)
      tokens.bias[other][t] = !inside ? -INFINITY : region == other ? 0 : MASK;
  }
}

// The element at which piece `piece` of a token's row begins. Pieces are permuted (swizzled) so that neither eight
// tokens at one piece (ldmatrix) nor two tokens at four pieces (a quarter of a warp's 16-byte loads) share a bank.
template <int HEADS>
FGASEG_DEVICE int spot(int token, int piece) {
  return token * HEADS * SIZE + (piece ^ ((token & 1) << 2 | (token >> 1 & 3))) * PIECE;
}

template <class T>
FGASEG_DEVICE uint4 sum(uint4 a, uint4 b) {
  return make_uint4(add_pairs<T>(a.x, b.x), add_pairs<T>(a.y, b.y), add_pairs<T>(a.z, b.z), add_pairs<T>(a.w, b.w));
}

// This thread's pieces of a block's rows: the same one of every STEP-th token.
template <int HEADS, int THREADS>
struct Pieces {
  static constexpr int IN_ROW = HEADS * SIZE / PIECE, STEP = THREADS / IN_ROW, COUNT = TOKENS / STEP;
  static_assert(THREADS % IN_ROW == 0 && TOKENS % STEP == 0);
  const Tokens& tokens;
  int channel;  // of the map
  bool exists;  // a block may have fewer heads

  FGASEG_DEVICE Pieces(const Tokens& tokens_, const Place<HEADS>& place)
      : tokens(tokens_),
        channel((place.first_head * SIZE / PIECE + threadIdx.x % IN_ROW) * PIECE),
        exists(static_cast<int>(threadIdx.x % IN_ROW) < place.heads * (SIZE / PIECE)) {
    if (!exists) channel = 0;
  }
  FGASEG_DEVICE int token(int i) const { return threadIdx.x / IN_ROW + i * STEP; }
  FGASEG_DEVICE int pixel(int i) const { return tokens.pixel(token(i)); }
  FGASEG_DEVICE int to(int i) const { return spot<HEADS>(token(i), threadIdx.x % IN_ROW); }
};

// Starts copying the rows of a map, zeros for padding. This thread's pieces are complete after wait_copies<0>(), all
// after a barrier.
template <int HEADS, int THREADS, class T>
FGASEG_DEVICE void copy_rows(T* rows, const Maps<T>& maps, int64_t row, const Pieces<HEADS, THREADS>& pieces) {
  const Pixels<const T> from(maps, row, pieces.channel);
#pragma unroll 6
  for (int i = 0; i < pieces.COUNT; ++i) {
    const int pixel = pieces.pixel(i);
    copy_async<16>(rows + pieces.to(i), from.at(pixel), pieces.exists && pixel >= 0);
  }
  commit_copies();
}

// Waits for this thread's copies and adds the guidance of their image to one map's.
template <int HEADS, int THREADS, class T>
FGASEG_DEVICE void add_guidance(T* rows, const Maps<T>& maps, int64_t image, const Pieces<HEADS, THREADS>& pieces) {
  constexpr int AT_ONCE = 6;
  static_assert(Pieces<HEADS, THREADS>::COUNT % AT_ONCE == 0);
  const Pixels<const T> from(maps, image, pieces.channel);
#pragma unroll 1
  for (int i = 0; i < pieces.COUNT; i += AT_ONCE) {
    uint4 guidance[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) guidance[j] = *reinterpret_cast<const uint4*>(from.at(pieces.pixel(i + j)));
    wait_copies<0>();
#pragma unroll
    for (int j = 0; j < AT_ONCE; ++j) {
      uint4* const piece = reinterpret_cast<uint4*>(rows + pieces.to(i + j));
      if (pieces.exists && pieces.pixel(i + j) >= 0) *piece = sum<T>(*piece, guidance[j]);
    }
  }
}

FGASEG_DEVICE int lane() { return threadIdx.x % 32; }

// 16 tokens of a head of the block: what a warp does at a time. The units of a block are numbered head by head.
struct Unit {
  int head = 0, tile;

  FGASEG_DEVICE explicit Unit(int tiles) : tile(threadIdx.x / 32) { move(0, tiles); }
  FGASEG_DEVICE void move(int by, int tiles) {
    for (tile += by; tile >= tiles; tile -= tiles) ++head;
  }
};

// Two rows of a head, lane / 4 and 8 below it, as the left operands of two products.
struct Left {
  uint32_t first[4], second[4];

  FGASEG_DEVICE Left(uint4 upper, uint4 lower)
      : first{upper.x, lower.x, upper.y, lower.y}, second{upper.z, lower.z, upper.w, lower.w} {}
};

// Adds the products of 16 rows with 8 rows of shared memory, of which this lane's piece lies at `row`.
template <class T>
FGASEG_DEVICE void multiply_rows(float (&d)[4], const Left& left, const T* row) {
  const uint4 piece = *reinterpret_cast<const uint4*>(row);
  multiply_add<T>(d, left.first, {piece.x, piece.y});
  multiply_add<T>(d, left.second, {piece.z, piece.w});
}

// What the sums of the scores of 16 tokens begin with: the mask, or 0 if no window needs one.
template <bool MASKED>
struct Biases {
  const float *upper = nullptr, *lower = nullptr;

  FGASEG_DEVICE Biases(const Tokens& tokens, int tile) {
    if (!MASKED) return;
    upper = tokens.bias_for(tile * TILE + lane() / 4) + lane() % 4 * 2;
    lower = tokens.bias_for(tile * TILE + lane() / 4 + 8) + lane() % 4 * 2;
  }
  // For the other tokens 8 n to 8 n + 7, as multiply_add has columns.
  FGASEG_DEVICE void begin(float (&s)[4], int n) const {
    const float2 zero = make_float2(0, 0);
    const float2 one = MASKED ? *reinterpret_cast<const float2*>(upper + 8 * n) : zero;
    const float2 two = MASKED ? *reinterpret_cast<const float2*>(lower + 8 * n) : zero;
    s[0] = one.x;
    s[1] = one.y;
    s[2] = two.x;
    s[3] = two.y;
  }
};

// The scores of 16 queries, before they are scaled, with all keys of the window. `keys` is this lane's piece of the
// first eight keys' rows, which are `row` elements long.
template <bool MASKED, class T>
FGASEG_DEVICE void scores(float (&s)[TOKENS / 8][4], const Left& queries, const T* keys, int row, const Tokens& tokens,
                          int tile) {
  const Biases<MASKED> biases(tokens, tile);
#pragma unroll
  for (int n = 0; n < TOKENS / 8; ++n) {
    biases.begin(s[n], n);
    multiply_rows(s[n], queries, keys + n * 8 * row);
  }
}

// exp(score / sqrt(SIZE)) / 2^base
FGASEG_DEVICE float weight(float score, float base) { return exp2_approximately(fmaf(score, SCALE * LOG2E, -base)); }

// The largest of 16 queries' scores, for the rows of this lane.
FGASEG_DEVICE float2 largest(const float (&s)[TOKENS / 8][4]) {
  float2 top = make_float2(-INFINITY, -INFINITY);
#pragma unroll
  for (int n = 0; n < TOKENS / 8; ++n) {
    top.x = fmaxf(top.x, fmaxf(s[n][0], s[n][1]));
    top.y = fmaxf(top.y, fmaxf(s[n][2], s[n][3]));
  }
#pragma unroll
  for (int flip = 1; flip <= 2; flip *= 2) {  // over the four lanes of a row
    top.x = fmaxf(top.x, __shfl_xor_sync(~0u, top.x, flip));
    top.y = fmaxf(top.y, __shfl_xor_sync(~0u, top.y, flip));
  }
  return top;
}

// Adds weights [16 rows, 16 tokens] times these tokens' channels of a head to [16 rows, SIZE]. `column` is where the
// first pieces of the tokens begin for this lane (see column_spot).
template <class T>
FGASEG_DEVICE void multiply_columns(float (&d)[4][4], const uint32_t (&weights)[4], const T* base, int column) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t b[4];
    load_matrices_transposed(b, base + (column ^ half * 2 * PIECE));
    multiply_add<T>(d[2 * half], weights, {b[0], b[1]});
    multiply_add<T>(d[2 * half + 1], weights, {b[2], b[3]});
  }
}

// Where a lane's pieces of a head begin: of the rows that multiply_rows and scores take, and of multiply_columns' tokens.
template <int HEADS>
FGASEG_DEVICE int row_spot(int head) {
  return spot<HEADS>(lane() / 4, head * (SIZE / PIECE) + lane() % 4);
}
template <int HEADS>
FGASEG_DEVICE int column_spot(int head) {
  return spot<HEADS>(lane() % 16, head * (SIZE / PIECE) + lane() / 16);
}

// Writes sums [16 tokens, SIZE], those of the upper and lower eight tokens times a factor, to the pixels of a map, in
// runs of 32 bytes: lanes exchange half of what they have with their neighbours.
template <class T>
FGASEG_DEVICE void store_rows(const Pixels<T>& map, const float (&sums)[4][4], const float (&factors)[2],
                              const Tokens& tokens, int tile) {
  const bool odd = lane() & 1;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pixel = tokens.pixel(tile * TILE + 8 * half + lane() / 4);
    T* const to = map.at(pixel) + (odd ? PIECE - 2 : 0) + lane() % 4 * 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      uint32_t own[2];
#pragma unroll
      for (int j = 0; j < 2; ++j)
        own[j] = pack<T>(sums[i + j][2 * half] * factors[half], sums[i + j][2 * half + 1] * factors[half]);
      const uint32_t got = __shfl_xor_sync(~0u, odd ? own[0] : own[1], 1);
      const uint2 run = odd ? make_uint2(got, own[1]) : make_uint2(own[0], got);
      if (pixel >= 0) *reinterpret_cast<uint2*>(to + i * PIECE) = run;
    }
  }
}

}  // namespace
}  // namespace fgaseg
