#pragma once

#include <immintrin.h>

#include <cstdint>

// What csrc/cpu/amx.h calls, in plain C++: eight tiles of 16 rows of 64 bytes per thread, and the
// products in the order and with the rounding that Intel's manual gives (TDPBF16PS, TDPFP16PS).
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

struct TileRegisters {
  alignas(64) uint8_t bytes[8][16][64];
  bool configured = false;
};
inline thread_local TileRegisters tile_registers;

// The processor raises an exception without a configuration.
inline TileRegisters& configured_tiles() {
  if (!tile_registers.configured) __builtin_trap();
  return tile_registers;
}

inline void tile_configure() {
  __builtin_memset(tile_registers.bytes, 0, sizeof(tile_registers.bytes));
  tile_registers.configured = true;
}

inline void tile_release() { tile_registers.configured = false; }

template <int TILE>
inline void tile_zero() {
  __builtin_memset(configured_tiles().bytes[TILE], 0, 16 * 64);
}

template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
  for (int row = 0; row < 16; ++row) {
    const char* src = static_cast<const char*>(from) + row * stride;
    __builtin_memcpy(configured_tiles().bytes[TILE][row], src, 64);
  }
}

template <int TILE>
inline void tile_store(void* to, int64_t stride) {
  for (int row = 0; row < 16; ++row) {
    char* dst = static_cast<char*>(to) + row * stride;
    __builtin_memcpy(dst, configured_tiles().bytes[TILE][row], 64);
  }
}

inline float without_subnormals(float x) {
  return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.f, x) : x;
}

// Operands are read as the instruction does: bf16's subnormal numbers are 0, fp16's are not.
inline float model_bf16(uint16_t bits) {
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  __builtin_memcpy(&value, &wide, sizeof(value));
  return without_subnormals(value);
}
inline float model_fp16(uint16_t bits) { return _cvtsh_ss(bits); }

// Each half of the pairs is summed by FMA from 0; then both sums, then C. Every result is rounded
// to nearest even, and 0 if it is subnormal.
template <int C, int A, int B>
inline void model_dot(float (*widen)(uint16_t)) {
  static_assert(C != A && C != B && A != B, "the three tiles must differ");
  TileRegisters& tiles = configured_tiles();
  const auto half = [&](int tile, int row, int column) {
    uint16_t bits;
    __builtin_memcpy(&bits, &tiles.bytes[tile][row][2 * column], sizeof(bits));
    return widen(bits);
  };
  float b[2][16][16];
  for (int k = 0; k < 16; ++k) {
    for (int n = 0; n < 32; ++n) b[n % 2][k][n / 2] = half(B, k, n);
  }
  for (int m = 0; m < 16; ++m) {
    float sum[2][16] = {};
    for (int k = 0; k < 16; ++k) {
      for (int parity = 0; parity < 2; ++parity) {
        const float a = half(A, m, 2 * k + parity);
        for (int n = 0; n < 16; ++n) {
          sum[parity][n] = without_subnormals(__builtin_fmaf(a, b[parity][k][n], sum[parity][n]));
        }
      }
    }
    float c[16];
    __builtin_memcpy(c, tiles.bytes[C][m], sizeof(c));
    for (int n = 0; n < 16; ++n) {
      const float product = without_subnormals(sum[0][n] + sum[1][n]);
      c[n] = without_subnormals(without_subnormals(c[n]) + product);
    }
    __builtin_memcpy(tiles.bytes[C][m], c, sizeof(c));
  }
}

template <int C, int A, int B>
inline void tile_dot_bf16() {
  model_dot<C, A, B>(model_bf16);
}

template <int C, int A, int B>
inline void tile_dot_fp16() {
  model_dot<C, A, B>(model_fp16);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
