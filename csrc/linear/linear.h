// The op linear, for other ops.
#pragma once
#include <optional>
#include <string>

#include "common/cpu.h"

namespace fgaseg {

// activation(LayerNorm(x) weight^T + bias) + residual. x [M, K] and weight [N, K] have any strides: of transposed views
// the same function gives gradients.
Tensor linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias = {},
              const std::optional<Tensor>& norm_weight = {}, const std::optional<Tensor>& norm_bias = {},
              double eps = 0, std::string activation = "none", const std::optional<Tensor>& residual = {});

}  // namespace fgaseg
