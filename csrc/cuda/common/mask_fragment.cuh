#pragma once

#include <cmath>
#include <cstdint>

#include "fused_attention/band.h"
#include "fused_attention/philox.h"
#include "ptx.cuh"
#include "score_terms.h"

// What happens to single scores, on the fragments in which tensor cores leave them: a thread of a
// warp holds, of a 16 x 8 tile of scores (g = lane / 4, t = lane % 4),
//
//   S[n][0], S[n][1]   row g,     columns 8 n + 2 t and the next
//   S[n][2], S[n][3]   row g + 8, the same columns
//
// In the forward and for dQ the rows are queries and the columns keys. For dK and dV it is the
// other way round, and everything here holds with the transposed band: key j is visible to query i
// within Band(left, right, offset) iff i is "visible" to j within Band(right, left, -offset).
namespace fused_attention::cuda {

__host__ __device__ inline Band transposed(const Band& band) {
  return {band.right, band.left, -band.offset};
}

struct ColumnRange {  // [begin, end)
  int begin;
  int end;
};

__device__ inline ColumnRange column_range(const Range& range) {
  return {static_cast<int>(range.begin), static_cast<int>(range.end)};
}

// The band as a thread sees it from S[0][0]: element (r, c) further on, r rows down and c columns
// to the right, is visible iff first <= c - r <= last and c < columns.
struct VisibleFrom {
  int first, last, columns;
};

// Clipped from 64 bits: bands reach to 2^30 and offsets are arbitrary.
__device__ inline VisibleFrom visible_from(const Band& band, int row, int column, int columns) {
  const int64_t most = int64_t{1} << 30, apart = int64_t{row} - column + band.offset;
  const int64_t first = apart - band.left, last = apart + band.right;
  return {static_cast<int>(max(min(first, most), -most)),
          static_cast<int>(max(min(last, most), -most)), columns - column};
}

// -inf where a row does not see a column. `rows_down`: from where `visible` stands to S[0][0].
template <int N>
__device__ inline void mask_fragment(float (&S)[N][4], const VisibleFrom& visible, int rows_down) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int c = n * 8 + e % 2, diagonal = c - rows_down - e / 2 * 8;
      const bool seen =
          diagonal >= visible.first && diagonal <= visible.last && c < visible.columns;
      if (!seen) S[n][e] = -INFINITY;
    }
  }
}

// tanh to 1e-7 of 1; to 1e-6 of itself, as its argument may be small where the cap is large.
__device__ __forceinline__ float tanh_of(float x) {
  const float square = x * x;
  const float series = x * fmaf(square, fmaf(square, 2.0f / 15.0f, -1.0f / 3.0f), 1.0f);
  const float whole = 1.0f - __fdividef(2.0f, 1.0f + ptx::exp2_approx(x * (2.0f * LOG2_E)));
  return square < 0.01f ? series : whole;
}

// S <- softcap * tanh(S / softcap); `slope`, when given, is multiplied by the derivative.
template <int N>
__device__ __forceinline__ void apply_softcap(float (&S)[N][4], float softcap,
                                              float (*slope)[4] = nullptr) {
  const float inverse = 1.0f / softcap;
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float t = tanh_of(S[n][e] * inverse);
      S[n][e] = softcap * t;
      if (slope != nullptr) slope[n][e] *= 1.0f - t * t;
    }
  }
}

// S -= slope * |i + offset - j|. `distance`: of S[0][0], signed.
template <int N>
__device__ __forceinline__ void add_alibi(float (&S)[N][4], float slope, int distance) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int d = distance + e / 2 * 8 - n * 8 - e % 2;
      S[n][e] = fmaf(-slope, fabsf(static_cast<float>(d)), S[n][e]);
    }
  }
}

// ALiBi needs the distance of a row from the columns: row + offset - column. An offset that does
// not fit is that of a band which nobody sees.
__device__ inline int position_of(const Band& band, int row) {
  const int64_t limit = int64_t{1} << 30, at = row + band.offset;
  return static_cast<int>(at < -limit ? -limit : at > limit ? limit : at);
}

// Where the random bits of a fragment come from.
struct DropoutStream {
  Dropout dropout;
  uint32_t batch_head;

  __device__ PhiloxWords words(uint32_t call, int query) const {
    return philox4x32(call, static_cast<uint32_t>(query), batch_head, dropout.offset,
                      dropout.seed[0], dropout.seed[1]);
  }
};

// Bit 4 n + e is set iff the pair of S[n][e] is kept; rows are queries. `key`: of S[0][0]. One call
// serves four tiles, if the first begins at a multiple of 32 keys (see philox.h).
template <int N>
__device__ inline uint32_t kept_bits(const DropoutStream& stream, int query, int key) {
  static_assert(N == 2 || N == 4 || N == 8, "whole calls, and all bits in one word");
  constexpr int TILES = N < 4 ? N : 4;  // per call
  uint32_t bits = 0;
#pragma unroll 1
  for (int at = 0; at < N / TILES * 2; ++at) {
    const int group = at / 2, half = at % 2;
    const PhiloxWords words = stream.words(dropout_call(key + group * 32), query + half * 8);
    uint32_t kept = 0;
#pragma unroll
    for (int i = 0; i < TILES; ++i) {
      uint32_t word = words.word[i];
      if (N < 4 && (key & 16) != 0) word = words.word[i + 2];
      if ((word & 0xFFFFu) >= stream.dropout.threshold) kept |= 1u << (i * 4);
      if (word >> 16 >= stream.dropout.threshold) kept |= 2u << (i * 4);
    }
    bits |= kept << (group * 16 + half * 2);
  }
  return bits;
}

// The same where rows are keys. The keys 2 a and 2 a + 1 of a column share a call: of each pair of
// lanes that hold them, one computes the even and one the odd query's, and they swap halves.
// `key`: of S[0][0], so of row g; `query`: of S[0][0], even.
template <int N>
__device__ inline uint32_t kept_bits_transposed(const DropoutStream& stream, int key, int query) {
  static_assert(N <= 8, "bits are kept in one word");
  const bool odd = key % 2 != 0;
  const bool upper = (key & 16) != 0;  // key and key + 8 are words 0 and 1, or 2 and 3
  const uint32_t threshold = stream.dropout.threshold;
  uint32_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < N; ++n) {
    const PhiloxWords words = stream.words(dropout_call(key), query + n * 8 + (odd ? 1 : 0));
    const uint32_t first = upper ? words.word[2] : words.word[0];
    const uint32_t second = upper ? words.word[3] : words.word[1];
    const uint32_t low = __byte_perm(first, second, 0x5410);   // low halves: of the even key
    const uint32_t high = __byte_perm(first, second, 0x7632);  // high halves: of the odd key
    const uint32_t received = __shfl_xor_sync(0xFFFFFFFFu, odd ? low : high, 4);
    const uint32_t of_even_query = odd ? received : low;
    const uint32_t of_odd_query = odd ? high : received;
    uint32_t kept = 0;
    if ((of_even_query & 0xFFFFu) >= threshold) kept |= 1u;
    if ((of_odd_query & 0xFFFFu) >= threshold) kept |= 2u;
    if (of_even_query >> 16 >= threshold) kept |= 4u;
    if (of_odd_query >> 16 >= threshold) kept |= 8u;
    bits |= kept << (n * 4);
  }
  return bits;
}

}  // namespace fused_attention::cuda
