// upsample_argmax and upsample_argmax_windows on the GPU.
//
//   runs      A warp owns 32 adjacent columns, one a lane, of 8 (or 4) adjacent rows, and a share of the classes. If
//             the map is stretched enough, all of this lies between 4 rows and 16 columns of the map: two elements a
//             lane. Shuffles exchange them, and they are interpolated once per row of the map; what remains per pixel
//             and class are 4 multiplications and additions, a comparison and two selections. The weights of the 4
//             rows, two of them zeros, are the same for every class and stay in registers. Zero times infinity is NaN:
//             where an element is not finite, the two neighbours are selected instead. The shares meet in shared memory
//             at the end.
//   each      A thread owns a pixel and loads four elements per class: for maps that are hardly stretched.
//   average   The windowed form goes through frames with PACK classes next to each other, so that one load serves them
//             all. A warp adds up the crops that cover its run of the frame, each activated once, and interpolates the
//             global view in a map that the same kernel has activated before. `each` continues with the winners so far.
//
// Of a photo of 480x640 and 150 classes there are 46 M pixels and classes, 1.4 M for a warp: an H100 issues 0.93 T
// instructions of a warp per second, 1.5 us for each instruction of the loop. Bytes (6.5 MB, 2 us) do not decide.
#include <algorithm>

#include "common/cuda.h"
#include "upsample_argmax/run.h"

namespace fgaseg {
namespace {

constexpr int SHARES = 4;     // of the classes: warps of a block
constexpr int THREADS = 256;  // of `each`: 32 columns of 8 rows
constexpr int WARPS = 4;      // of `average`, one below the other
constexpr int ROWS = 8;       // of a run of `average`
constexpr int PACK = 4;       // classes

// The best class of a pixel so far, and the softmax's denominator relative to it.
struct Winner {
  float best = -INFINITY, total = 0;
  int label = 0;

  // `others` is the sum of exp(score - x) over the classes of which x is the best. The first NaN wins, and of equal
  // scores the first.
  template <bool TOTAL>
  FGASEG_DEVICE void add(float x, int t, float others = 1) {
    const bool loses = !(x <= best) && best == best;
    if (TOTAL) {
      const float below = loses ? best - x : x - best;
      const float e = below <= 0 ? exp_approx(below) : 0.f;  // 0 for NaN: see store
      total = loses ? total * e + others : total + others * e;
    }
    best = loses ? x : best;
    label = loses ? t : label;
  }

  template <bool TOTAL>
  FGASEG_DEVICE void add_finite(float x, int t) {
    const bool loses = x > best;
    if (TOTAL) {
      const float e = exp_approx(-fabsf(x - best));
      total = loses ? total * e + 1 : total + e;
    }
    best = loses ? x : best;
    label = loses ? t : label;
  }
};

// [images, H, W], with the winners of the `before` classes that precede these.
struct Results {
  int64_t* labels;
  float *scores, *totals;
  int before;

  FGASEG_DEVICE Winner begin(int64_t i) const {
    Winner winner;
    if (before > 0) {
      winner.best = scores[i];
      winner.label = static_cast<int>(labels[i]);
    }
    return winner;
  }

  // The total is NaN where the winner is infinite or NaN, as the sum of exp(x - best) is.
  template <bool TOTAL>
  FGASEG_DEVICE void store(int64_t i, const Winner& winner) const {
    labels[i] = winner.label;
    scores[i] = winner.best;
    if (TOTAL) totals[i] = fabsf(winner.best) < INFINITY ? winner.total : NAN;
  }
};

// Strides are in elements; an element of packed maps is PACK classes. The last pack is filled up with its last class,
// which does not win against itself.
struct Maps {
  int classes;
  Axis rows, columns;
  int64_t stride_image, stride_class, stride_y, stride_x;

  int64_t blocks(int64_t images, int height) const {
    return images * ((rows.target + height - 1) / height) * ((columns.target + WARP - 1) / WARP);
  }
};

// The pixels of a block of `runs` or `each`.
struct Tile {
  int64_t image;
  int y, x;

  FGASEG_DEVICE Tile(const Maps& maps, int height) {
    const unsigned across = (maps.columns.target + WARP - 1) / WARP, down = (maps.rows.target + height - 1) / height;
    image = blockIdx.x / across / down;
    y = static_cast<int>(blockIdx.x / across % down) * height;
    x = static_cast<int>(blockIdx.x % across) * WARP;
  }

  FGASEG_DEVICE int64_t pixel(const Maps& maps, int row, int column) const {
    return (image * maps.rows.target + y + row) * maps.columns.target + x + column;
  }
};

template <class T, int R, bool TOTAL>
__global__ void __launch_bounds__(WARP* SHARES, 4) upsample_argmax_runs(const T* maps, Results results, Maps shape) {
  FGASEG_SHARED(best, float[SHARES][R][WARP]);
  FGASEG_SHARED(labels, int[SHARES][R][WARP]);
  FGASEG_SHARED(totals, float[TOTAL ? SHARES : 1][R][WARP]);
  const Tile tile(shape, R);
  const int share = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int length = (shape.classes + SHARES - 1) / SHARES;
  const int first = min(share * length, shape.classes), end = min(first + length, shape.classes);
  Run<R> run;
  run.set_rows(shape.rows, tile.y);
  run.set_columns(shape.rows, shape.columns, tile.x, shape.stride_y, shape.stride_x);
  maps += tile.image * shape.stride_image + first * shape.stride_class;
  const T *one = maps + run.elements[0], *two = maps + run.elements[1];

  Winner winners[R];
  const auto add = [&](float2 loaded, int t) {
    float x[R];
    if (run.values(loaded, x)) {
#pragma unroll
      for (int r = 0; r < R; ++r) winners[r].template add_finite<TOTAL>(x[r], t);
    } else {
#pragma unroll
      for (int r = 0; r < R; ++r) winners[r].template add<TOTAL>(x[r], t);
    }
  };
  if (first < end) {
    float2 next{to_float(*one), to_float(*two)};
#pragma unroll 2
    for (int t = first; t + 1 < end; ++t) {
      const float2 now = next;
      next = {to_float(*(one += shape.stride_class)), to_float(*(two += shape.stride_class))};
      add(now, t);
    }
    add(next, end - 1);
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    best[share][r][lane] = winners[r].best;
    labels[share][r][lane] = winners[r].label;
    if (TOTAL) totals[share][r][lane] = winners[r].total;
  }
  __syncthreads();
  for (int r = share; r < R; r += SHARES) {
    if (tile.y + r >= shape.rows.target || tile.x + lane >= shape.columns.target) return;
    Winner winner;
#pragma unroll
    for (int s = 0; s < SHARES; ++s)
      winner.template add<TOTAL>(best[s][r][lane], labels[s][r][lane], TOTAL ? totals[s][r][lane] : 1.f);
    results.template store<TOTAL>(tile.pixel(shape, r, lane), winner);
  }
}

FGASEG_DEVICE void unpack_classes(float4 loaded, float (&x)[PACK]) {
  x[0] = loaded.x, x[1] = loaded.y, x[2] = loaded.z, x[3] = loaded.w;
}
template <class T>
FGASEG_DEVICE void unpack_classes(T loaded, float (&x)[1]) {
  x[0] = to_float(loaded);
}

template <class T>
constexpr int CLASSES_OF = 1;
template <>
constexpr int CLASSES_OF<float4> = PACK;

// The four elements around a pixel.
template <class T>
struct Corners {
  static constexpr int N = CLASSES_OF<T>;
  int64_t offset[4];
  float weight_y, weight_x;

  FGASEG_DEVICE Corners(Between y, Between x, int64_t stride_y, int64_t stride_x)
      : offset{y.first * stride_y + x.first * stride_x, y.first * stride_y + x.second * stride_x,
               y.second * stride_y + x.first * stride_x, y.second * stride_y + x.second * stride_x},
        weight_y(y.weight),
        weight_x(x.weight) {}

  FGASEG_DEVICE void values(const T* map, float (&x)[N]) const {
    float corner[4][N];
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack_classes(map[offset[i]], corner[i]);
#pragma unroll
    for (int c = 0; c < N; ++c)
      x[c] = lerp(lerp(corner[0][c], corner[1][c], weight_x), lerp(corner[2][c], corner[3][c], weight_x), weight_y);
  }
};

template <class T, bool TOTAL>
__global__ void __launch_bounds__(THREADS) upsample_argmax_each(const T* maps, Results results, Maps shape) {
  constexpr int N = CLASSES_OF<T>, AHEAD = N == 1 ? 4 : 2;
  const Tile tile(shape, THREADS / WARP);
  const int row = threadIdx.x / WARP, column = threadIdx.x % WARP;
  if (tile.y + row >= shape.rows.target || tile.x + column >= shape.columns.target) return;
  const Corners<T> corners(shape.rows.at(tile.y + row), shape.columns.at(tile.x + column), shape.stride_y,
                           shape.stride_x);
  const int64_t pixel = tile.pixel(shape, row, column);
  maps += tile.image * shape.stride_image;
  Winner winner = results.begin(pixel);
#pragma unroll AHEAD
  for (int t = 0; t < shape.classes; t += N) {
    float x[N];
    corners.values(maps, x);
#pragma unroll
    for (int c = 0; c < N; ++c) winner.template add<TOTAL>(x[c], results.before + t + c);
    maps += shape.stride_class;
  }
  results.template store<TOTAL>(pixel, winner);
}

// How the views cover a frame, along either axis.
struct Crops {
  int side, window, stride;

  // The first and the last crop that cover position p of the frame.
  FGASEG_DEVICE int first(int p) const { return p < window ? 0 : (p - window) / stride + 1; }
  FGASEG_DEVICE int last(int p) const { return min(p / stride, side - 1); }
};

// Frames are [ceil(classes / PACK), frame, frame, PACK], the activated global view `whole` likewise with the window's
// side. It is itself such a frame, of one crop.
struct Frames {
  int classes, side;  // of the frame
  bool sigmoid;
  Crops crops;
  Axis rows, columns, global;  // of a view's map at the window's size, of `whole` at the frame's size
  int64_t stride_view, stride_class, stride_y, stride_x;
};

// What a warp computes: its run of PACK classes at a lane's column.
using Sums = float[PACK][ROWS];

// Adds the activated values of one crop, whose corner is at (y, x) relative to the run, to the rows in `mask`.
template <class T, bool RUNS>
FGASEG_DEVICE void add_crop(Sums& sums, const T* crop, const Frames& f, Run<ROWS>& run, int y, int x, unsigned mask,
                            int classes) {
  const auto add = [&](int c, int r, float value) {
    if (mask >> r & 1) sums[c][r] += f.sigmoid ? sigmoid_approx(value) : value;
  };
  if constexpr (RUNS) {
    run.set_columns(f.rows, f.columns, x, f.stride_y, f.stride_x);
    const T *one = crop + run.elements[0], *two = crop + run.elements[1];
    float2 loaded[PACK];
#pragma unroll
    for (int c = 0; c < PACK; ++c) {
      loaded[c] = {to_float(*one), to_float(*two)};
      if (c + 1 < classes) one += f.stride_class, two += f.stride_class;
    }
#pragma unroll
    for (int c = 0; c < PACK; ++c) {
      float values[ROWS];
      run.values(loaded[c], values);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) add(c, r, values[r]);
    }
  } else {
    const Between column = f.columns.at(f.columns.inside(x + static_cast<int>(threadIdx.x % WARP)));
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      __syncwarp();  // or the compiler would load all rows at once, and run out of registers
      const Corners<T> corners(f.rows.at(f.rows.inside(y + r)), column, f.stride_y, f.stride_x);
#pragma unroll
      for (int c = 0; c < PACK; ++c) {
        float value[1];
        corners.values(crop + min(c, classes - 1) * f.stride_class, value);
        add(c, r, value[0]);
      }
    }
  }
}

// The mean of the crops' average and the global view at row r, a lane's column; `half_share` is half of the share of a
// crop in the average.
FGASEG_DEVICE float4 mix(const Sums& sums, int r, float half_share, const float4* whole, int width, Between y,
                         Between x) {
  const unsigned upper = unsigned(y.first) * width, lower = unsigned(y.second) * width;  // 32 bits: see WIDEST
  float corner[4][PACK], value[PACK];
  unpack_classes(whole[upper + x.first], corner[0]);
  unpack_classes(whole[upper + x.second], corner[1]);
  unpack_classes(whole[lower + x.first], corner[2]);
  unpack_classes(whole[lower + x.second], corner[3]);
  const float above = 0.5f * (1 - y.weight), below = 0.5f * y.weight;
  const float weight[4] = {above * (1 - x.weight), above * x.weight, below * (1 - x.weight), below * x.weight};
#pragma unroll
  for (int c = 0; c < PACK; ++c) {
    value[c] = sums[c][r] * half_share;
#pragma unroll
    for (int i = 0; i < 4; ++i) value[c] = fmaf(weight[i], corner[i][c], value[c]);
  }
  return make_float4(value[0], value[1], value[2], value[3]);
}

// Writes a run; `share` is that of a crop in this lane's column, row_share in row lane % ROWS.
FGASEG_DEVICE void store_run(const Sums& sums, const float4* whole, float4* to, const Frames& f, int y, int x,
                             float row_share, float share) {
  const Between column = f.global.at(f.global.inside(x));
  const Between row = f.global.at(f.global.inside(y + static_cast<int>(threadIdx.x) % ROWS));
  to += static_cast<int64_t>(y) * f.side + x;
#pragma unroll
  for (int r = 0; r < ROWS; ++r, to += f.side) {
    const Between here{__shfl_sync(~0u, row.first, r), __shfl_sync(~0u, row.second, r),
                       __shfl_sync(~0u, row.weight, r)};
    const float half_share = 0.5f * share * __shfl_sync(~0u, row_share, r);
    if (y + r < f.side && x < f.side) *to = mix(sums, r, half_share, whole, f.global.source, here, column);
  }
}

// Blocks are (columns, rows, packs of classes).
template <class T, bool RUNS>
__global__ void __launch_bounds__(WARP* WARPS, RUNS ? 4 : 2)
    upsample_argmax_average(const T* logits, const float4* whole, float4* frames, Frames f) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, first_class = blockIdx.z * PACK;
  const int x = blockIdx.x * WARP, y = (blockIdx.y * WARPS + warp) * ROWS;
  if (y >= f.side) return;
  logits += first_class * f.stride_class;
  frames += int64_t(blockIdx.z) * f.side * f.side;

  // the crops that cover this lane's column, and row lane % ROWS
  const int column = min(x + lane, f.side - 1), row = min(y + lane % ROWS, f.side - 1);
  const int left = f.crops.first(column), right = f.crops.last(column);
  const int top = f.crops.first(row), bottom = f.crops.last(row);
  // and those that cover any of the warp's, without shuffles: so benchmarks/predicted.py can count how often the loops run
  const int left_most = f.crops.first(x), right_most = f.crops.last(min(x + WARP - 1, f.side - 1));
  const int highest = f.crops.first(y), lowest = f.crops.last(min(y + ROWS - 1, f.side - 1));
  Sums sums = {};
  for (int i = highest; i <= lowest; ++i) {
    const unsigned rows = __ballot_sync(~0u, top <= i && i <= bottom);  // bit r: row r
    const int crop_y = y - i * f.crops.stride;
    Run<ROWS> run;
    if (RUNS) run.set_rows(f.rows, crop_y);
    for (int j = left_most; j <= right_most; ++j)
      add_crop<T, RUNS>(sums, logits + (int64_t(i) * f.crops.side + j) * f.stride_view, f, run, crop_y,
                                 x - j * f.crops.stride, left <= j && j <= right ? rows : 0, f.classes - first_class);
  }
  if (whole) {
    whole += int64_t(blockIdx.z) * f.global.source * f.global.source;
    store_run(sums, whole, frames, f, y, x + lane, reciprocal_approx(static_cast<float>(bottom - top + 1)),
              reciprocal_approx(static_cast<float>(right - left + 1)));
  } else if (x + lane < f.side) {  // one crop, which is all of the frame
    float4* to = frames + static_cast<int64_t>(y) * f.side + x + lane;
#pragma unroll
    for (int r = 0; r < ROWS; ++r, to += f.side)
      if (y + r < f.side) *to = make_float4(sums[0][r], sums[1][r], sums[2][r], sums[3][r]);
  }
}

constexpr int64_t MOST = 1 << 30;    // elements along an axis, and classes: sums of two fit in 32 bits
constexpr int64_t WIDEST = 65535;    // window: the offset of a pixel fits in 32 bits; 69 GB of four classes

template <class T, bool TOTAL>
int launch_argmax(const T* maps, const Results& results, const Maps& shape, int64_t images, void* stream) {
  if constexpr (CLASSES_OF<T> == 1)
    if (shape.columns.fits(WARP, PATCH_COLUMNS)) {
      if (shape.rows.fits(8, PATCH_ROWS))
        return launch(upsample_argmax_runs<T, 8, TOTAL>, {shape.blocks(images, 8)}, WARP * SHARES, 0, stream, maps,
                      results, shape);
      if (shape.rows.fits(4, PATCH_ROWS))
        return launch(upsample_argmax_runs<T, 4, TOTAL>, {shape.blocks(images, 4)}, WARP * SHARES, 0, stream, maps,
                      results, shape);
    }
  return launch(upsample_argmax_each<T, TOTAL>, {shape.blocks(images, THREADS / WARP)}, THREADS, 0, stream, maps,
                results, shape);
}

template <class T>
int launch_average(const T* logits, const float* whole, float* frames, const Frames& f, void* stream) {
  const bool runs = f.rows.fits(ROWS, PATCH_ROWS) && f.columns.fits(WARP, PATCH_COLUMNS);
  const auto kernel = runs ? upsample_argmax_average<T, true> : upsample_argmax_average<T, false>;
  const int height = WARPS * ROWS;
  const Grid grid{(f.side + WARP - 1) / WARP, (f.side + height - 1) / height, (f.classes + PACK - 1) / PACK};
  return launch(kernel, grid, WARP * WARPS, 0, stream, logits, reinterpret_cast<const float4*>(whole),
                reinterpret_cast<float4*>(frames), f);
}

template <class T>
int upsample_argmax(const void* maps, const Results& results, int64_t images, int64_t classes, int64_t h, int64_t w,
                    int64_t height, int64_t width, int64_t stride_image, int64_t stride_class, int64_t stride_y,
                    int64_t stride_x, void* stream) {
  if (std::max({classes, h, w, height, width}) > MOST) return cudaErrorInvalidValue;
  const Maps shape{static_cast<int>(classes), Axis::of(h, height), Axis::of(w, width), stride_image, stride_class,
                   stride_y, stride_x};
  const auto launcher = results.totals ? launch_argmax<T, true> : launch_argmax<T, false>;
  return launcher(static_cast<const T*>(maps), results, shape, images, stream);
}

// `whole` and `frames` have room for `chunk` classes, a multiple of PACK.
template <class T>
int upsample_argmax_windows(const T* logits, const Results& results, float* whole, float* frames, int64_t chunk,
                            int64_t classes, int64_t h, int64_t w, int64_t side, int64_t window, int64_t stride,
                            int64_t height, int64_t width, int64_t stride_view, int64_t stride_class, int64_t stride_y,
                            int64_t stride_x, bool sigmoid, void* stream) {
  const int64_t frame = (side - 1) * stride + window;
  if (std::max({classes, h, w, frame, height, width}) > MOST || window > WIDEST) return cudaErrorInvalidValue;
  for (int64_t before = 0; before < classes; before += chunk) {
    const int count = static_cast<int>(std::min(chunk, classes - before));
    const int side_ = static_cast<int>(side), window_ = static_cast<int>(window);
    const Frames crops{count, static_cast<int>(frame), sigmoid, {side_, window_, static_cast<int>(stride)},
                       Axis::of(h, window), Axis::of(w, window), Axis::of(window, frame),
                       stride_view, stride_class, stride_y, stride_x};
    Frames global = crops;  // one crop, which is all of its frame
    global.side = window_;
    global.crops = {1, window_, window_};
    global.global = Axis::of(window, window);
    Results so_far = results;
    so_far.before = static_cast<int>(before);
    const Maps shape{count, Axis::of(frame, height), Axis::of(frame, width), 0, frame * frame, frame, 1};
    const T* part = logits + before * stride_class;
    int error = launch_average<T>(part + side * side * stride_view, nullptr, whole, global, stream);
    if (!error) error = launch_average<T>(part, whole, frames, crops, stream);
    if (!error)
      error = launch_argmax<float4, false>(reinterpret_cast<const float4*>(frames), so_far, shape, 1, stream);
    if (error) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace fgaseg

// Labels, scores and, unless it is null, totals [images, H, W]. Strides are in elements.
#define FGASEG_LAUNCHER(T, dtype)                                                                                      \
  extern "C" int fgaseg_upsample_argmax_##dtype(                                                                       \
      const void* maps, int64_t* labels, float* scores, float* totals, int64_t images, int64_t classes, int64_t h,     \
      int64_t w, int64_t height, int64_t width, int64_t stride_image, int64_t stride_class, int64_t stride_y,          \
      int64_t stride_x, void* stream) {                                                                                \
    return fgaseg::upsample_argmax<T>(maps, {labels, scores, totals, 0}, images, classes, h, w, height, width,         \
                                      stride_image, stride_class, stride_y, stride_x, stream);                         \
  }                                                                                                                    \
  extern "C" int fgaseg_upsample_argmax_windows_##dtype(                                                               \
      const void* logits, int64_t* labels, float* scores, float* whole, float* frames, int64_t chunk, int64_t classes, \
      int64_t h, int64_t w, int64_t side, int64_t window, int64_t stride, int64_t height, int64_t width,               \
      int64_t stride_view, int64_t stride_class, int64_t stride_y, int64_t stride_x, int64_t sigmoid, void* stream) {  \
    return fgaseg::upsample_argmax_windows<T>(static_cast<const T*>(logits), {labels, scores, nullptr, 0}, whole,      \
                                              frames, chunk, classes, h, w, side, window, stride, height, width,       \
                                              stride_view, stride_class, stride_y, stride_x, sigmoid != 0, stream);    \
  }
FGASEG_LAUNCHER(float, float32)
FGASEG_LAUNCHER(__half, float16)
FGASEG_LAUNCHER(__nv_bfloat16, bfloat16)
