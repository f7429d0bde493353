// lcs_conv_from_text on the CPU. The schema is in kernels/lcs_conv_from_text/op.py.
//
// The projection and the convolution are of about the same size and both bound by arithmetic. What is saved is memory:
// the logits of a part of the classes are computed, normalised in place, convolved and discarded; backward recomputes
// them. A part has enough classes for both products to be efficient.
#include <tuple>
#include <vector>

#include "common/arguments.h"
#include "kernel_softmax/softmax.h"
#include "lcs_conv/conv.h"

namespace fgaseg {
namespace {

using torch::stable::transpose;

// The inputs in their compute type T, and the kernels of the classes, part after part.
template <class T>
class Parts {
 public:
  Parts(const Tensor& texts, const Tensor& weight, const Tensor& bias, const Tensor& pixels, int64_t kernel_size,
        const std::string& norm)
      : texts_(prepared(texts)),
        weight_(prepared(weight)),
        bias_(prepared(bias)),
        pixels_(prepared(pixels)),
        norm_(norm_of(norm)),
        conv{pixels.size(1), pixels.size(2), pixels.size(3), kernel_size},
        batch(texts.size(0)),
        classes(texts.size(1)),
        dims(texts.size(2)),
        part_(conv.classes_at_a_time(classes, sizeof(T))),
        scratch_(torch::stable::new_empty(pixels_, {part_ * conv.weights()})) {}

  // Calls f(image, row of [B*T] of the first class, number of classes, their kernels) for every part.
  template <class F>
  void for_each(const F& f) {
    for_each_part(batch, classes, part_, [&](int64_t b, int64_t first, int64_t n) {
      const int64_t row = b * classes + first;
      T* kernels = mutable_data<T>(scratch_);
      for (int64_t i = 0; i < n; ++i) std::copy(bias(), bias() + conv.weights(), kernels + i * conv.weights());
      add_product(rows(row, n), transpose(kernel_weight(), 0, 1), 1, wrapped(kernels, {n, conv.weights()}));
      softmax_kernels(norm_, kernels, kernels, n, conv.channels, conv.taps());
      f(b, row, n, kernels);
    });
  }

  Tensor rows(int64_t first, int64_t n) const { return wrapped(data<T>(texts_) + first * dims, {n, dims}); }
  Tensor kernel_weight() const { return wrapped(data<T>(weight_), {conv.weights(), dims}); }
  Tensor shift_weight() const { return wrapped(data<T>(weight_) + conv.weights() * dims, {1, dims}); }
  const T* bias() const { return data<T>(bias_); }
  const T* image(int64_t b) const { return data<T>(pixels_) + b * conv.channels * conv.pixels(); }
  Norm norm() const { return norm_; }

  // The bias of every class, [B*T].
  std::vector<T> shifts() const {
    std::vector<T> y(batch * classes, data<T>(bias_)[conv.weights()]);
    add_product(rows(0, batch * classes), transpose(shift_weight(), 0, 1), 1, wrapped(y.data(), {batch * classes, 1}));
    return y;
  }

 private:
  Tensor texts_, weight_, bias_, pixels_;
  Norm norm_;

 public:
  const Convolution conv;
  const int64_t batch, classes, dims;

 private:
  int64_t part_;
  Tensor scratch_;
};

Arguments check(const char* op, const Tensor& texts, const Tensor& weight, const Tensor& bias, const Tensor& pixels,
                int64_t kernel_size, const std::string& norm) {
  const Arguments call(op, "pixels", pixels, {ANY, ANY, SOME, SOME});
  call.kernel_size(kernel_size);
  call.norm(norm);
  const int64_t outputs = times(pixels.size(1), kernel_size * kernel_size) + 1;
  call.tensor("texts", texts, {pixels.size(0), ANY, ANY});
  call.tensor("weight", weight, {outputs, texts.size(2)});
  call.tensor("bias", bias, {outputs});
  return call;
}

Tensor lcs_conv_from_text(const Tensor& texts, const Tensor& weight, const Tensor& bias, const Tensor& pixels,
                          int64_t kernel_size, std::string norm) {
  check("lcs_conv_from_text", texts, weight, bias, pixels, kernel_size, norm);
  Tensor y = torch::stable::new_empty(pixels, {texts.size(0), texts.size(1), pixels.size(2), pixels.size(3)},
                                      compute_type(pixels));
  for_compute_type(pixels, [&](auto type) {
    using T = decltype(type);
    Parts<T> parts(texts, weight, bias, pixels, kernel_size, norm);
    const std::vector<T> shifts = parts.shifts();
    parts.for_each([&](int64_t b, int64_t row, int64_t n, const T* kernels) {
      T* maps = mutable_data<T>(y) + row * parts.conv.pixels();
      parts.conv.forward(parts.image(b), kernels, shifts.data() + row, maps, n);
    });
  });
  return finished(y, pixels);
}

// The gradients in their compute type.
struct Gradients {
  Tensor texts, weight, bias, pixels;
};

// sums[i] += the sum of column i of x [rows][n]
template <class T>
void add_columns(const T* x, int64_t rows, int64_t n, T* sums) {
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t i = 0; i < n; ++i) sums[i] += x[row * n + i];
}

// Adds the contribution of the class biases, which are the layer's last output and have the gradient grad [B*T].
template <class T>
void add_shift_gradients(const Parts<T>& parts, const Tensor& grad, Gradients& to) {
  const int64_t rows = parts.batch * parts.classes, last = parts.conv.weights();
  const Tensor g = torch::stable::view(grad, {rows, 1});
  add_product(g, parts.shift_weight(), 1, wrapped(data<T>(to.texts), {rows, parts.dims}));
  add_product(transpose(g, 0, 1), parts.rows(0, rows), 0,
              wrapped(data<T>(to.weight) + last * parts.dims, {1, parts.dims}));
  add_columns(data<T>(g), rows, 1, mutable_data<T>(to.bias) + last);
}

template <class T>
void add_kernel_gradients(Parts<T>& parts, const T* grad, Gradients& to) {
  const Convolution& conv = parts.conv;
  const Tensor weight_grad = wrapped(data<T>(to.weight), {conv.weights(), parts.dims});
  parts.for_each([&](int64_t b, int64_t row, int64_t n, const T* kernels) {
    T* pixels_grad = mutable_data<T>(to.pixels) + b * conv.channels * conv.pixels();
    Tensor dk = conv.backward(grad + row * conv.pixels(), parts.image(b), kernels, pixels_grad, n);
    T* g = mutable_data<T>(dk);
    softmax_kernels_backward(parts.norm(), kernels, g, g, n, conv.channels, conv.taps());
    const Tensor logits_grad = wrapped(g, {n, conv.weights()});
    add_product(logits_grad, parts.kernel_weight(), 1, wrapped(data<T>(to.texts) + row * parts.dims, {n, parts.dims}));
    add_product(transpose(logits_grad, 0, 1), parts.rows(row, n), 1, weight_grad);
    add_columns(g, n, conv.weights(), mutable_data<T>(to.bias));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> lcs_conv_from_text_backward(const Tensor& grad, const Tensor& texts,
                                                                       const Tensor& weight, const Tensor& bias,
                                                                       const Tensor& pixels, int64_t kernel_size,
                                                                       std::string norm) {
  const Arguments call = check("lcs_conv_from_text_backward", texts, weight, bias, pixels, kernel_size, norm);
  call.tensor("grad", grad, {texts.size(0), texts.size(1), pixels.size(2), pixels.size(3)});
  const auto zeros = [&](const Tensor& x) { return torch::stable::new_zeros(x, x.sizes(), compute_type(x)); };
  Gradients to{zeros(texts), zeros(weight), zeros(bias), zeros(pixels)};
  const Tensor g = prepared(grad);
  for_compute_type(g, [&](auto type) {
    using T = decltype(type);
    Parts<T> parts(texts, weight, bias, pixels, kernel_size, norm);
    add_kernel_gradients(parts, data<T>(g), to);
    add_shift_gradients(parts, torch::stable::sum(g, std::vector<int64_t>{2, 3}), to);
  });
  return {finished(to.texts, texts), finished(to.weight, weight), finished(to.bias, bias),
          finished(to.pixels, pixels)};
}

}  // namespace
}  // namespace fgaseg

FGASEG_LIBRARY(CPU, m) {
  m.impl("lcs_conv_from_text_cpp", TORCH_BOX(&fgaseg::lcs_conv_from_text));
  m.impl("lcs_conv_from_text_backward_cpp", TORCH_BOX(&fgaseg::lcs_conv_from_text_backward));
}
