#pragma once

// What the bindings of the CPU library share: torch's threads, and where operators are registered.
#include <torch/csrc/stable/ops.h>

#include "binding.h"
#include "fused_attention/launch.h"

// Tests register a second build beside the installed one.
#if !defined(FUSED_ATTENTION_OPERATORS)
#define FUSED_ATTENTION_OPERATORS fused_attention
#endif

namespace fused_attention::binding {

inline void run_on_torch_threads(void*, int workers, void (*body)(void*, int), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) body(context, static_cast<int>(worker));
  });
}

inline cpu::ThreadPool torch_threads() {
  return {static_cast<int>(torch::stable::get_num_threads()), run_on_torch_threads, nullptr};
}

}  // namespace fused_attention::binding
