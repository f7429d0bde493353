// topk_classes, gather_classes and scatter_classes on the GPU.
//
//   best       Each lane has a pixel, so adjacent lanes read adjacent elements; the classes are divided among the warps
//              of a block, because there are few pixels. Every lane keeps the k best of its share sorted in registers,
//              and after the first few only compares with the last of them; eight scores are in flight at a time. The
//              shares, in ascending class order, are then merged in pairs through shared memory: a later score only
//              displaces what it exceeds, so of equal scores the lower class stays. NaN and -inf exceed nothing. The
//              result is one bit per class, combined by OR, whose order does not matter.
//   ranked     For k > 32: a score is kept if fewer than k others are better. T comparisons per score, from cache.
//   compact    Bits to ascending rows: one block per image counts the bits before its own.
//   gather     16-byte copies if everything is aligned, else 8, 4 or 2 bytes; one lane per piece of a row, up to 256.
//   scatter    The same driven by the output, so that everything is written once: a row finds its source by bisection.
#include <cstring>

#include "common/cuda.h"

namespace fgaseg {
namespace {

constexpr int WARP = 32;      // pixels of a block
constexpr int THREADS = 256;  // of the other kernels
constexpr int AHEAD = 8;      // scores in flight

struct Scores {
  int64_t classes, pixels, width, stride_b, stride_t, stride_h, stride_w;

  FGASEG_DEVICE int64_t offset(int64_t image, unsigned pixel) const {
    const unsigned h = pixel / static_cast<unsigned>(width), w = pixel % static_cast<unsigned>(width);
    return image * stride_b + h * stride_h + w * stride_w;
  }
};

// The image and the pixels of a block.
struct Block {
  int64_t image;
  unsigned pixel;  // of this lane

  FGASEG_DEVICE explicit Block(unsigned blocks)
      : image(blockIdx.x / blocks), pixel(blockIdx.x % blocks * WARP + threadIdx.x % WARP) {}
};

// The K best scores so far, best first.
template <int K>
struct Best {
  float score[K];
  int index[K];

  FGASEG_DEVICE Best() {
#pragma unroll
    for (int i = 0; i < K; ++i) {
      score[i] = -INFINITY;
      index[i] = 0;
    }
  }

  // Inserts after equal scores. Returns false for scores that are not among the best, including NaN and -inf.
  FGASEG_DEVICE bool insert(float s, int t) {
    if (!(s > score[K - 1])) return false;
#pragma unroll
    for (int i = K - 1; i > 0; --i) {
      const bool moves = s > score[i - 1], enters = s > score[i];
      score[i] = moves ? score[i - 1] : enters ? s : score[i];
      index[i] = moves ? index[i - 1] : enters ? t : index[i];
    }
    index[0] = s > score[0] ? t : index[0];
    score[0] = s > score[0] ? s : score[0];
    return true;
  }
};

// kept: bit t % 32 of word t / 32 of each image is set if class t is among the k <= K best of some pixel. If all images
// share one result, kept_stride is 0.
template <class T, int K, int SHARES>
__global__ void __launch_bounds__(WARP* SHARES)
    mark_best(const T* scores, unsigned* kept, Scores shape, int64_t kept_stride, int blocks, int words, int k) {
  struct Entry {
    float score;
    int index;
  };
  FGASEG_DYNAMIC_SHARED(Entry, lists);  // [SHARES][K][32], followed by the bits that this block sets
  unsigned* bits = reinterpret_cast<unsigned*>(lists + SHARES * K * WARP);
  const Block block(blocks);
  const int share = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int length = static_cast<int>((shape.classes + SHARES - 1) / SHARES), first = share * length;
  const int end = block.pixel < shape.pixels ? min(first + length, static_cast<int>(shape.classes)) : 0;
  for (int i = threadIdx.x; i < words; i += WARP * SHARES) bits[i] = 0;

  Best<K> best;
  const T* pixel = scores + shape.offset(block.image, block.pixel);
  for (int t = first; t < end; t += AHEAD) {
    float next[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) next[i] = t + i < end ? to_float(pixel[(t + i) * shape.stride_t]) : -INFINITY;
#pragma unroll
    for (int i = 0; i < AHEAD; ++i) best.insert(next[i], t + i);
  }

  for (int apart = 1; apart < SHARES; apart *= 2) {
    if (share % (2 * apart) == apart)
#pragma unroll
      for (int i = 0; i < K; ++i) lists[(share * K + i) * WARP + lane] = {best.score[i], best.index[i]};
    __syncthreads();
    if (share % (2 * apart) == 0)
      for (int i = 0; i < K; ++i) {
        const Entry entry = lists[((share + apart) * K + i) * WARP + lane];
        if (!best.insert(entry.score, entry.index)) break;  // the following ones are no better
      }
  }
  if (share == 0)
#pragma unroll
    for (int i = 0; i < K; ++i)
      if (i < k && best.score[i] > -INFINITY) atomicOr(&bits[best.index[i] / 32], 1u << best.index[i] % 32);
  __syncthreads();
  for (int i = threadIdx.x; i < words; i += WARP * SHARES)
    if (bits[i]) atomicOr(&kept[block.image * kept_stride + i], bits[i]);
}

// The same for any k.
template <class T>
__global__ void __launch_bounds__(THREADS)
    mark_ranked(const T* scores, unsigned* kept, Scores shape, int64_t kept_stride, int blocks, int64_t k) {
  const Block block(blocks);
  const T* pixel = scores + shape.offset(block.image, block.pixel);
  const bool inside = block.pixel < shape.pixels;
  for (int64_t t = threadIdx.x / WARP; t < shape.classes; t += THREADS / WARP) {
    const float score = inside ? to_float(pixel[t * shape.stride_t]) : -INFINITY;
    bool keep = score > -INFINITY;
    if (keep && k < shape.classes) {
      int64_t better = 0;
      for (int64_t other = 0; other < shape.classes; ++other) {
        const float s = to_float(pixel[other * shape.stride_t]);
        better += s > score || (s == score && other < t);
      }
      keep = better < k;
    }
    if (__ballot_sync(~0u, keep) && threadIdx.x % WARP == 0)
      atomicOr(&kept[block.image * kept_stride + t / 32], 1u << t % 32);
  }
}

// The sum of `value` over the threads before this one; `total` receives the sum over all threads.
FGASEG_DEVICE int sum_before(int value, int& total) {
  FGASEG_SHARED(sums, int[THREADS / WARP]);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  int sum = value;
  for (int by = 1; by < WARP; by *= 2) {
    const int below = __shfl_up_sync(~0u, sum, by);
    sum += lane >= by ? below : 0;
  }
  __syncthreads();  // an earlier call may still be reading the sums
  if (lane == WARP - 1) sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int i = 0; i < THREADS / WARP; ++i) {
    before += i < warp ? sums[i] : 0;
    total += sums[i];
  }
  return before + sum - value;
}

// Block b writes the rows and the count of image b; the last block also writes the number of all rows.
__global__ void __launch_bounds__(THREADS)
    compact(const unsigned* kept, int64_t* rows, int64_t* counts, int64_t* total, int64_t classes, int words,
            bool united) {
  const int64_t image = blockIdx.x;
  const unsigned* of_image = kept + (united ? 0 : image * words);
  int in_tile, found = 0;
  for (const unsigned* word = kept + threadIdx.x; word < of_image; word += THREADS) found += __popc(*word);
  sum_before(found, in_tile);
  int64_t begin = in_tile, end = begin;
  if (united) {  // every image has as many rows as this one
    found = 0;
    for (int i = threadIdx.x; i < words; i += THREADS) found += __popc(of_image[i]);
    sum_before(found, in_tile);
    begin = end = image * in_tile;
  }
  for (int tile = 0; tile < words; tile += THREADS) {
    const int word = tile + threadIdx.x;
    unsigned bits = word < words ? of_image[word] : 0;
    int64_t* to = rows + end + sum_before(__popc(bits), in_tile);
    for (; bits; bits &= bits - 1) *to++ = image * classes + word * 32 + __ffs(bits) - 1;
    end += in_tile;
  }
  if (threadIdx.x == 0) {
    counts[image] = end - begin;
    if (image == gridDim.x - 1) *total = end;
  }
}

// Rows consist of `units` pieces of memory; blocks of (lanes, rows) threads copy PIECES pieces per thread.
constexpr int PIECES = 4;

struct Part {
  int64_t row, first, end;

  FGASEG_DEVICE Part(int64_t units, int chunks) {
    row = int64_t(blockIdx.x / chunks) * blockDim.y + threadIdx.y;
    const int64_t begin = int64_t(blockIdx.x % chunks) * blockDim.x * PIECES;
    first = begin + threadIdx.x;
    end = min(begin + blockDim.x * PIECES, units);
  }
};

template <class Unit>
__global__ void __launch_bounds__(THREADS)
    gather(const Unit* __restrict__ x, const int64_t* rows, Unit* __restrict__ y, int64_t count, int64_t batch,
           int64_t classes, int64_t stride_b, int64_t stride_t, int64_t units, int chunks) {
  const Part part(units, chunks);
  if (part.row >= count) return;
  const int64_t row = rows[part.row];
  FGASEG_CHECK(row >= 0 && row < batch * classes, "a row of the selection is not among the classes");
  const Unit* from = x + row / classes * stride_b + row % classes * stride_t;
  Unit* to = y + part.row * units;
  for (int64_t i = part.first; i < part.end; i += blockDim.x) to[i] = from[i];
}

template <class Unit>
__global__ void __launch_bounds__(THREADS)
    scatter(const Unit* __restrict__ y, const int64_t* rows, Unit* __restrict__ x, int64_t count, int64_t total,
            int64_t stride, int64_t units, Unit fill, int chunks) {
  const Part part(units, chunks);
  if (part.row >= total) return;
  if (part.row == 0 && part.first == 0 && count > 0)
    FGASEG_CHECK(rows[0] >= 0 && rows[count - 1] < total, "a row of the selection is not among the classes");
  int64_t low = 0, high = count;  // rows[low - 1] < row <= rows[high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (rows[middle] < part.row)
      low = middle + 1;
    else
      high = middle;
  }
  const bool found = low < count && rows[low] == part.row;
  const Unit* from = y + low * stride;
  Unit* to = x + part.row * units;
  for (int64_t i = part.first; i < part.end; i += blockDim.x) to[i] = found ? from[i] : fill;
}

// Threads for rows of `units` pieces: a power of two along the row, and as many rows as fit.
dim3 threads_for(int64_t units) {
  unsigned lanes = 1;
  while (lanes < THREADS && lanes < units) lanes *= 2;
  return dim3(lanes, THREADS / lanes);
}

template <class Kernel>
int launch_rows(const Kernel& kernel, int64_t count, int64_t units) {
  const dim3 block = threads_for(units);
  const int64_t step = int64_t(block.x) * PIECES, chunks = (units + step - 1) / step;
  return kernel(Grid{(count + block.y - 1) / block.y * chunks}, block, static_cast<int>(chunks));
}

// Calls f with a zero of an unsigned type of so many bytes.
template <class F>
int for_width(int64_t bytes, const F& f) {
  if (bytes == 16) return f(uint4{});
  if (bytes == 8) return f(uint2{});
  if (bytes == 4) return f(uint32_t{});
  return f(uint16_t{});
}

template <class T, int K>
int launch_best(const void* scores, unsigned* kept, const Scores& shape, int64_t images, int64_t kept_stride,
                int blocks, int words, int k, void* stream) {
  constexpr int SHARES = K <= 16 ? 16 : 8;
  constexpr int64_t lists = SHARES * K * WARP * (sizeof(float) + sizeof(int));
  return launch(mark_best<T, K, SHARES>, {images * blocks}, WARP * SHARES, lists + words * sizeof(unsigned), stream,
                static_cast<const T*>(scores), kept, shape, kept_stride, blocks, words, k);
}

template <class T>
int mark(const void* scores, unsigned* kept, const Scores& shape, int64_t images, bool united, int64_t k,
         void* stream) {
  if (shape.pixels > INT32_MAX || shape.classes > INT32_MAX) return cudaErrorInvalidValue;
  if (shape.classes == 0) return cudaSuccess;
  const int words = static_cast<int>((shape.classes + 31) / 32);
  const int64_t kept_stride = united ? 0 : words;
  const int blocks = static_cast<int>((shape.pixels + WARP - 1) / WARP);
  if (k > 32)
    return launch(mark_ranked<T>, {images * blocks}, THREADS, 0, stream, static_cast<const T*>(scores), kept, shape,
                  kept_stride, blocks, k);
  const auto best = k > 16  ? launch_best<T, 32>
                    : k > 8 ? launch_best<T, 16>
                    : k > 4 ? launch_best<T, 8>
                    : k > 2 ? launch_best<T, 4>
                    : k > 1 ? launch_best<T, 2>
                            : launch_best<T, 1>;
  return best(scores, kept, shape, images, kept_stride, blocks, words, static_cast<int>(k), stream);
}

}  // namespace
}  // namespace fgaseg

// Sets bits in `kept`, which must be zero: ceil(classes / 32) words for each image, or for all images if `united`.
// Score (b, t, h, w) lies at b * stride_b + t * stride_t + h * stride_h + w * stride_w.
#define FGASEG_LAUNCHER(T, dtype)                                                                                      \
  extern "C" int fgaseg_topk_classes_mark_##dtype(const void* scores, void* kept, int64_t images, int64_t classes,     \
                                                  int64_t height, int64_t width, int64_t stride_b, int64_t stride_t,   \
                                                  int64_t stride_h, int64_t stride_w, int64_t k, int64_t united,       \
                                                  void* stream) {                                                      \
    const fgaseg::Scores shape{classes, height * width, width, stride_b, stride_t, stride_h, stride_w};                \
    return fgaseg::mark<T>(scores, static_cast<unsigned*>(kept), shape, images, united, k, stream);                    \
  }
FGASEG_LAUNCHER(float, float32)
FGASEG_LAUNCHER(__half, float16)
FGASEG_LAUNCHER(__nv_bfloat16, bfloat16)

// rows has images * classes elements; the first *total of them are written.
extern "C" int fgaseg_topk_classes_compact(const void* kept, int64_t* rows, int64_t* counts, int64_t* total,
                                           int64_t images, int64_t classes, int64_t united, void* stream) {
  using namespace fgaseg;
  return launch(compact, {images}, THREADS, 0, stream, static_cast<const unsigned*>(kept), rows, counts, total, classes,
                static_cast<int>((classes + 31) / 32), united != 0);
}

// y[i] = x[row i]. Strides and `units` are in pieces of `bytes` (16, 8, 4 or 2) bytes.
extern "C" int fgaseg_gather_classes(const void* x, const int64_t* rows, void* y, int64_t count, int64_t batch,
                                     int64_t classes, int64_t stride_b, int64_t stride_t, int64_t units, int64_t bytes,
                                     void* stream) {
  using namespace fgaseg;
  return for_width(bytes, [&](auto unit) {
    using Unit = decltype(unit);
    return launch_rows(
        [&](Grid grid, dim3 block, int chunks) {
          return launch(gather<Unit>, grid, block, 0, stream, static_cast<const Unit*>(x), rows, static_cast<Unit*>(y),
                        count, batch, classes, stride_b, stride_t, units, chunks);
        },
        count, units);
  });
}

// x[row i] = y[i]; all other of the `total` rows are filled with the 16 bytes at `fill`, repeated.
extern "C" int fgaseg_scatter_classes(const void* y, const int64_t* rows, void* x, int64_t count, int64_t total,
                                      int64_t stride, int64_t units, int64_t bytes, const void* fill, void* stream) {
  using namespace fgaseg;
  return for_width(bytes, [&](auto unit) {
    using Unit = decltype(unit);
    std::memcpy(&unit, fill, sizeof unit);
    return launch_rows(
        [&](Grid grid, dim3 block, int chunks) {
          return launch(scatter<Unit>, grid, block, 0, stream, static_cast<const Unit*>(y), rows, static_cast<Unit*>(x),
                        count, total, stride, units, unit, chunks);
        },
        total, units);
  });
}
