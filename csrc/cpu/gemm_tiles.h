#pragma once

#include "amx.h"
#include "pairs.h"

// The products of gemm_pairs.h by AMX: C[16][16] += A[16][32] * B[32][16] per instruction. Blocks
// of 2 x 2 tiles of C use each tile of A and B twice.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// dst[d][i] = src[i][d], for d < round_up(dim, 32) and i < round_up(n, 32); 0 where there is no
// source. Pairs of rows are zipped and turned as 16 x 16 squares of pairs.
inline void pack_down(const bf16_t* src, int64_t ld, int64_t n, int64_t dim, bf16_t* dst) {
  alignas(64) bf16_t low_half[16 * 32], high_half[16 * 32];
  for (int64_t i = 0; i < n; i += 32) {
    for (int64_t d = 0; d < dim; d += 32) {
      for (int64_t pair = 0; pair < 16; ++pair) {
        const int64_t row = i + 2 * pair;
        const __mmask32 mask = first_lanes(dim - d);
        const bf16_t* at = src + row * ld + d;
        const __m512i even = _mm512_maskz_loadu_epi16(row < n ? mask : 0, at);
        const __m512i odd = _mm512_maskz_loadu_epi16(row + 1 < n ? mask : 0, at + ld);
        _mm512_store_si512(low_half + pair * 32, zip_low(even, odd));
        _mm512_store_si512(high_half + pair * 32, zip_high(even, odd));
      }
      float* out = reinterpret_cast<float*>(dst + d * BLOCK_KV + i);
      constexpr int64_t LD = BLOCK_KV / 2;  // in pairs
      transpose_block(reinterpret_cast<const float*>(low_half), 16, out, LD);
      transpose_block(reinterpret_cast<const float*>(high_half), 16, out + 16 * LD, LD);
    }
  }
}
inline int64_t packed_down_ld(int64_t) { return BLOCK_KV; }

// One tile to C; of the last rows only those that belong to C.
template <int TILE>
inline void store_tile(int64_t rows, bool accumulate, float* c, int64_t ldc) {
  if (rows >= TILE_ROWS) {
    tile_store<TILE>(c, ldc * static_cast<int64_t>(sizeof(float)));
    return;
  }
  alignas(64) float edge[TILE_ROWS * 16];
  tile_store<TILE>(edge, TILE_BYTES);
  for (int64_t m = 0; m < rows; ++m) {
    const __m512 row = _mm512_load_ps(edge + m * 16);
    float* at = c + m * ldc;
    _mm512_storeu_ps(at, accumulate ? _mm512_add_ps(_mm512_loadu_ps(at), row) : row);
  }
}

template <int TILE>
inline void start_tile(int64_t rows, bool accumulate, const float* c, int64_t ldc) {
  if (accumulate && rows >= TILE_ROWS) {
    tile_load<TILE>(c, ldc * static_cast<int64_t>(sizeof(float)));
  } else {
    tile_zero<TILE>();
  }
}

// 16 DOWN x 16 ACROSS elements of C; tiles 0-3 are C, 4-5 A, 6-7 B.
template <int DOWN, int ACROSS, bool ACCUMULATE>
inline void tile_block(int64_t rows, int64_t depth, const bf16_t* a, int64_t lda, const bf16_t* b,
                       int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t SIZE = sizeof(bf16_t);
  start_tile<0>(rows, ACCUMULATE, c, ldc);
  if constexpr (ACROSS == 2) start_tile<1>(rows, ACCUMULATE, c + 16, ldc);
  if constexpr (DOWN == 2) start_tile<2>(rows - 16, ACCUMULATE, c + 16 * ldc, ldc);
  if constexpr (DOWN == 2 && ACROSS == 2) {
    start_tile<3>(rows - 16, ACCUMULATE, c + 16 * ldc + 16, ldc);
  }
  for (int64_t k = 0; k < depth; k += 32) {
    const bf16_t* pairs = b + k / 2 * ldb;
    tile_load<4>(a + k, lda * SIZE);
    tile_load<6>(pairs, ldb * SIZE);
    tile_dot_bf16<0, 4, 6>();
    if constexpr (ACROSS == 2) {
      tile_load<7>(pairs + 32, ldb * SIZE);
      tile_dot_bf16<1, 4, 7>();
    }
    if constexpr (DOWN == 2) {
      tile_load<5>(a + 16 * lda + k, lda * SIZE);
      tile_dot_bf16<2, 5, 6>();
    }
    if constexpr (DOWN == 2 && ACROSS == 2) tile_dot_bf16<3, 5, 7>();
  }
  store_tile<0>(rows, ACCUMULATE, c, ldc);
  if constexpr (ACROSS == 2) store_tile<1>(rows, ACCUMULATE, c + 16, ldc);
  if constexpr (DOWN == 2) store_tile<2>(rows - 16, ACCUMULATE, c + 16 * ldc, ldc);
  if constexpr (DOWN == 2 && ACROSS == 2) {
    store_tile<3>(rows - 16, ACCUMULATE, c + 16 * ldc + 16, ldc);
  }
}

template <int ACROSS, bool ACCUMULATE>
inline void tile_panel(int64_t rows, int64_t depth, const bf16_t* a, int64_t lda, const bf16_t* b,
                       int64_t ldb, float* c, int64_t ldc) {
  int64_t m = 0;
  for (; m + 16 < rows; m += 32) {
    tile_block<2, ACROSS, ACCUMULATE>(rows - m, depth, a + m * lda, lda, b, ldb, c + m * ldc, ldc);
  }
  if (m < rows) {
    tile_block<1, ACROSS, ACCUMULATE>(rows - m, depth, a + m * lda, lda, b, ldb, c + m * ldc, ldc);
  }
}

template <bool ACCUMULATE>
inline void gemm_along(int64_t rows, int64_t vecs, int64_t depth, const bf16_t* a, int64_t lda,
                       const bf16_t* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t n = 0;
  for (; n + 2 <= vecs; n += 2) {
    tile_panel<2, ACCUMULATE>(rows, depth, a, lda, b + n * 32, ldb, c + n * 16, ldc);
  }
  if (n < vecs) {
    tile_panel<1, ACCUMULATE>(rows, depth, a, lda, b + n * 32, ldb, c + n * 16, ldc);
  }
}

template <bool ACCUMULATE>
inline void gemm_down(int64_t rows, int64_t vecs, int64_t depth, const bf16_t* a, int64_t lda,
                      const bf16_t* b, int64_t ldb, float* c, int64_t ldc) {
  gemm_along<ACCUMULATE>(rows, vecs, depth, a, lda, b, ldb, c, ldc);
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
