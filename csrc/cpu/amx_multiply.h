#pragma once

#include "amx.h"
#include "tiles.h"

// Products of matrices of tiles: 32 x 32 values of C at a time, in four registers, which need two
// tiles of A and two of B per 32 of the reduction.
//
// Tiles of C are not stored where they are finished: four stores in a row, waiting for the last
// products, stall the machine longer than the products of a whole block take. Each block instead
// stores the tiles of the one before, each just before its register is used anew.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

using half_t = uint16_t;

// Two vectors, rounded: each as 16 halves, and as 16 pairs (low[i], high[i]).
struct RoundedRows {
  __m256i low, high;
  __m512i pairs;
};

struct BFloat16 {
  template <int C, int A, int B>
  static void dot() {
    tile_dot_bf16<C, A, B>();
  }
  static __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  // For results: to nearest even, in the lower half of each lane.
  static __m512i round(Vec<float> x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i half_ulp = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    return _mm512_mask_mov_epi32(_mm512_srli_epi32(_mm512_add_epi32(bits, half_ulp), 16), nan,
                                 _mm512_set1_epi32(0x7FC0));
  }
  // For operands of products: to nearest, halves away from 0. A NaN is left as it is.
  static RoundedRows round_rows(Vec<float> low, Vec<float> high) {
    const auto rounded = [](__m512 x) {
      const __m512i bits = _mm512_castps_si512(x);
      const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
      return _mm512_mask_add_epi32(bits, number, bits, _mm512_set1_epi32(0x8000));
    };
    const __m512i a = rounded(low.v), b = rounded(high.v);
    const __m512i upper_words =
        _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                         25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i rows = _mm512_permutex2var_epi16(a, upper_words, b);
    return {_mm512_castsi512_si256(rows), _mm512_extracti64x4_epi64(rows, 1),
            _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(a, 16), b)};
  }
  // The pairs of weights, which are never negative, between tile products: four additions, shifts
  // and blends, which unlike a conversion or comparison need not wait for the products. Here a NaN
  // comes from a product or an exponential, has no low bits and so stays a NaN.
  static __m512i weight_pairs(Vec<float> low, Vec<float> high) {
    const __m512i half_ulp = _mm512_set1_epi32(0x8000);
    const __m512i even = _mm512_add_epi32(_mm512_castps_si512(low.v), half_ulp);
    const __m512i odd = _mm512_add_epi32(_mm512_castps_si512(high.v), half_ulp);
    return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(even, 16), odd);
  }
};

struct Float16 {
  template <int C, int A, int B>
  static void dot() {
    tile_dot_fp16<C, A, B>();
  }
  static __m512 widen(__m256i x) { return _mm512_cvtph_ps(x); }
  static __m256i narrow(Vec<float> x) {
    return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m512i round(Vec<float> x) { return _mm512_cvtepu16_epi32(narrow(x)); }
  static RoundedRows round_rows(Vec<float> low, Vec<float> high) {
    return {narrow(low), narrow(high), weight_pairs(low, high)};
  }
  static __m512i weight_pairs(Vec<float> low, Vec<float> high) {
    return _mm512_or_si512(round(low), _mm512_slli_epi32(round(high), 16));
  }
};

// Two tiles of A below each other or of B side by side, walked along the reduction; in bytes.
struct TileOperand {
  const void* data;
  int64_t next;    // to the other tile
  int64_t step;    // to the next 32 of the reduction
  int64_t stride;  // between the rows of a tile

  const char* at(int64_t k) const { return static_cast<const char*>(data) + k * step; }
};

// Two by two tiles of C.
struct TileSum {
  void* data;
  int64_t below, beside, stride;

  char* tile(int i) const { return static_cast<char*>(data) + i / 2 * below + i % 2 * beside; }
};

// What is still in the registers 0 to 3.
struct PendingTiles {
  char* at[4] = {};
  int64_t stride = 0;

  template <int TILE>
  void store() {
    if (at[TILE] != nullptr) tile_store<TILE>(at[TILE], stride);
  }
  // Everything that was multiplied is in memory afterwards.
  void flush() {
    store<0>();
    store<1>();
    store<2>();
    store<3>();
    *this = {};
  }
};

template <int TILE>
inline void begin_tile(PendingTiles& pending, const TileSum& c, bool accumulate) {
  pending.store<TILE>();
  if (accumulate) {
    tile_load<TILE>(c.tile(TILE), c.stride);
  } else {
    tile_zero<TILE>();
  }
}

// For products with nothing in between.
struct NothingBetween {
  void begin() {}
  template <int PRODUCT>
  void after() {}
  void end() {}
};

#define FUSED_ATTENTION_INLINE __attribute__((always_inline)) inline

// C (+)= A B for 32 x (16 * COLUMNS) values of C, over `steps` times 32 of the reduction. `between`
// does vector work after each of the four products of a step; it is copied, because what a
// reference points to would be stored and loaded around every instruction that touches memory.
template <class Half, int COLUMNS, class Between>
inline void multiply_block(const TileOperand& a, const TileOperand& b, int64_t steps,
                           const TileSum& c, bool accumulate, PendingTiles& pending,
                           Between& shared) {
  static_assert(COLUMNS == 1 || COLUMNS == 2, "one or two tiles of B");
  const TileOperand A = a, B = b;
  Between between = shared;
  for (int64_t k = 0; k < steps; ++k) {
    const char *a_tile = A.at(k), *b_tile = B.at(k);
    between.begin();
    tile_load<4>(a_tile, A.stride);
    tile_load<6>(b_tile, B.stride);
    if (k == 0) begin_tile<0>(pending, c, accumulate);
    Half::template dot<0, 4, 6>();
    between.template after<0>();
    if constexpr (COLUMNS == 2) {
      tile_load<7>(b_tile + B.next, B.stride);
      if (k == 0) begin_tile<1>(pending, c, accumulate);
      Half::template dot<1, 4, 7>();
    } else if (k == 0) {
      pending.store<1>();
    }
    between.template after<1>();
    tile_load<5>(a_tile + A.next, A.stride);
    if (k == 0) begin_tile<2>(pending, c, accumulate);
    Half::template dot<2, 5, 6>();
    between.template after<2>();
    if constexpr (COLUMNS == 2) {
      if (k == 0) begin_tile<3>(pending, c, accumulate);
      Half::template dot<3, 5, 7>();
    } else if (k == 0) {
      pending.store<3>();
    }
    between.template after<3>();
    between.end();
  }
  shared = between;
  pending = {{c.tile(0), COLUMNS == 2 ? c.tile(1) : nullptr, c.tile(2),
              COLUMNS == 2 ? c.tile(3) : nullptr},
             c.stride};
}

// The limit of all this, see peak.h: the four products of a step, over and over.
template <class Half>
inline double multiply_tiles_in_registers(int64_t rounds) {
  const TileScope tiles;
  tile_zero<0>();
  tile_zero<1>();
  tile_zero<2>();
  tile_zero<3>();
  tile_zero<4>();
  tile_zero<5>();
  tile_zero<6>();
  tile_zero<7>();
  for (int64_t r = 0; r < rounds; ++r) {
    Half::template dot<0, 4, 6>();
    Half::template dot<1, 4, 7>();
    Half::template dot<2, 5, 6>();
    Half::template dot<3, 5, 7>();
  }
  return 2.0 * static_cast<double>(rounds) * 4 * 16 * 16 * 32;
}

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
