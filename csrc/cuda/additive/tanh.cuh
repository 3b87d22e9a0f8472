#pragma once

#include <cmath>
#include <type_traits>

#include "../common/element.h"
#include "../common/score_terms.h"
#include "ptx.cuh"

// tanh(x + y) of two neighbouring columns at a time, from what has been computed once per row.
//
// With A = e^2x and B = e^2y there is no exponential left in the inner loop, and two columns share
// one reciprocal, the only instruction of the special function unit (MUFU: 16 lanes a clock; FMA:
// 128, on sm_80 64):
//
//   16 bits   d = 1 + A B, tanh = 1 - 2 / d    v0 / d0 + v1 / d1 = (v0 d1 + v1 d0) / (d0 d1)
//   fp32      s = A B - 1, tanh = s / d        the same with v0 s0 and v1 s1: half the error
//
//                                MUFU   FMA   clocks of an SM for 32 columns: MUFU, FMA (sm_80)
//   score, 16 bits                1/2   3                                 1    0.75 (1.5)
//   score, fp32                   1/2   5                                 1    1.25 (2.5)
//   score by tanh.approx           1    2                                 2    0.5  (1)
//   gradient, 16 bits             1/2   5.5   + 1 where dv is summed      1    1.4  (2.8)
//   gradient, fp32                1/2   6.5   + 1                         1    1.6  (3.3)
//
// tanh.approx is out by up to 5e-4, this by an ulp or two of 1.
//
// That is for elements of ordinary size. A block looks at the largest element of each part that it
// loads and takes one of two other ways for all pairs of the part, if need be:
//
//   SMALL  tanh near 0 has to be good to an ulp or two of itself. With a = e^2x - 1, b = e^2y - 1:
//          s = a + b + a b, tanh = s / (2 + s); as many FMA as fp32 takes
//   WIDE   A B or the product of two d could overflow: e^2(x + y) for every pair, 1 1/2 MUFU.
//          Clamping x or y alone would be wrong: 60 - 59 is 1
namespace fused_attention::cuda::additive {

enum class Range { SMALL, ORDINARY, WIDE };

constexpr float SMALL = 0.25f;             // up to here, all |x| and |y|
constexpr float LARGE = 9.0f;              // up to here ORDINARY: d0 d1 <= e^72 leaves room for v
constexpr float SATURATED = 2.0f * LARGE;  // of x + y: tanh is 1, e^2(x + y) far from overflow

// What is kept of an element x for a range: a, A or itself.
template <Range RANGE>
__device__ __forceinline__ float prepared(float x) {
  return RANGE == Range::SMALL ? expm1f(2.0f * x) : RANGE == Range::ORDINARY ? expf(2.0f * x) : x;
}

// fp32 results must be as good as those of fp32 arithmetic.
template <class Element>
constexpr bool EXACT = Element::DTYPE == DType::FLOAT32;

// Whether add_score sums v tanh. If not, it sums v / d, v (tanh - 1) / -2.
template <class Element, Range RANGE>
constexpr bool SUMS_TANH = EXACT<Element> || RANGE == Range::SMALL;

// tanh = s / d. s is left out where it is not wanted.
struct Fraction {
  float s, d;
};

template <class Element, Range RANGE>
__device__ __forceinline__ Fraction fraction(float x, float y) {
  if constexpr (RANGE == Range::SMALL) {
    const float s = fmaf(x + 1.0f, y, x);
    return {s, s + 2.0f};
  } else if constexpr (RANGE == Range::ORDINARY) {
    return {EXACT<Element> ? fmaf(x, y, -1.0f) : 0.0f, fmaf(x, y, 1.0f)};
  } else {
    const float e = ptx::exp2_approx(fminf(x + y, SATURATED) * (2.0f * LOG2_E));
    return {e - 1.0f, e + 1.0f};
  }
}

// sum += v0 tanh0 + v1 tanh1, or what SUMS_TANH says.
template <class Element, Range RANGE>
__device__ __forceinline__ void add_score(float& sum, float x0, float x1, float y0, float y1,
                                          float v0, float v1) {
  const Fraction f0 = fraction<Element, RANGE>(x0, y0), f1 = fraction<Element, RANGE>(x1, y1);
  if constexpr (SUMS_TANH<Element, RANGE>) {
    v0 *= f0.s;
    v1 *= f1.s;
  }
  sum = fmaf(fmaf(v1, f0.d, v0 * f1.d), ptx::reciprocal_approx(f0.d * f1.d), sum);
}

template <class Element, Range RANGE>
__device__ __forceinline__ void tanh_pair(float x0, float x1, float y0, float y1, float& t0,
                                          float& t1) {
  const Fraction f0 = fraction<Element, RANGE>(x0, y0), f1 = fraction<Element, RANGE>(x1, y1);
  const float inverse = ptx::reciprocal_approx(f0.d * f1.d);
  const float r0 = f1.d * inverse, r1 = f0.d * inverse;
  t0 = SUMS_TANH<Element, RANGE> ? f0.s * r0 : fmaf(-2.0f, r0, 1.0f);
  t1 = SUMS_TANH<Element, RANGE> ? f1.s * r1 : fmaf(-2.0f, r1, 1.0f);
}

// Calls f(std::integral_constant<Range, ...>) for a range known at run time.
template <class Function>
__device__ __forceinline__ void with_range(Range range, const Function& f) {
  if (range == Range::ORDINARY) {
    f(std::integral_constant<Range, Range::ORDINARY>{});
  } else if (range == Range::SMALL) {
    f(std::integral_constant<Range, Range::SMALL>{});
  } else {
    f(std::integral_constant<Range, Range::WIDE>{});
  }
}

// Of the largest |element| that each thread has; the same for all threads, and a barrier.
__device__ __forceinline__ Range range_of_block(float largest) {
  if (!__syncthreads_or(largest > SMALL)) return Range::SMALL;
  return __syncthreads_or(largest > LARGE) ? Range::WIDE : Range::ORDINARY;
}

}  // namespace fused_attention::cuda::additive
