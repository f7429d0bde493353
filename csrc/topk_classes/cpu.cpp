// topk_classes, gather_classes and scatter_classes on the CPU. The schemas are in kernels/topk_classes/op.py.
//
// A block of adjacent pixels is processed at a time, one pixel per vector lane. For k = 1 that is a running maximum.
// Else the k-th best score of every pixel is found bit by bit, by counting the classes that are not below a guess: at
// most 32 comparisons per score, without branches, where sorted lists would take k moves for every score that enters
// them.
#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "common/arguments.h"
#include "common/cpu.h"

namespace fgaseg {
namespace {

constexpr int64_t BLOCK = 64;  // pixels

template <class T>
struct Key;  // unsigned integers in the order of the scores, 0 for NaN and -inf
template <>
struct Key<float> {
  using Type = uint32_t;
};
template <>
struct Key<double> {
  using Type = uint64_t;
};

template <class T, class K = typename Key<T>::Type>
FGASEG_INLINE K key_of(T score) {
  constexpr K SIGN = K(1) << (8 * sizeof(K) - 1);
  const T same = score + T(0);  // -0 becomes 0
  K bits;
  std::memcpy(&bits, &same, sizeof bits);
  const K key = bits ^ (bits & SIGN ? ~K(0) : SIGN);
  return score > -std::numeric_limits<T>::infinity() ? key : K(0);
}

// keys [classes][BLOCK] of n adjacent pixels, 0 in the other lanes; scores [classes][stride].
template <class T, class K>
FGASEG_INLINE void fill_keys(const T* scores, int64_t classes, int64_t n, int64_t stride, K* keys) {
  for (int64_t t = 0; t < classes; ++t, keys += BLOCK) {
    _Pragma("omp simd") for (int64_t j = 0; j < n; ++j) keys[j] = key_of(scores[t * stride + j]);
    std::fill(keys + n, keys + BLOCK, K(0));
  }
}

// count[j] = the number of classes of pixel j whose key is at least limit[j]
template <class K>
FGASEG_INLINE void count_keys(const K* keys, int64_t classes, const K* limit, K* count) {
  std::fill(count, count + BLOCK, K(0));
  int64_t t = 0;
  for (; t + 4 <= classes; t += 4, keys += 4 * BLOCK)  // four at once, because the counts are in memory
    _Pragma("omp simd") for (int64_t j = 0; j < BLOCK; ++j) {
      count[j] += K(keys[j] >= limit[j]) + K(keys[BLOCK + j] >= limit[j]) + K(keys[2 * BLOCK + j] >= limit[j]) +
                  K(keys[3 * BLOCK + j] >= limit[j]);
    }
  for (; t < classes; ++t, keys += BLOCK)
    _Pragma("omp simd") for (int64_t j = 0; j < BLOCK; ++j) count[j] += keys[j] >= limit[j];
}

// limit[j] = the k-th largest key of pixel j, or a smaller value with no key in between; 0 if it has fewer than k keys.
// above[j] = the number of keys that are at least that.
template <class K>
FGASEG_INLINE void find_limits(const K* keys, int64_t classes, K k, K* limit, K* above) {
  K guess[BLOCK], count[BLOCK];
  std::fill(limit, limit + BLOCK, K(0));
  std::fill(above, above + BLOCK, K(classes));
  bool all_found = false;
  for (int bit = 8 * sizeof(K); bit-- > 0 && !all_found;) {
    for (int64_t j = 0; j < BLOCK; ++j) guess[j] = limit[j] | K(1) << bit;
    count_keys(keys, classes, guess, count);
    K wrong = 0;
    for (int64_t j = 0; j < BLOCK; ++j) {
      limit[j] = count[j] >= k ? guess[j] : limit[j];
      above[j] = count[j] >= k ? count[j] : above[j];
      wrong |= above[j] ^ k;
    }
    all_found = wrong == 0;
  }
}

// Keeps the classes of each pixel above its limit and, of those on the limit, the first ones, up to k in total.
template <class K>
FGASEG_INLINE void keep(const K* keys, int64_t classes, K k, const K* limit, const K* above, uint8_t* kept) {
  K on_limit[BLOCK] = {}, left[BLOCK];
  for (int64_t t = 0; t < classes; ++t)
    for (int64_t j = 0; j < BLOCK; ++j) on_limit[j] += keys[t * BLOCK + j] == limit[j];
  for (int64_t j = 0; j < BLOCK; ++j) left[j] = k + on_limit[j] - above[j];  // wraps around correctly if above > k
  for (int64_t t = 0; t < classes; ++t) {
    K any = 0;
    for (int64_t j = 0; j < BLOCK; ++j) {
      const K key = keys[t * BLOCK + j], tie = key == limit[j] && left[j] > 0;
      any |= (key > limit[j] || tie) && key > 0;
      left[j] -= tie;
    }
    kept[t] |= any != 0;
  }
}

// For k = 1: keeps the first of the largest.
template <class T>
FGASEG_INLINE void keep_best(const T* scores, int64_t classes, int64_t n, int64_t stride, uint8_t* kept) {
  T top[BLOCK];
  int32_t best[BLOCK];
  std::fill(top, top + BLOCK, -std::numeric_limits<T>::infinity());
  std::fill(best, best + BLOCK, -1);
  for (int64_t t = 0; t < classes; ++t)
    for (int64_t j = 0; j < n; ++j) {
      const bool better = scores[t * stride + j] > top[j];  // false for NaN and -inf
      best[j] = better ? int32_t(t) : best[j];
      top[j] = better ? scores[t * stride + j] : top[j];
    }
  for (int64_t j = 0; j < n; ++j)
    if (best[j] >= 0) kept[best[j]] = 1;
}

// Marks the classes that are among the k best of any of n <= BLOCK adjacent pixels; scores [classes][stride]. `keys`
// has classes * BLOCK elements.
template <class T, class K>
FGASEG_INLINE void mark_best(const T* scores, int64_t classes, int64_t k, int64_t n, int64_t stride, K* keys,
                             uint8_t* kept) {
  if (k == 1) return keep_best(scores, classes, n, stride, kept);
  fill_keys(scores, classes, n, stride, keys);
  K limit[BLOCK], above[BLOCK];
  find_limits(keys, classes, K(k), limit, above);
  keep(keys, classes, K(k), limit, above, kept);
}

// target_clones needs functions that are not templates.
FGASEG_CLONES void mark(const float* x, int64_t t, int64_t k, int64_t n, int64_t stride, uint32_t* keys, uint8_t* y) {
  mark_best(x, t, k, n, stride, keys, y);
}
FGASEG_CLONES void mark(const double* x, int64_t t, int64_t k, int64_t n, int64_t stride, uint64_t* keys, uint8_t* y) {
  mark_best(x, t, k, n, stride, keys, y);
}

// kept[b][t] for scores [batch][classes][pixels].
template <class T>
std::vector<uint8_t> kept_classes(const T* scores, int64_t batch, int64_t classes, int64_t pixels, int64_t k) {
  std::vector<uint8_t> kept(batch * classes);
  if (classes == 0) return kept;
  const int64_t blocks = (pixels + BLOCK - 1) / BLOCK, grain = 1 + 16384 / (BLOCK * classes);
  std::mutex mutex;
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    std::vector<typename Key<T>::Type> keys(classes * BLOCK);
    std::vector<uint8_t> marked(batch * classes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * BLOCK;
      mark(scores + b * classes * pixels + first, classes, std::min(k, classes), std::min(BLOCK, pixels - first),
           pixels, keys.data(), &marked[b * classes]);
    }
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < kept.size(); ++i) kept[i] |= marked[i];
  });
  return kept;
}

void unite(std::vector<uint8_t>& kept, int64_t batch, int64_t classes) {
  for (int64_t t = 0; t < classes; ++t) {
    uint8_t any = 0;
    for (int64_t b = 0; b < batch; ++b) any |= kept[b * classes + t];
    for (int64_t b = 0; b < batch; ++b) kept[b * classes + t] = any;
  }
}

std::tuple<Tensor, Tensor> topk_classes(const Tensor& scores, int64_t k, std::string union_) {
  check_topk_classes(scores, k, union_);
  const Tensor x = prepared(scores);
  const int64_t batch = x.size(0), classes = x.size(1), pixels = x.size(2) * x.size(3);
  std::vector<uint8_t> kept;
  for_compute_type(x, [&](auto type) { kept = kept_classes(data<decltype(type)>(x), batch, classes, pixels, k); });
  if (union_ == "batch") unite(kept, batch, classes);
  const int64_t count = std::count(kept.begin(), kept.end(), 1);
  Tensor rows = torch::stable::new_empty(x, {count}, ScalarType::Long);
  Tensor counts = torch::stable::new_zeros(x, {batch}, ScalarType::Long);
  int64_t *row = mutable_data<int64_t>(rows), *per_image = mutable_data<int64_t>(counts);
  for (int64_t i = 0; i < batch * classes; ++i)
    if (kept[i]) {
      *row++ = i;
      ++per_image[i / classes];
    }
  return {rows, counts};
}

// Calls copy(packed row, row of [B*T]) for every selected row, on all threads.
template <class F>
void for_each_row(const Tensor& rows, int64_t total, int64_t bytes, const F& copy) {
  const int64_t* row = data<int64_t>(rows);
  for (int64_t i = 0; i < rows.numel(); ++i)  // outside the threads: in torch 2.11 their exceptions lose the message
    STD_TORCH_CHECK(row[i] >= 0 && row[i] < total, "row ", row[i], " of the selection is not in 0..", total - 1);
  const int64_t grain = 1 + 32768 / std::max<int64_t>(bytes, 1);
  torch::stable::parallel_for(0, rows.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      copy(i, row[i]);
    }
  });
}

std::vector<int64_t> trailing_sizes(const Tensor& x, int64_t from) {
  std::vector<int64_t> sizes;
  for (int64_t d = from; d < x.dim(); ++d) sizes.push_back(x.size(d));
  return sizes;
}

int64_t row_bytes(const Tensor& x, const std::vector<int64_t>& sizes) {
  int64_t bytes = x.element_size();
  for (int64_t size : sizes) bytes *= size;
  return bytes;
}

Tensor gather_classes(const Tensor& x_, const Tensor& rows_) {
  check_class_rows("gather_classes", x_, 2, rows_);
  const Tensor x = torch::stable::contiguous(x_), rows = torch::stable::contiguous(rows_);
  std::vector<int64_t> sizes = trailing_sizes(x, 2);
  const int64_t bytes = row_bytes(x, sizes);
  sizes.insert(sizes.begin(), rows.size(0));
  Tensor y = torch::stable::new_empty(x, sizes);
  const char* from = data<char>(x);
  char* to = mutable_data<char>(y);
  for_each_row(rows, x.size(0) * x.size(1), bytes, [&](int64_t packed, int64_t row) {
    std::memcpy(to + packed * bytes, from + row * bytes, bytes);
  });
  return y;
}

Tensor scatter_classes(const Tensor& y_, const Tensor& rows_, int64_t batch, int64_t classes, double fill) {
  check_class_rows("scatter_classes", y_, 1, rows_).require(batch >= 0 && classes >= 0, "batch and classes must not be negative");
  const Tensor y = torch::stable::contiguous(y_), rows = torch::stable::contiguous(rows_);
  std::vector<int64_t> sizes = trailing_sizes(y, 1);
  const int64_t bytes = row_bytes(y, sizes);
  sizes.insert(sizes.begin(), {batch, classes});
  Tensor x = torch::stable::new_empty(y, sizes);
  torch::stable::fill_(x, fill);
  const char* from = data<char>(y);
  char* to = mutable_data<char>(x);
  for_each_row(rows, batch * classes, bytes, [&](int64_t packed, int64_t row) {
    std::memcpy(to + row * bytes, from + packed * bytes, bytes);
  });
  return x;
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("topk_classes_cpp", TORCH_BOX(&fgaseg::topk_classes));
  m.impl("gather_classes_cpp", TORCH_BOX(&fgaseg::gather_classes));
  m.impl("scatter_classes_cpp", TORCH_BOX(&fgaseg::scatter_classes));
}
