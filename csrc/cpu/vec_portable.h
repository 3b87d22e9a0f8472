#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// 16-byte vectors by the compiler's vector extension: SSE2, NEON or plain scalars, whatever the
// baseline of the target has. The interface is described in vec.h.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

inline float bf16_to_float(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Round to nearest even; a NaN stays a quiet NaN (the addition could carry it into infinity).
inline uint16_t float_to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float fp16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 0x1F, mantissa = bits & 0x3FF;
  uint32_t wide;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&wide, &magnitude, sizeof(wide));
  } else {
    wide = (exponent == 31 ? 0xFFu : exponent + 112) << 23 | mantissa << 13;
  }
  wide |= sign;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// Round to nearest even by the floating-point unit: adding 2^k aligns the kept bits.
inline uint16_t float_to_fp16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;   // NaN
  if (bits >= 0x477FF000) return sign | 0x7C00;  // 65520 and above round to infinity
  if (bits < 0x38800000) {                       // below 2^-14: subnormal or zero
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;  // ulp(0.5) = 2^-24 = the subnormal step
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  bits += 0xFFF + (bits >> 13 & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | bits >> 13);
}

template <class T>
struct Vec {
  static constexpr int WIDTH = 16 / sizeof(T);
  typedef T Native __attribute__((vector_size(16)));
  Native v;

  static Vec load(const T* p) {
    Vec out;
    std::memcpy(&out.v, p, sizeof(out.v));
    return out;
  }
  static Vec broadcast(T x) { return {x - Native{}}; }
  void store(T* p) const { std::memcpy(p, &v, sizeof(v)); }

  static Vec load_bf16(const uint16_t* p) {
    return map([p](int i) { return bf16_to_float(p[i]); });
  }
  static Vec load_fp16(const uint16_t* p) {
    return map([p](int i) { return fp16_to_float(p[i]); });
  }
  static void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
    even = map([p](int i) { return bf16_to_float(p[2 * i]); });
    odd = map([p](int i) { return bf16_to_float(p[2 * i + 1]); });
  }
  void store_bf16(uint16_t* p) const {
    for (int i = 0; i < WIDTH; ++i) p[i] = float_to_bf16(v[i]);
  }
  void store_fp16(uint16_t* p) const {
    for (int i = 0; i < WIDTH; ++i) p[i] = float_to_fp16(v[i]);
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  static Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec select_less(Vec a, Vec b, Vec yes, Vec no) { return {a.v < b.v ? yes.v : no.v}; }
  static bool all_equal(Vec a, Vec b) {
    bool equal = true;
    for (int i = 0; i < WIDTH; ++i) equal &= a.v[i] == b.v[i];
    return equal;
  }
  static Vec round(Vec a) {
    return map([a](int i) { return std::nearbyint(a.v[i]); });
  }
  static Vec scale_by_power(Vec a, Vec n) {
    return map([a, n](int i) {
      return n.v[i] != n.v[i] ? n.v[i] : std::ldexp(a.v[i], static_cast<int>(n.v[i]));
    });
  }

  T sum_lanes() const {
    return across([](T a, T b) { return a + b; });
  }
  T max_lanes() const {
    return across([](T a, T b) { return a > b ? a : b; });
  }
  static Vec sum_each(const Vec* x) {
    return map([x](int i) {
      T sum = x[i].v[0];
      for (int lane = 1; lane < WIDTH; ++lane) sum += x[i].v[lane];
      return sum;
    });
  }

 private:
  template <class F>
  T across(F f) const {
    Native x = v;
    for (int half = WIDTH / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) x[i] = f(x[i], x[i + half]);
    }
    return x[0];
  }
  template <class F>
  static Vec map(F f) {
    Vec out;
    for (int i = 0; i < WIDTH; ++i) out.v[i] = f(i);
    return out;
  }
};

inline void transpose_block(const float* src, int64_t ld_src, float* dst, int64_t ld_dst) {
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) dst[j * ld_dst + i] = src[i * ld_src + j];
  }
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
