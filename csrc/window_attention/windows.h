// The windows of a grid, and the maps that window_attention reads and writes at their pixels.
#pragma once
#include <cstdint>
#include <vector>

#include "common/cpu.h"

namespace fgaseg {

// A pixel of a window, and the region to which it belongs, of the up to four that the shift brings together.
struct Token {
  int64_t y, x, region;
};

// The pixels of every window of the grid, which is padded below and on the right and then rolled by -shift.
inline std::vector<std::vector<Token>> windows_of(int64_t height, int64_t width, int64_t window, int64_t shift) {
  const int64_t down = (height + window - 1) / window, across = (width + window - 1) / window;
  std::vector<std::vector<Token>> windows(down * across);
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t row = y < shift ? y - shift + down * window : y - shift;  // after rolling
      const int64_t column = x < shift ? x - shift + across * window : x - shift;
      windows[row / window * across + column / window].push_back({y, x, 2 * (y < shift) + (x < shift)});
    }
  return windows;
}

// Maps [N, H, W, D] with contiguous channels.
template <class T>
struct Maps {
  T* data;
  int64_t stride_row, stride_y, stride_x;

  Maps(T* data_, const Tensor& like)
      : data(data_), stride_row(like.stride(0)), stride_y(like.stride(1)), stride_x(like.stride(2)) {}
  FGASEG_INLINE T* pixel(int64_t row, const Token& t) const {
    return data + row * stride_row + t.y * stride_y + t.x * stride_x;
  }
};

template <class T>
struct Inputs {
  Maps<const T> q, k, v, q_guidance, k_guidance;
  int64_t classes, heads;
  double scale;
};

}  // namespace fgaseg
