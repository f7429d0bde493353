// upsample_argmax and upsample_argmax_windows on the CPU. The schemas are in kernels/upsample_argmax/op.py.
//
// A thread takes a block of rows of the result and keeps the winner of each of its pixels while it loops over the
// classes, so that ties go to the lowest class however the blocks are distributed. A row of a class's map is first
// stretched to the result's width, once for all rows that need it; what remains per pixel is the interpolation of two
// adjacent rows, a comparison and two selections, in whole vectors. The windowed form requests its rows the same way: a
// row of the photo needs two rows of the frame, and each of those one row of every crop that covers it and two of the
// global view. Nothing larger than a row is kept of any of them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/arguments.h"
#include "common/cpu.h"
#include "common/exp.h"

namespace fgaseg {
namespace {

constexpr int64_t BLOCK_BYTES = 96 << 10;  // of winners, which are read and written for every class; measured
constexpr int64_t WINDOW_ROWS = 32;        // per block of the windowed form, which recomputes two rows of the frame

constexpr int64_t SPREAD = 2;              // the stretching factor from which runs are faster than gathers; measured

// Elements of a run that are computed together.
template <class T>
constexpr int64_t RUN = 32 / sizeof(T);

template <class T>
using Label = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;  // as wide as a score: the same lanes

// y[i] = (1 - weight[i]) * x[first[i]] + weight[i] * x[second[i]], by F.interpolate's rule for align_corners=False.
template <class T>
struct Axis {
  int64_t from, size;
  std::vector<int32_t> first, second;
  std::vector<T> weight;        // and RUN zeros
  std::vector<int32_t> begins;  // of the runs with the same `first`, and the end of the last run

  Axis(int64_t from, int64_t to) : from(from), size(to), first(to), second(to), weight(to + RUN<T>) {
    const T scale = T(from) / T(to);
    for (int64_t i = 0; i < to; ++i) {
      const T position = from == to ? T(i) : std::max(scale * (T(i) + T(0.5)) - T(0.5), T(0));
      first[i] = int32_t(std::min(int64_t(position), from - 1));
      second[i] = from == to ? first[i] : int32_t(std::min<int64_t>(first[i] + 1, from - 1));
      weight[i] = std::min(position - T(first[i]), T(1));
      if (i == 0 || first[i] != first[i - 1]) begins.push_back(int32_t(i));
    }
    begins.push_back(int32_t(to));
  }
};

// There are three ways to stretch a row. If few elements become many, two of them are interpolated over the whole run
// between them; a gather of 16 elements would take 20 cycles. A run may write beyond its end: the next run overwrites
// that, and the last writes into RUN elements that are never read.
template <class T>
FGASEG_INLINE void spread_row(const T* x, const int32_t* first, const int32_t* second, const int32_t* begins,
                              int64_t runs, const T* weight, T* y) {
  for (int64_t r = 0; r < runs; ++r) {
    const T a = x[first[begins[r]]], b = x[second[begins[r]]];
    for (int64_t i = begins[r]; i < begins[r + 1]; i += RUN<T>)
      _Pragma("omp simd") for (int64_t j = 0; j < RUN<T>; ++j) {
        y[i + j] = (T(1) - weight[i + j]) * a + weight[i + j] * b;
      }
  }
}

// If there are about as many as before: gathers.
template <class T>
FGASEG_INLINE void gather_row(const T* x, const int32_t* first, const int32_t* second, const T* weight, int64_t n,
                              T* y) {
  _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {
    y[i] = (T(1) - weight[i]) * x[first[i]] + weight[i] * x[second[i]];
  }
}

// If there are exactly as many: copies. Infinity becomes NaN, as it does in the other two if a weight is 0.
template <class T>
FGASEG_INLINE void same_row(const T* x, int64_t n, T* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] + T(0) * x[i];
}

// Adds the row (1 - weight) * a + weight * b, or its sigmoid, to y.
template <class T>
FGASEG_INLINE void add_row(const T* a, const T* b, T weight, bool sigmoid, int64_t n, T* y) {
  const T rest = T(1) - weight;
  if (!sigmoid) {
    for (int64_t i = 0; i < n; ++i) y[i] += rest * a[i] + weight * b[i];
    return;
  }
  _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {
    const T x = rest * a[i] + weight * b[i], e = exp_of(x < 0 ? x : -x);
    y[i] += (x < 0 ? e : T(1)) / (T(1) + e);
  }
}

// The mean of the global view and of the crops' average, which is their sum times the shares of the row and the
// columns.
template <class T>
FGASEG_INLINE void average_row(const T* a, const T* b, T weight, const T* share, T row_share, int64_t n, T* y) {
  const T rest = T(1) - weight;
  for (int64_t i = 0; i < n; ++i) {
    y[i] = T(0.5) * (y[i] * (share[i] * row_share) + (rest * a[i] + weight * b[i]));
  }
}

// As in torch.max: NaN wins, and of equal values the first.
template <class T>
FGASEG_INLINE bool wins(T x, T best) {
  return !(x <= best) & (best == best);
}

template <class T>
FGASEG_INLINE void best_row(const T* a, const T* b, T weight, Label<T> t, int64_t n, T* best, Label<T>* label) {
  const T rest = T(1) - weight;
  _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {
    const T x = rest * a[i] + weight * b[i], before = best[i];
    const Label<T> label_before = label[i];
    const bool better = wins(x, before);
    best[i] = better ? x : before;
    label[i] = better ? t : label_before;
  }
}

// The same, and total = sum of exp(x - best), rescaled whenever another class wins.
template <class T>
FGASEG_INLINE void total_row(const T* a, const T* b, T weight, Label<T> t, int64_t n, T* best, Label<T>* label,
                             T* total) {
  const T rest = T(1) - weight;
  _Pragma("omp simd") for (int64_t i = 0; i < n; ++i) {
    const T x = rest * a[i] + weight * b[i], before = best[i], total_before = total[i];
    const Label<T> label_before = label[i];
    const bool better = wins(x, before);
    const T below = better ? before - x : x - before;
    const T e = exp_of(below <= 0 ? below : -std::numeric_limits<T>::infinity());  // 0 for NaN: see finish
    total[i] = better ? total_before * e + T(1) : total_before + e;
    best[i] = better ? x : before;
    label[i] = better ? t : label_before;
  }
}

// target_clones needs functions that are not templates.
#define FGASEG_ROWS(T)                                                                                                 \
  FGASEG_CLONES void spread(const T* x, const int32_t* f, const int32_t* s, const int32_t* b, int64_t n, const T* w,   \
                            T* y) {                                                                                    \
    spread_row(x, f, s, b, n, w, y);                                                                                   \
  }                                                                                                                    \
  FGASEG_CLONES void gather(const T* x, const int32_t* f, const int32_t* s, const T* w, int64_t n, T* y) {             \
    gather_row(x, f, s, w, n, y);                                                                                      \
  }                                                                                                                    \
  FGASEG_CLONES void same(const T* x, int64_t n, T* y) { same_row(x, n, y); }                                          \
  FGASEG_CLONES void add(const T* a, const T* b, T w, bool sigmoid, int64_t n, T* y) {                                 \
    add_row(a, b, w, sigmoid, n, y);                                                                                   \
  }                                                                                                                    \
  FGASEG_CLONES void average(const T* a, const T* b, T w, const T* share, T row_share, int64_t n, T* y) {              \
    average_row(a, b, w, share, row_share, n, y);                                                                      \
  }                                                                                                                    \
  FGASEG_CLONES void keep(const T* a, const T* b, T w, Label<T> t, int64_t n, T* best, Label<T>* label, T* total) {    \
    total ? total_row(a, b, w, t, n, best, label, total) : best_row(a, b, w, t, n, best, label);                       \
  }
FGASEG_ROWS(float)
FGASEG_ROWS(double)

template <class T>
using Pair = std::pair<const T*, const T*>;

// The two source rows between which a row of a resized map lies, stretched to their final width. If rows are requested
// in ascending order, every source row, which from(row) returns, is fetched and stretched once.
template <class T>
class Stretched {
 public:
  Stretched(const Axis<T>& rows, const Axis<T>& columns)
      : rows_(&rows),
        columns_(&columns),
        buffers_{Aligned<T>(columns.size + RUN<T>), Aligned<T>(columns.size + RUN<T>)} {}

  void restart() { held_[0] = held_[1] = -1; }

  template <class F>
  Pair<T> around(int64_t y, const F& from) {
    const int64_t first = rows_->first[y], second = rows_->second[y];
    if (held_[0] != first) {
      std::swap(buffers_[0], buffers_[1]);
      std::swap(held_[0], held_[1]);
      hold(0, first, from);
    }
    if (second == first) return {buffers_[0].data(), buffers_[0].data()};
    hold(1, second, from);
    return {buffers_[0].data(), buffers_[1].data()};
  }

  T weight(int64_t y) const { return rows_->weight[y]; }

 private:
  template <class F>
  void hold(int slot, int64_t row, const F& from) {
    if (held_[slot] == row) return;
    held_[slot] = row;
    stretch(from(row), buffers_[slot].data());
  }

  void stretch(const T* x, T* y) {
    const Axis<T>& c = *columns_;
    const int32_t *first = c.first.data(), *second = c.second.data();
    if (c.size == c.from)
      same(x, c.size, y);
    else if (c.size >= SPREAD * c.from)
      spread(x, first, second, c.begins.data(), int64_t(c.begins.size()) - 1, c.weight.data(), y);
    else
      gather(x, first, second, c.weight.data(), c.size, y);
  }

  const Axis<T>*rows_, *columns_;
  Aligned<T> buffers_[2];
  int64_t held_[2] = {-1, -1};
};

// The winners of a block of rows.
template <class T>
class Winners {
 public:
  Winners(int64_t rows, int64_t width, bool total)
      : width_(width),
        best_(rows * width),
        total_(total ? rows * width : 0),
        label_(rows * width),
        with_total_(total) {}

  void restart(int64_t rows) {
    std::fill_n(best_.data(), rows * width_, -std::numeric_limits<T>::infinity());
    std::fill_n(label_.data(), rows * width_, Label<T>(0));
    if (with_total_) std::fill_n(total_.data(), rows * width_, T(0));
  }

  void add(int64_t row, Pair<T> around, T weight, int64_t t) {
    const int64_t offset = row * width_;
    keep(around.first, around.second, weight, Label<T>(t), width_, best_.data() + offset, label_.data() + offset,
         with_total_ ? total_.data() + offset : nullptr);
  }

  // The total is NaN where the winner is infinite or NaN, as the sum of exp(x - best) is.
  void finish(int64_t rows, int64_t offset, int64_t* labels, T* scores, T* totals) {
    std::copy_n(label_.data(), rows * width_, labels + offset);
    std::copy_n(best_.data(), rows * width_, scores + offset);
    for (int64_t i = 0; with_total_ && i < rows * width_; ++i)
      totals[offset + i] = std::isfinite(best_.data()[i]) ? total_.data()[i] : std::numeric_limits<T>::quiet_NaN();
  }

 private:
  int64_t width_;
  Aligned<T> best_, total_;
  Aligned<Label<T>> label_;
  bool with_total_;
};

// Calls f(begin, end) for blocks of `rows` of n rows, on all threads.
template <class F>
void for_blocks(int64_t n, int64_t rows, const F& f) {
  torch::stable::parallel_for(0, (n + rows - 1) / rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) f(block * rows, std::min(n, (block + 1) * rows));
  });
}

std::tuple<Tensor, Tensor, Tensor> upsample_argmax(const Tensor& maps, int64_t height, int64_t width, bool total) {
  check_upsample_argmax(maps, height, width);
  const Tensor x = prepared(maps);  // for half types a float32 copy of the maps, which are small
  const int64_t batch = x.size(0), classes = x.size(1), h = x.size(2), w = x.size(3);
  Tensor labels = torch::stable::new_empty(x, {batch, height, width}, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(x, {batch, height, width});
  Tensor totals = torch::stable::new_empty(x, {total ? batch : 0, height, width});
  for_compute_type(x, [&](auto type) {
    using T = decltype(type);
    const Axis<T> rows(h, height), columns(w, width);
    const int64_t bytes = (sizeof(T) + sizeof(Label<T>)) * width, most = std::max<int64_t>(BLOCK_BYTES / bytes, 8);
    const T* from = data<T>(x);
    for (int64_t b = 0; b < batch; ++b)
      for_blocks(height, most, [&, b](int64_t begin, int64_t end) {
        Winners<T> winners(end - begin, width, total);
        Stretched<T> map(rows, columns);
        winners.restart(end - begin);
        for (int64_t t = 0; t < classes; ++t) {
          const T* one = from + (b * classes + t) * h * w;
          map.restart();
          for (int64_t y = begin; y < end; ++y)
            winners.add(y - begin, map.around(y, [&](int64_t row) { return one + row * w; }), map.weight(y), t);
        }
        winners.finish(end - begin, (b * height + begin) * width, mutable_data<int64_t>(labels),
                       mutable_data<T>(scores), mutable_data<T>(totals));
      });
  });
  return {labels, scores, totals};
}

// How the views cover the frame: `side` x `side` crops of window x window, `stride` pixels apart, and the global view.
template <class T>
struct Layout {
  int64_t h, w, side, window, stride, frame;
  bool sigmoid;
  Axis<T> view_rows, view_columns;  // of a view's map at the window's size
  Axis<T> global;                   // of the window at the frame's size
  std::vector<T> share;             // 1 / the number of crops over each row, or column, of the frame

  Layout(int64_t h, int64_t w, int64_t side, int64_t window, int64_t stride, bool sigmoid)
      : h(h), w(w), side(side), window(window), stride(stride), frame((side - 1) * stride + window), sigmoid(sigmoid),
        view_rows(h, window), view_columns(w, window), global(window, frame), share(frame) {
    for (int64_t i = 0; i < side * window; ++i) share[i / window * stride + i % window] += 1;
    for (T& one : share) one = 1 / one;
  }
};

// One class's averaged scores on the frame, row by row.
template <class T>
class Frame {
 public:
  Frame(const Layout<T>& layout, int64_t classes)
      : layout_(&layout), classes_(classes),
        views_(layout.side * layout.side + 1, Stretched<T>(layout.view_rows, layout.view_columns)),
        global_(layout.global, layout.global), tile_(layout.window), row_(layout.frame) {}

  void restart(const T* logits, int64_t t) {
    logits_ = logits;
    class_ = t;
    for (Stretched<T>& view : views_) view.restart();
    global_.restart();
  }

  const T* row(int64_t y) {
    const Layout<T>& l = *layout_;
    std::fill_n(row_.data(), l.frame, T(0));
    for (int64_t i = 0; i < l.side; ++i)
      for (int64_t j = 0; j < l.side; ++j)
        if (y >= i * l.stride && y < i * l.stride + l.window)
          add_view(i * l.side + j, y - i * l.stride, row_.data() + j * l.stride);
    const Pair<T> two = global_.around(y, [&](int64_t tile_row) {
      std::fill_n(tile_.data(), l.window, T(0));
      add_view(l.side * l.side, tile_row, tile_.data());
      return tile_.data();
    });
    average(two.first, two.second, global_.weight(y), l.share.data(), l.share[y], l.frame, row_.data());
    return row_.data();
  }

 private:
  void add_view(int64_t view, int64_t y, T* to) {
    const Layout<T>& l = *layout_;
    const T* map = logits_ + (view * classes_ + class_) * l.h * l.w;
    const Pair<T> two = views_[view].around(y, [&](int64_t row) { return map + row * l.w; });
    add(two.first, two.second, views_[view].weight(y), l.sigmoid, l.window, to);
  }

  const Layout<T>* layout_;
  int64_t classes_, class_ = 0;
  const T* logits_ = nullptr;
  std::vector<Stretched<T>> views_;
  Stretched<T> global_;
  Aligned<T> tile_, row_;
};

std::tuple<Tensor, Tensor> upsample_argmax_windows(const Tensor& logits, int64_t side, int64_t window, int64_t stride,
                                                   int64_t height, int64_t width, bool sigmoid) {
  check_upsample_argmax_windows(logits, side, window, stride, height, width);
  const Tensor x = prepared(logits);
  const int64_t classes = x.size(1), h = x.size(2), w = x.size(3);
  Tensor labels = torch::stable::new_empty(x, {height, width}, ScalarType::Long);
  Tensor scores = torch::stable::new_empty(x, {height, width});
  for_compute_type(x, [&](auto type) {
    using T = decltype(type);
    const Layout<T> layout(h, w, side, window, stride, sigmoid);
    const Axis<T> rows(layout.frame, height), columns(layout.frame, width);
    for_blocks(height, WINDOW_ROWS, [&](int64_t begin, int64_t end) {
      Winners<T> winners(end - begin, width, false);
      Frame<T> frame(layout, classes);
      Stretched<T> photo(rows, columns);
      winners.restart(end - begin);
      for (int64_t t = 0; t < classes; ++t) {
        frame.restart(data<T>(x), t);
        photo.restart();
        for (int64_t y = begin; y < end; ++y)
          winners.add(y - begin, photo.around(y, [&](int64_t row) { return frame.row(row); }), photo.weight(y), t);
      }
      winners.finish(end - begin, begin * width, mutable_data<int64_t>(labels), mutable_data<T>(scores), nullptr);
    });
  });
  return {labels, scores};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("upsample_argmax_cpp", TORCH_BOX(&fgaseg::upsample_argmax));
  m.impl("upsample_argmax_windows_cpp", TORCH_BOX(&fgaseg::upsample_argmax_windows));
}
