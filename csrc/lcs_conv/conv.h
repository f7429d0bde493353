// The convolution of one image with the normalised kernels of some classes, and its gradients: shared by lcs_conv and
// lcs_conv_from_text, which process the classes in parts, so that the kernels of a whole batch are never in memory.
#pragma once
#include <algorithm>
#include <string>
#include <vector>

#include "common/cpu.h"

namespace fgaseg {

// pixels [C, H, W], kernels [classes, C, K, K], maps [classes, H, W]; all contiguous.
struct Convolution {
  int64_t channels, height, width, kernel_size;

  int64_t taps() const { return kernel_size * kernel_size; }
  int64_t pixels() const { return height * width; }
  int64_t weights() const { return channels * taps(); }  // of one class's kernel
  int64_t classes_at_a_time(int64_t classes, int64_t element_size) const;

  // maps = convolution + bias
  template <class T>
  void forward(const T* pixels, const T* kernels, const T* bias, T* maps, int64_t classes) const;

  // Returns the gradient of the kernels, contiguous, and adds that of the pixels to pixels_grad.
  template <class T>
  Tensor backward(const T* grad, const T* pixels, const T* kernels, T* pixels_grad, int64_t classes) const;
};

// Calls f(image, first class, number of classes) for every part of the work.
template <class F>
void for_each_part(int64_t batch, int64_t classes, int64_t at_a_time, const F& f) {
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t first = 0; first < classes; first += at_a_time) f(b, first, std::min(at_a_time, classes - first));
}

}  // namespace fgaseg
