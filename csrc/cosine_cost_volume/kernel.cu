// cosine_cost_volume on NVIDIA GPUs. kernels/cosine_cost_volume/op.py has the schema, cuda.cpp the host side.
//
//   out[b,p,t,n] = <texts[b,t,p], pixels[b,:,n]> / (max(|texts[b,t,p]|, eps) max(|pixels[b,:,n]|, eps))
//
// Forward is one launch: the product, with the squares of both sides summed from the same shared memory and the
// division at the end, so there is no normalised copy. docs/design/kernels.md explains the tiles of 64 texts x 64
// pixels.
//
// Neither side needs to be contiguous. The channels of a text are adjacent in memory, those of a pixel H*W apart. The
// next tiles are loaded to registers while a tile is multiplied. Where all pieces of 16 bytes of 16-bit elements are
// aligned (`Aligned`), a tile keeps the orientation that memory has, and ldmatrix transposes. Else (`Gathered`) a tile is
// transposed on the way to shared memory. The squares of 16-bit elements are products of a tile with itself, of which
// only the diagonal is used: the tensor cores have time, and conversions and sums by each thread took longer than the
// product. float32 runs through the same code with fused multiply-adds in the mma's register layout.
//
// Backward, with u = v / max(|v|, eps): h = sum of grad times the other side's unit vectors (rounded to the inputs'
// type, as PyTorch's are), in float32 scratch memory; then dv = (h - u <u, h>) / |v|, or h / eps where the length was
// raised to eps and is a constant. That is the same product twice, with the lengths before it and the projection after
// it; every sum has a fixed order.
#include <climits>
#include <cmath>
#include <cstring>
#include <type_traits>

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

// The offsets of successive elements of an axis.
struct Walk {
  const Axis& axis;
  int left;  // elements of the inner dimension
  int64_t offset;

  FGASEG_DEVICE Walk(const Axis& axis, int i) : axis(axis), left(axis.count - i % axis.count), offset(axis(i)) {}
  FGASEG_DEVICE void next() {
    offset += axis.inner;
    if (--left) return;
    left = axis.count;
    offset += axis.outer - axis.count * axis.inner;
  }
};

// One side of a product: rows, and the axis that is summed.
template <class T>
struct Side {
  const T* data;
  int64_t batch;
  Axis row, summed;
  int rows, length;
  const float* scales;  // factors [B, length] of the elements, or null

  // Whether the elements of a row are adjacent, else the rows.
  FGASEG_DEVICE bool along() const { return summed.inner == 1; }

  FGASEG_DEVICE void scale(uint4& piece, int64_t image, int k, bool along) const {
    T elements[16 / sizeof(T)];
    memcpy(elements, &piece, sizeof piece);
#pragma unroll
    for (int j = 0; j < int(16 / sizeof(T)); ++j) {
      const int at = along ? k + j : k;
      elements[j] = from_float<T>(at < length ? to_float(elements[j]) * scales[image * length + at] : 0);
    }
    memcpy(&piece, elements, sizeof piece);
  }
};

// A tile of a side, TILE rows x STEP elements, in pieces of 16 bytes; 16 bytes after each line avoid bank conflicts.
template <class T>
struct Layout {
  static constexpr int PIECE = 16 / sizeof(T), COUNT = TILE * STEP / PIECE / THREADS;  // pieces of a thread
  static constexpr int ALONG = STEP + PIECE, ACROSS = TILE + PIECE;  // elements of a line [row][STEP] or [STEP][row]
  static constexpr int ELEMENTS = TILE * ALONG;
  static_assert(STEP * ACROSS <= ELEMENTS);
};

// From any tensor to [row][STEP].
template <class T>
class Gathered : Layout<T> {
  using Layout<T>::PIECE, Layout<T>::COUNT;

 public:
  static constexpr bool ACROSS = false;
  static constexpr int BLOCKS = sizeof(T) == 2 ? 4 : 2;  // on a multiprocessor, without spilled registers

  FGASEG_DEVICE Gathered(const Side<T>& side, T* shared, int64_t image, int row)
      : side_(side), shared_(shared), image_(image), row_(row) {}

  // From memory to registers: the elements first ... first + STEP of the summed axis.
  template <bool SCALED>
  FGASEG_DEVICE void load(int first) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      load_piece(pieces_[i], row_ + row(i), first + column(i));
      if (SCALED && side_.scales) side_.scale(pieces_[i], image_, first + column(i), true);
    }
  }

  FGASEG_DEVICE void store() const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      *reinterpret_cast<uint4*>(shared_ + row(i) * Layout<T>::ALONG + column(i)) = pieces_[i];
  }

 private:
  // Adjacent threads follow the axis that is dense in memory.
  FGASEG_DEVICE int row(int i) const {
    const int piece = threadIdx.x + i * THREADS;
    return side_.along() ? piece / (STEP / PIECE) : piece % TILE;
  }
  FGASEG_DEVICE int column(int i) const {
    const int piece = threadIdx.x + i * THREADS;
    return (side_.along() ? piece % (STEP / PIECE) : piece / TILE) * PIECE;
  }

  FGASEG_DEVICE void load_piece(uint4& piece, int row, int k) const {
    const bool inside = row < side_.rows;
    const T* const from = side_.data + image_ * side_.batch + side_.row(row);
    const bool whole = inside && side_.along() && k + PIECE <= min(side_.length, side_.summed.count);
    if (whole && reinterpret_cast<uintptr_t>(from + k) % 16 == 0) {
      piece = *reinterpret_cast<const uint4*>(from + k);
      return;
    }
    T elements[PIECE];
    Walk walk(side_.summed, k);
#pragma unroll
    for (int j = 0; j < PIECE; ++j, walk.next())
      elements[j] = inside && k + j < side_.length ? from[walk.offset] : from_float<T>(0);
    memcpy(&piece, elements, sizeof piece);
  }

  const Side<T>& side_;
  T* shared_;
  int64_t image_;
  int row_;
  uint4 pieces_[COUNT];
};

// From a tensor whose pieces are all whole and aligned, to [row][STEP] or [STEP][row] as memory has it.
template <class T, bool ROWS>
class Aligned : Layout<T> {
  using Layout<T>::PIECE, Layout<T>::COUNT;
  static constexpr int LINE = ROWS ? TILE : STEP, STRIDE = ROWS ? Layout<T>::ACROSS : Layout<T>::ALONG;
  static constexpr int LINES = THREADS * PIECE / LINE;  // between two pieces of a thread

 public:
  static constexpr bool ACROSS = ROWS;
  static constexpr int BLOCKS = 5;

  FGASEG_DEVICE Aligned(const Side<T>& side, T* shared, int64_t image, int row) : side_(side), image_(image) {
    const int line = threadIdx.x / (LINE / PIECE), start = threadIdx.x % (LINE / PIECE) * PIECE;
    to_ = reinterpret_cast<uint4*>(shared + line * STRIDE + start);
    first_ = ROWS ? line : start;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {  // a row beyond the last is never stored, so any will do
      const int mine = ROWS ? min(row + start, side.rows - PIECE) : min(row + line + i * LINES, side.rows - 1);
      from_[i] = side.data + image * side.batch + mine * side.row.inner + (first_ + distance(i)) * side.summed.inner;
    }
  }

  template <bool SCALED>
  FGASEG_DEVICE void load(int first) {
    const int64_t offset = first * side_.summed.inner;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int k = first + first_ + distance(i);
      pieces_[i] = k < side_.length ? *reinterpret_cast<const uint4*>(from_[i] + offset) : make_uint4(0, 0, 0, 0);
      if (SCALED && side_.scales) side_.scale(pieces_[i], image_, k, !ROWS);
    }
  }

  FGASEG_DEVICE void store() const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to_[i * LINES * STRIDE / PIECE] = pieces_[i];
  }

 private:
  // Along the summed axis, from a thread's first piece.
  FGASEG_DEVICE static int distance(int i) { return ROWS ? i * LINES : 0; }

  const Side<T>& side_;
  int64_t image_;
  uint4* to_;
  int first_;
  const T* from_[COUNT];
  uint4 pieces_[COUNT];
};

enum Place { LEFT, RIGHT };  // of an operand in an mma

// 16 rows of a tile x 16 elements as operands: one on the left, or {r[0], r[1]} and {r[2], r[3]} on the right. ACROSS:
// the tile is [STEP][row].
template <class T, bool ACROSS>
class Operands {
 public:
  FGASEG_DEVICE Operands(const T* tile, int row, Place place) {
    const int inner = lane() / 8 % 2 * 8, outer = lane() / 16 * 8;  // of the second, third and fourth matrix
    row += place == LEFT ? inner : outer;
    const int k = place == LEFT ? outer : inner;
    mine_ = tile + (ACROSS ? (k + lane() % 8) * Layout<T>::ACROSS + row : (row + lane() % 8) * Layout<T>::ALONG + k);
  }

  FGASEG_DEVICE void load(uint32_t (&r)[4], int row, int k) const {
    if (ACROSS)
      load_matrices_transposed(r, mine_ + k * Layout<T>::ACROSS + row);
    else
      load_matrices(r, mine_ + row * Layout<T>::ALONG + k);
  }

 private:
  const T* mine_;
};

using Results = float[2][4][4];  // of a warp: 2 x 16 rows, 4 x 8 columns, in mma's register layout

FGASEG_DEVICE int first_row() { return warp() / 2 * 32; }
FGASEG_DEVICE int first_column() { return warp() % 2 * 32; }

template <class T, bool LEFT_ACROSS, bool RIGHT_ACROSS>
class Product {
 public:
  FGASEG_DEVICE Product(const T* left, const T* right)
      : left_(left, first_row(), LEFT), right_(right, first_column(), RIGHT) {}

  FGASEG_DEVICE void add(Results& results) const {
#pragma unroll
    for (int k = 0; k < STEP; k += 16) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) left_.load(a[m], m * 16, k);
#pragma unroll
      for (int j = 0; j < 4; j += 2) {
        uint32_t b[4];
        right_.load(b, j * 8, k);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<T>(results[m][j], a[m], {b[0], b[1]});
          multiply_add<T>(results[m][j + 1], a[m], {b[2], b[3]});
        }
      }
    }
  }

 private:
  Operands<T, LEFT_ACROSS> left_;
  Operands<T, RIGHT_ACROSS> right_;
};

// In float32 the products of a step are summed before they are added to the results, which loses fewer bits.
template <>
class Product<float, false, false> {
  static constexpr int STRIDE = Layout<float>::ALONG;

 public:
  FGASEG_DEVICE Product(const float* left, const float* right) : left_(left), right_(right) {}

  FGASEG_DEVICE void add(Results& results) const {
    Results sums = {};
#pragma unroll 2
    for (int k = 0; k < STEP; k += 4) {
      float4 a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        a[i] = *reinterpret_cast<const float4*>(left_ + (first_row() + i * 8 + lane() / 4) * STRIDE + k);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int column = first_column() + j / 2 * 8 + lane() % 4 * 2 + j % 2;
        const float4 b = *reinterpret_cast<const float4*>(right_ + column * STRIDE + k);
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

 private:
  const float *left_, *right_;
};

// The squares of the rows of both tiles, summed over the steps: a warp has 32 rows of one of them.
FGASEG_DEVICE bool of_left() { return warp() < 2; }

template <class T, bool LEFT_ACROSS, bool RIGHT_ACROSS>
class Squares {
 public:
  FGASEG_DEVICE Squares(const T* left, const T* right) : left_(left), right_(right) {}

  FGASEG_DEVICE void add() {
    if (of_left())
      add<LEFT_ACROSS>(left_);
    else
      add<RIGHT_ACROSS>(right_);
  }

  FGASEG_DEVICE void inverse_lengths(float* inverse, float eps) const {
    const int row = lane() / 4;
    if (lane() % 4 != row / 2) return;  // not on the diagonal
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* const pair = sums_[i / 2][i % 2] + i % 2 * 2;
      inverse[warp() * 32 + i * 8 + row] = 1 / fmaxf(sqrtf(row % 2 ? pair[1] : pair[0]), eps);
    }
  }

 private:
  template <bool ACROSS>
  FGASEG_DEVICE void add(const T* tile) {
    const int row = warp() % 2 * 32;
    const Operands<T, ACROSS> as_left(tile, row, LEFT), as_right(tile, row, RIGHT);
#pragma unroll
    for (int i = 0; i < STEP / 8; ++i) {
      const int m = i % 2;
      uint32_t left[4], right[4];
      as_left.load(left, m * 16, i / 2 * 16);
      as_right.load(right, m * 16, i / 2 * 16);
      multiply_add<T>(sums_[m][0], left, {right[0], right[1]});
      multiply_add<T>(sums_[m][1], left, {right[2], right[3]});
    }
  }

  const T *left_, *right_;
  float sums_[2][2][4] = {};  // 8 rows multiplied with themselves; the other half of their mma with 8 others
};

template <>
class Squares<float, false, false> {
 public:
  FGASEG_DEVICE Squares(const float* left, const float* right)
      : row_((of_left() ? left : right) + threadIdx.x % TILE * Layout<float>::ALONG) {}

  FGASEG_DEVICE void add() {
#pragma unroll
    for (int k = 0; k < STEP; k += 4) {
      const float4 x = *reinterpret_cast<const float4*>(row_ + k);
      sum_ = fmaf(x.w, x.w, fmaf(x.z, x.z, fmaf(x.y, x.y, fmaf(x.x, x.x, sum_))));
    }
  }

  FGASEG_DEVICE void inverse_lengths(float* inverse, float eps) const {
    inverse[threadIdx.x] = 1 / fmaxf(sqrtf(sum_), eps);
  }

 private:
  const float* row_;
  float sum_ = 0;
};

// Two adjacent results, of which `count` are inside.
template <class Out>
FGASEG_DEVICE void store_pair(Out* to, float first, float second, int count) {
  const Out pair[2] = {from_float<Out>(first), from_float<Out>(second)};
  if (count > 1 && reinterpret_cast<uintptr_t>(to) % sizeof pair == 0) {
    using Both = std::conditional_t<sizeof(Out) == 2, uint32_t, float2>;
    Both both;
    memcpy(&both, pair, sizeof both);
    *reinterpret_cast<Both*>(to) = both;
    return;
  }
  if (count > 0) to[0] = pair[0];
  if (count > 1) to[1] = pair[1];
}

// out[b, row, column] = sum of left[b, row, k] right[b, column, k]; COSINE: divided by both lengths.
template <class T, class Out, bool COSINE, class Left, class Right>
__global__ void __launch_bounds__(THREADS, Left::BLOCKS)
    product(const Side<T> left, const Side<T> right, Out* out, Axis out_row, float eps) {
  FGASEG_SHARED(a_memory, T[Layout<T>::ELEMENTS]);
  FGASEG_SHARED(b_memory, T[Layout<T>::ELEMENTS]);
  const int across = (right.rows + TILE - 1) / TILE, down = (left.rows + TILE - 1) / TILE;
  const int column = blockIdx.x % across * TILE, row = blockIdx.x / across % down * TILE;
  const int64_t image = blockIdx.x / across / down;

  Left a(left, a_memory, image, row);
  Right b(right, b_memory, image, column);
  const Product<T, Left::ACROSS, Right::ACROSS> product(a_memory, b_memory);
  Squares<T, Left::ACROSS, Right::ACROSS> squares(a_memory, b_memory);
  Results results = {};
  a.template load<!COSINE>(0);
  b.template load<!COSINE>(0);
  for (int k = 0; k < left.length; k += STEP) {
    a.store();
    b.store();
    __syncthreads();
    a.template load<!COSINE>(k + STEP);
    b.template load<!COSINE>(k + STEP);
    product.add(results);
    if (COSINE) squares.add();
    __syncthreads();
  }

  FGASEG_SHARED(inverse, float[2 * TILE]);  // lengths of the rows of a, then of b
  if (COSINE) {
    squares.inverse_lengths(inverse, eps);
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int m = first_row() + i * 8 + lane() / 4;
    if (row + m >= left.rows) continue;
    Out* const to = out + image * left.rows * right.rows + out_row(row + m) + column;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int n = first_column() + j * 8 + lane() % 4 * 2;
      float x = results[i / 2][j][i % 2 * 2], y = results[i / 2][j][i % 2 * 2 + 1];
      if (COSINE) {
        x *= inverse[m] * inverse[TILE + n];
        y *= inverse[m] * inverse[TILE + n + 1];
      }
      store_pair(to + n, x, y, right.rows - column - n);
    }
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
  if (count < 2) return {INT_MAX, outer, 0};
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
Side<T> side(const T* data, int64_t batch, Axis row, Axis summed, int64_t rows, int64_t length,
             const float* scales = nullptr) {
  return {data, batch, row, summed, int(rows), int(length), scales};
}
Axis channels_of(int64_t step) { return {INT_MAX, step, 0}; }

// Whether Aligned<T, rows> may read the side: whole, aligned pieces of 16-bit elements.
template <class T>
bool aligned(const Side<T>& side, bool rows) {
  const Axis &piece = rows ? side.row : side.summed, &line = rows ? side.summed : side.row;
  const int64_t distances[] = {side.batch, line.inner, rows ? side.rows : side.length};
  for (int64_t distance : distances)
    if (distance * sizeof(T) % 16) return false;
  return piece.inner == 1 && piece.count == INT_MAX && line.count == INT_MAX &&
         reinterpret_cast<uintptr_t>(side.data) % 16 == 0;
}

template <bool COSINE, class T, class Out>
int start_product(int64_t batch, const Side<T>& left, const Side<T>& right, Out* out, Axis out_row, float eps,
                  void* stream) {
  const auto start = [&](auto kernel) {
    const Grid grid{batch * blocks_of(left.rows, TILE) * blocks_of(right.rows, TILE)};
    return launch(kernel, grid, THREADS, 0, stream, left, right, out, out_row, eps);
  };
  if constexpr (sizeof(T) == 2) {  // the forms of contiguous tensors, and of pixels with their channels last
    constexpr bool ROWS = !COSINE;
    if (aligned(left, ROWS) && aligned(right, true))
      return start(product<T, Out, COSINE, Aligned<T, ROWS>, Aligned<T, true>>);
    if (aligned(left, false) && aligned(right, false))
      return start(product<T, Out, COSINE, Aligned<T, false>, Aligned<T, false>>);
  }
  return start(product<T, Out, COSINE, Gathered<T>, Gathered<T>>);
}

template <class T>
int forward(const void* pixels, const int64_t* pixel_strides, const void* texts, const int64_t* text_strides, void* out,
            const int64_t* sizes, float eps, void* stream) {
  const Sizes n(sizes);
  const auto x = pixel_vectors<T>(pixels, pixel_strides, n), t = text_vectors<T>(texts, text_strides, n);
  return start_product<true>(n.batch, side(t.data, t.batch, t.vector, channels_of(t.step), t.count, n.channels),
                             side(x.data, x.batch, x.vector, channels_of(x.step), x.count, n.channels),
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
      start_product<false>(n.batch, side(t.data, t.batch, channels_of(t.step), t.vector, n.channels, t.count, t_inverse),
                           side(g, s[0], g_pixel, g_text, x.count, t.count), x_grad, channels_of(x.count), eps, stream),
      start_product<false>(n.batch, side(g, s[0], g_text, g_pixel, t.count, x.count),
                           side(x.data, x.batch, channels_of(x.step), x.vector, n.channels, x.count, x_inverse), t_grad,
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
