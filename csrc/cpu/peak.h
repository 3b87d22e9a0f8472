#pragma once

#include "vec.h"

// The machine's limit: multiplications in registers and nothing else, by the instruction that the
// products of gemm.h, gemm_pairs.h and amx_multiply.h use. Each returns its FLOPs.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// Sums under way: enough to hide the latency of two FMA pipes, few enough for 16 registers.
constexpr int CHAINS = 12;

// The compiler must believe that somebody looks at the sums.
template <class X>
inline void keep(const X& x) {
  asm volatile("" : : "r"(&x) : "memory");
}

template <class T>
inline double multiply_in_registers(int64_t rounds) {
  using V = Vec<T>;
  const V half = V::broadcast(T(0.5));
  V sum[CHAINS];
#pragma GCC unroll 12
  for (int i = 0; i < CHAINS; ++i) sum[i] = V::broadcast(T(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) sum[i] = V::fma(sum[i], half, half);
  }
  keep(sum);
  return 2.0 * static_cast<double>(rounds) * CHAINS * V::WIDTH;
}

#if defined(__AVX512BF16__)
inline double multiply_pairs_in_registers(int64_t rounds) {
  const __m512bh pairs = (__m512bh)_mm512_set1_epi16(0x3C00);  // 2^-7
  __m512 sum[CHAINS];
#pragma GCC unroll 12
  for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_set1_ps(static_cast<float>(i));
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], pairs, pairs);
  }
  keep(sum);
  return 2.0 * static_cast<double>(rounds) * CHAINS * 32;
}
#endif

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
