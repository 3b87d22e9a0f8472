#pragma once

// One vector type per instruction set, chosen by the file that includes the kernels (isa_*.cpp),
// which names its namespace by FUSED_ATTENTION_ISA. Vec<float> and Vec<double> have:
//
//   WIDTH, load, store, broadcast, + - * /, fma(a, b, c) = a*b + c, round to nearest even,
//   max(a, b): b where either is NaN (so max(limit, x) keeps a NaN of x),
//   select_less(a, b, yes, no), all_equal(a, b), scale_by_power(a, n) = a * 2^n,
//   sum_each(x): lane i is the sum over the lanes of x[i], of WIDTH vectors,
//   sum_lanes(), max_lanes(): of one vector, halves first,
//   and for float load_/store_ bf16 and fp16 (WIDTH values, round to nearest even) and
//   load_bf16_pairs (2 * WIDTH values, those at even and at odd places);
//   transpose_block: WIDTH x WIDTH floats.
//
// These files include nothing of the standard library's templates: an inline function compiled
// with AVX-512 here could be the copy that the linker keeps for every caller.
#if defined(FUSED_ATTENTION_VEC_AVX512)
#include "vec_avx512.h"
#elif defined(FUSED_ATTENTION_VEC_AVX2)
#include "vec_avx2.h"
#else
#include "vec_portable.h"
#endif

#include <cmath>
#include <cstdint>

namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

template <class T>
constexpr T NEG_INFINITY = -__builtin_huge_val();
template <class T>
constexpr T LOG2_E = T(1.4426950408889634074);

inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max_of(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(FUSED_ATTENTION_VEC_AVX512)
// 2^x = 2^floor(x) * 2^f with f in [0, 1): 8 instructions, of which two know floor themselves and
// give 0 for -inf and NaN for NaN without a clamp. Both fits are 1 at f = 0, so that 2^0 = 1.
inline Vec<float> exp2(Vec<float> x) {
  using V = Vec<float>;
  const V f = V::fraction(x);
  // Relative error 2.1e-9: fp32 rounding is what remains.
  V p = V::broadcast(2.161291651635548e-4f);
  p = V::fma(p, f, V::broadcast(1.246784607830986e-3f));
  p = V::fma(p, f, V::broadcast(9.675451602345089e-3f));
  p = V::fma(p, f, V::broadcast(5.548528060342174e-2f));
  p = V::fma(p, f, V::broadcast(2.402293055550242e-1f));
  p = V::fma(p, f, V::broadcast(6.931470444431620e-1f));
  p = V::fma(p, f, V::broadcast(1.f));
  return V::scale_by_floor(p, x);
}

// The same for weights that are rounded to bf16 or fp16; only their sum, in the LSE, sees the
// relative error of 8.3e-8.
inline Vec<float> exp2_for_half(Vec<float> x) {
  using V = Vec<float>;
  const V f = V::fraction(x);
  V p = V::broadcast(1.867130213339448e-3f);
  p = V::fma(p, f, V::broadcast(9.017030018743722e-3f));
  p = V::fma(p, f, V::broadcast(5.579991332070769e-2f));
  p = V::fma(p, f, V::broadcast(2.401644500956921e-1f));
  p = V::fma(p, f, V::broadcast(6.931513118094658e-1f));
  p = V::fma(p, f, V::broadcast(1.f));
  return V::scale_by_floor(p, x);
}
#else
// 2^x for x <= 0 (and a little above): x = n + f with f in [-1/2, 1/2].
// Anything below the clamp, -inf included, gives exactly 0; NaN gives NaN.
inline Vec<float> exp2(Vec<float> x) {
  using V = Vec<float>;
  x = V::max(V::broadcast(-200.f), x);
  const V n = V::round(x);
  const V f = x - n;
  // Remez fit of degree 6, relative error 1.9e-9: fp32 rounding is what remains.
  V p = V::broadcast(1.534581242594868e-4f);
  p = V::fma(p, f, V::broadcast(1.339993090368807e-3f));
  p = V::fma(p, f, V::broadcast(9.618489071726799e-3f));
  p = V::fma(p, f, V::broadcast(5.550328642129898e-2f));
  p = V::fma(p, f, V::broadcast(2.402264624834061e-1f));
  p = V::fma(p, f, V::broadcast(6.931471824645996e-1f));
  p = V::fma(p, f, V::broadcast(1.f));
  return V::scale_by_power(p, n);
}
#endif

inline Vec<double> exp2(Vec<double> x) {
  using V = Vec<double>;
  x = V::max(V::broadcast(-1100.0), x);
  const V n = V::round(x);
  const V r = (x - n) * V::broadcast(0.69314718055994530942);
  // Taylor series of e^r to degree 13: the remainder is below 5e-18 for |r| <= 0.35.
  V p = V::broadcast(1.0 / 6227020800.0);
  constexpr double FACTORIALS[] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0,
                                   5040.0,      720.0,      120.0,     24.0,     6.0,
                                   2.0,         1.0,        1.0};
  for (double factorial : FACTORIALS) p = V::fma(p, r, V::broadcast(1.0 / factorial));
  return V::scale_by_power(p, n);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
