// Normalisation of a class's kernels, C channels of K*K taps: shared by kernel_softmax and lcs_conv.
#pragma once
#include <string>

#include "common/cpu.h"

namespace fgaseg {

enum class Norm { taps, channels, none };

Norm norm_of(const std::string& name);

// kernels = softmax(logits) for each of `classes` blocks of channels * taps elements, in parallel.
template <class T>
void softmax_kernels(Norm norm, const T* logits, T* kernels, int64_t classes, int64_t channels, int64_t taps);

// logits_grad = kernels * (grad - sum(kernels * grad)), with the sum along the axis of the softmax.
template <class T>
void softmax_kernels_backward(Norm norm, const T* kernels, const T* grad, T* logits_grad, int64_t classes,
                              int64_t channels, int64_t taps);

}  // namespace fgaseg
