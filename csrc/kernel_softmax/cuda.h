// kernel_softmax on the GPU, for other ops that need its result.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>

namespace fgaseg {

torch::stable::Tensor kernel_softmax(const torch::stable::Tensor& kernel_logits, int64_t kernel_size, std::string norm);
torch::stable::Tensor kernel_softmax_backward(const torch::stable::Tensor& grad, const torch::stable::Tensor& kernels,
                                              std::string norm);

}  // namespace fgaseg
