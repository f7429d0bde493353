// topk_classes, gather_classes and scatter_classes on the CPU. Schemas: kernels/topk_classes/op.py.
//
// The scores are read once, class after class, in blocks of neighbouring pixels. Each pixel keeps a short sorted list;
// after the first classes few scores are above the last of it, so nearly all the work is that one comparison.
#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "common/cpu.h"

namespace fgaseg {
namespace {

constexpr int64_t BLOCK = 64;  // pixels

// Marks the classes among the k best of any of `n` neighbouring pixels; scores [classes][stride].
template <class T>
class BestClasses {
 public:
  BestClasses(int64_t classes, int64_t k) : classes_(classes), k_(std::min(k, classes)), best_(k_ * BLOCK) {}

  void mark(const T* scores, int64_t n, int64_t stride, uint8_t* kept) {
    std::fill(best_.begin(), best_.end(), Entry{LOWEST, 0});
    std::fill(last_, last_ + BLOCK, LOWEST);
    for (int64_t t = 0; t < classes_; ++t)
      for (int64_t j = 0; j < n; ++j)
        if (scores[t * stride + j] > last_[j]) insert(j, {scores[t * stride + j], t});  // false for NaN and -inf
    for (const Entry& entry : best_)
      if (entry.score > LOWEST) kept[entry.index] = 1;
  }

 private:
  static constexpr T LOWEST = -std::numeric_limits<T>::infinity();
  struct Entry {
    T score;
    int64_t index;
  };

  // Behind equal scores, so that of equals the lower class stays.
  void insert(int64_t pixel, Entry entry) {
    Entry* best = &best_[pixel * k_];
    int64_t i = k_ - 1;
    for (; i > 0 && entry.score > best[i - 1].score; --i) best[i] = best[i - 1];
    best[i] = entry;
    last_[pixel] = best[k_ - 1].score;
  }

  int64_t classes_, k_;
  std::vector<Entry> best_;  // [BLOCK][k], best first
  T last_[BLOCK];            // the score to beat
};

// kept[b][t] for scores [batch][classes][pixels].
template <class T>
std::vector<uint8_t> kept_classes(const T* scores, int64_t batch, int64_t classes, int64_t pixels, int64_t k) {
  std::vector<uint8_t> kept(batch * classes);
  if (classes == 0) return kept;
  const int64_t blocks = (pixels + BLOCK - 1) / BLOCK, grain = 1 + 16384 / (BLOCK * classes);
  std::mutex mutex;
  torch::stable::parallel_for(0, batch * blocks, grain, [&](int64_t begin, int64_t end) {
    BestClasses<T> best(classes, k);
    std::vector<uint8_t> mine(batch * classes);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * BLOCK;
      best.mark(scores + b * classes * pixels + first, std::min(BLOCK, pixels - first), pixels, &mine[b * classes]);
    }
    const std::lock_guard lock(mutex);
    for (size_t i = 0; i < kept.size(); ++i) kept[i] |= mine[i];
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

// Calls copy(row of the packed tensor, row of [B*T]) for every selected row, on all threads.
template <class F>
void for_each_row(const Tensor& rows, int64_t total, int64_t bytes, const F& copy) {
  const int64_t* row = data<int64_t>(rows);
  const int64_t grain = 1 + 32768 / std::max<int64_t>(bytes, 1);
  torch::stable::parallel_for(0, rows.size(0), grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      STD_TORCH_CHECK(row[i] >= 0 && row[i] < total, "row ", row[i], " of the selection is not in 0..", total - 1);
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

STABLE_TORCH_LIBRARY_IMPL(fgaseg, CPU, m) {
  m.impl("topk_classes_cpp", TORCH_BOX(&fgaseg::topk_classes));
  m.impl("gather_classes_cpp", TORCH_BOX(&fgaseg::gather_classes));
  m.impl("scatter_classes_cpp", TORCH_BOX(&fgaseg::scatter_classes));
}
