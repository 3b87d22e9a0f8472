#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

// AMX tiles: eight registers of 16 rows of 64 bytes, one function per instruction. With
// FUSED_ATTENTION_AMX_MODEL (tests, on machines without AMX) each is a plain C++ model of what the
// manual says, the order of the additions and the treatment of subnormal numbers included.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;

#if defined(FUSED_ATTENTION_AMX_MODEL)

struct TileModel {
  bool configured = false;
  alignas(64) unsigned char tile[8][TILE_ROWS][TILE_BYTES];
};
inline thread_local TileModel tile_model;

inline void tile_configure() {
  tile_model.configured = true;
  std::memset(tile_model.tile, 0, sizeof(tile_model.tile));
}
inline void tile_release() {
  tile_model.configured = false;
  std::memset(tile_model.tile, 0xFF, sizeof(tile_model.tile));  // NaN for who comes too late
}
template <int TILE>
inline void tile_zero() {
  std::memset(tile_model.tile[TILE], 0, sizeof(tile_model.tile[TILE]));
}
template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; ++row) {
    std::memcpy(tile_model.tile[TILE][row], static_cast<const char*>(from) + row * stride,
                TILE_BYTES);
  }
}
template <int TILE>
inline void tile_store(void* to, int64_t stride) {
  for (int row = 0; row < TILE_ROWS; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, tile_model.tile[TILE][row], TILE_BYTES);
  }
}
inline float flush_subnormal(float x) { return std::fabs(x) < 0x1p-126f ? 0.f : x; }
inline float bf16_of_tile(const unsigned char* at) {
  uint32_t bits = static_cast<uint32_t>(at[0]) << 16 | static_cast<uint32_t>(at[1]) << 24;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return flush_subnormal(value);
}
// The even and the odd products of a row are summed apart, then together, then added to SUM.
template <int SUM, int A, int B>
inline void tile_dot_bf16() {
  const auto& tile = tile_model.tile;
  for (int m = 0; m < TILE_ROWS; ++m) {
    for (int n = 0; n < 16; ++n) {
      float parts[2] = {0.f, 0.f};
      for (int k = 0; k < 16; ++k) {
        for (int i = 0; i < 2; ++i) {
          const float a = bf16_of_tile(&tile[A][m][4 * k + 2 * i]);
          const float b = bf16_of_tile(&tile[B][k][4 * n + 2 * i]);
          parts[i] = flush_subnormal(std::fmaf(a, b, parts[i]));
        }
      }
      float sum;
      std::memcpy(&sum, &tile[SUM][m][4 * n], sizeof(sum));
      sum = flush_subnormal(flush_subnormal(sum) + flush_subnormal(parts[0] + parts[1]));
      if (!tile_model.configured) sum = NAN;  // the processor would trap
      std::memcpy(&tile_model.tile[SUM][m][4 * n], &sum, sizeof(sum));
    }
  }
}

#else

// The operand of LDTILECFG: every tile 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

inline void tile_configure() {
  const TileConfig config;
  asm volatile("ldtilecfg (%0)" : : "r"(&config) : "memory");
}
inline void tile_release() { asm volatile("tilerelease" : : : "memory"); }
template <int TILE>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}
template <int TILE>
inline void tile_load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
inline void tile_store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(TILE) : "memory");
}
template <int SUM, int A, int B>
inline void tile_dot_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}

#endif

// A thread's tiles are configured while a block is worked on, and given up afterwards: a context
// switch then has 8 KB less to save.
struct ProductScope {
  ProductScope() { tile_configure(); }
  ~ProductScope() { tile_release(); }
  ProductScope(const ProductScope&) = delete;
  ProductScope& operator=(const ProductScope&) = delete;
};

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
