// The checks in the entry points of all backends. Whoever calls torch.ops, a traced graph or a saved program comes here
// without the Python in front: what does not pass would be read or written outside of its memory. The same rules, with
// longer messages, are in kernels/<op>/op.py.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace fgaseg {

constexpr int64_t ANY = -1, SOME = -2;              // expected sizes: any, and at least 1
constexpr int64_t LONGEST_SIDE = (1 << 15) - 1;     // of a kernel, a window or a frame
constexpr int64_t LONGEST_AXIS = std::numeric_limits<int32_t>::max();  // of what is upsampled

// The product of two sizes.
inline int64_t times(int64_t a, int64_t b) {
  int64_t product;
  STD_TORCH_CHECK(!__builtin_mul_overflow(a, b, &product), a, " times ", b, " does not fit 64 bits");
  return product;
}

// The arguments of a call. The first tensor decides the dtype and device of the others.
class __attribute__((visibility("hidden"))) Arguments {
 public:
  using Tensor = torch::stable::Tensor;
  using ScalarType = torch::headeronly::ScalarType;
  using Sizes = std::initializer_list<int64_t>;

  Arguments(const char* op, const char* name, const Tensor& first, Sizes sizes)
      : Arguments(op, first) {
    shape(name, first, sizes);
  }
  // The first tensor may have any shape.
  Arguments(const char* op, const Tensor& first) : op_(op), first_(first), type_(first.scalar_type()) {
    require(is_floating(type_), "takes float32, float64, float16 and bfloat16");
    in_memory("the first tensor", first);
  }

  void require(bool holds, const char* rule) const { STD_TORCH_CHECK(holds, op_, ": ", rule); }

  // x has these sizes, and the dtype of the first tensor or another one.
  void tensor(const char* name, const Tensor& x, Sizes sizes) const { tensor(name, x, sizes, type_); }
  void tensor(const char* name, const Tensor& x, Sizes sizes, ScalarType type) const {
    STD_TORCH_CHECK(x.scalar_type() == type, op_, ": ", name, " has the wrong dtype");
    STD_TORCH_CHECK(x.device() == first_.device(), op_, ": ", name, " is on another device than the first tensor");
    shape(name, x, sizes);
  }
  void tensor(const char* name, const std::optional<Tensor>& x, Sizes sizes) const {
    if (x) tensor(name, *x, sizes);
  }

  // A vector of any floating dtype, which is converted to float32.
  void vector(const char* name, const std::optional<Tensor>& x, int64_t length) const {
    if (!x) return;
    STD_TORCH_CHECK(is_floating(x->scalar_type()), op_, ": ", name, " must be floating-point numbers");
    tensor(name, *x, {length}, x->scalar_type());
  }
  void both_or_none(const std::optional<Tensor>& norm_weight, const std::optional<Tensor>& norm_bias) const {
    require(norm_weight.has_value() == norm_bias.has_value(), "a norm needs norm_weight and norm_bias");
  }

  void not_double() const { require(type_ != ScalarType::Double, "takes float32, float16 and bfloat16"); }
  void single_or_bfloat16() const {
    require(type_ == ScalarType::Float || type_ == ScalarType::BFloat16, "takes float32 and bfloat16");
  }
  void kernel_size(int64_t k) const {
    require(k >= 1 && k % 2 == 1 && k <= LONGEST_SIDE, "kernel_size must be odd and at most 32767");
  }
  void norm(const std::string& name) const {
    require(name == "taps" || name == "channels" || name == "none", "norm must be taps, channels or none");
  }
  void output(int64_t height, int64_t width) const {
    require(height >= 1 && width >= 1, "height and width must be at least 1");
    require(height <= LONGEST_AXIS && width <= LONGEST_AXIS, "height and width must be at most 2147483647");
  }
  // The first tensor's rows belong to images, equally many to each.
  void rows_of_images(int64_t rows, int64_t images) const {
    require(images ? rows % images == 0 : rows == 0, "every image must have equally many rows");
  }

 private:
  static bool is_floating(ScalarType type) {
    return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
           type == ScalarType::BFloat16;
  }
  void shape(const char* name, const Tensor& x, Sizes expected) const {
    const auto sizes = x.sizes();
    bool fits = sizes.size() == expected.size();
    for (size_t d = 0; fits && d < sizes.size(); ++d) {
      const int64_t size = expected.begin()[d];
      fits = size == ANY || (size == SOME ? sizes[d] > 0 : sizes[d] == size);
    }
    if (fits) return in_memory(name, x);
    std::ostringstream message;
    message << name << " has shape [";
    for (size_t d = 0; d < sizes.size(); ++d) message << (d ? ", " : "") << sizes[d];
    message << "]; expected [";
    for (size_t d = 0; d < expected.size(); ++d) {
      message << (d ? ", " : "");
      expected.begin()[d] < 0 ? message << '*' : message << expected.begin()[d];
    }
    STD_TORCH_CHECK(false, op_, ": ", message.str(), "]", holds_some(expected) ? ", not empty" : "");
  }
  // Memory may have been given back under a tensor, as sharded training does.
  void in_memory(const char* name, const Tensor& x) const {
    STD_TORCH_CHECK(x.const_data_ptr() || x.numel() == 0, op_, ": ", name, " has no memory: its storage was freed");
  }
  static bool holds_some(Sizes expected) {
    for (int64_t size : expected)
      if (size == SOME) return true;
    return false;
  }

  const char* op_;
  const Tensor& first_;
  ScalarType type_;
};

inline void check_kernel_softmax(const torch::stable::Tensor& logits, int64_t kernel_size, const std::string& norm) {
  const Arguments call("kernel_softmax", "kernel_logits", logits, {ANY, ANY, ANY});
  call.kernel_size(kernel_size);
  call.norm(norm);
  call.require(logits.size(2) % (kernel_size * kernel_size) == 0, "kernel_logits must be [B, T, C*K*K]");
}

inline void check_kernel_softmax_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& kernels,
                                          const std::string& norm) {
  const Arguments call("kernel_softmax_backward", "kernels", kernels, {ANY, ANY, ANY, SOME, SOME});
  call.norm(norm);
  call.tensor("grad", grad, {kernels.size(0), kernels.size(1), kernels.size(2), kernels.size(3), kernels.size(4)});
}

inline Arguments check_lcs_conv(const char* op, const torch::stable::Tensor& pixels,
                                const torch::stable::Tensor& logits, int64_t kernel_size, const std::string& norm) {
  const Arguments call(op, "pixels", pixels, {ANY, ANY, SOME, SOME});
  call.kernel_size(kernel_size);
  call.norm(norm);
  call.tensor("kernel_logits", logits, {pixels.size(0), ANY, times(pixels.size(1), kernel_size * kernel_size)});
  return call;
}

inline void check_cosine_cost_volume(const torch::stable::Tensor& pixels, const torch::stable::Tensor& texts,
                                     const torch::stable::Tensor* grad = nullptr) {
  const Arguments call("cosine_cost_volume", "pixels", pixels, {ANY, ANY, ANY, ANY});
  call.tensor("texts", texts, {pixels.size(0), ANY, ANY, pixels.size(1)});
  if (grad)
    call.tensor("grad", *grad, {pixels.size(0), texts.size(2), texts.size(1), pixels.size(2), pixels.size(3)});
}

inline Arguments check_group_norm_relu(const char* op, const torch::stable::Tensor& x,
                                       const torch::stable::Tensor& weight, const torch::stable::Tensor& bias,
                                       int64_t groups) {
  const Arguments call(op, "x", x, {ANY, SOME, SOME, SOME});
  call.tensor("weight", weight, {x.size(3)});
  call.tensor("bias", bias, {x.size(3)});
  call.require(groups >= 1 && x.size(3) % groups == 0, "groups must divide the channels");
  return call;
}

inline void check_topk_classes(const torch::stable::Tensor& scores, int64_t k, const std::string& united) {
  const Arguments call("topk_classes", "scores", scores, {ANY, ANY, ANY, ANY});
  call.require(k >= 1, "k must be at least 1");
  call.require(united == "image" || united == "batch", "union must be image or batch");
}

// Of a tensor of any number of dimensions, of which the rows are the first `leading`.
inline Arguments check_class_rows(const char* op, const torch::stable::Tensor& x, int64_t leading,
                                  const torch::stable::Tensor& rows) {
  STD_TORCH_CHECK(x.dim() >= leading, op, ": the tensor has ", x.dim(), " dimensions, fewer than ", leading);
  const Arguments call(op, x);
  call.tensor("rows", rows, {leading == 1 ? x.size(0) : ANY}, Arguments::ScalarType::Long);
  return call;
}

inline void check_upsample_argmax(const torch::stable::Tensor& maps, int64_t height, int64_t width) {
  const Arguments call("upsample_argmax", "maps", maps, {ANY, SOME, SOME, SOME});
  call.output(height, width);
}

inline void check_upsample_argmax_windows(const torch::stable::Tensor& logits, int64_t side, int64_t window,
                                          int64_t stride, int64_t height, int64_t width) {
  const Arguments call("upsample_argmax_windows", "logits", logits, {SOME, SOME, SOME, SOME});
  call.require(side >= 1 && side <= LONGEST_SIDE && side * side + 1 == logits.size(0), "logits must be n*n + 1 views");
  call.require(1 <= stride && stride <= window && window <= LONGEST_SIDE && (side - 1) * stride + window <= LONGEST_SIDE,
               "1 <= stride <= window must hold, and a frame of at most 32767 pixels");
  call.output(height, width);
}

inline void check_window_attention(const torch::stable::Tensor& q, const torch::stable::Tensor& k,
                                   const torch::stable::Tensor& v, const torch::stable::Tensor& q_guidance,
                                   const torch::stable::Tensor& k_guidance, int64_t heads, int64_t window,
                                   int64_t shift, const torch::stable::Tensor* grad = nullptr) {
  const Arguments call("window_attention", "q", q, {ANY, SOME, SOME, SOME});
  const int64_t rows = q.size(0), height = q.size(1), width = q.size(2), channels = q.size(3);
  call.tensor("k", k, {rows, height, width, channels});
  call.tensor("v", v, {rows, height, width, channels});
  call.tensor("q_guidance", q_guidance, {ANY, height, width, channels});
  call.tensor("k_guidance", k_guidance, {q_guidance.size(0), height, width, channels});
  if (grad) call.tensor("grad", *grad, {rows, height, width, channels});
  call.rows_of_images(rows, q_guidance.size(0));
  call.require(heads >= 1 && channels % heads == 0, "heads must divide the channels");
  call.require(0 <= shift && shift < window && window <= LONGEST_SIDE, "0 <= shift < window <= 32767 must hold");
}

}  // namespace fgaseg
