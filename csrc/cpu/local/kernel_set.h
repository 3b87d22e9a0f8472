#pragma once

#include "cpu/local/backward.h"
#include "cpu/local/forward.h"

namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
constexpr LocalKernelSet local_kernel_set() {
  return {
      [](const LocalParams& p) {
        const int64_t elements =
            max_of(LocalForward<T>::elements(p),
                   max_of(LocalQueryGradients<T>::elements(p), LocalKeyGradients<T>::elements(p)));
        return elements * static_cast<int64_t>(sizeof(T));
      },
      local_forward<T>,
      local_backward_queries<T>,
      local_backward_keys<T>,
  };
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
