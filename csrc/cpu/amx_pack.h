#pragma once

#include "amx_multiply.h"
#include "kernels.h"

// From rows of halves to operands of tiles. Whatever lies beyond the rows and dims that exist, in
// memory or in the tiles, is neither read nor left undefined: it is 0 in the operand.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

constexpr int64_t TILE_HALVES = 16 * 32;

struct HalfRows {
  const half_t* data;
  int64_t ld;
};

inline HalfRows half_rows(const Operand& x, int64_t b, int64_t h, int64_t row) {
  return {static_cast<const half_t*>(x.data) + b * x.batch + h * x.head + row * x.row, x.row};
}

inline __mmask32 first_halves(int64_t n) {
  return n >= 32 ? 0xFFFFFFFFu : n <= 0 ? 0u : (1u << n) - 1;
}

// Operand A with the reduction along the rows: 32 rows of `width` values, as they are.
inline void copy_rows(const HalfRows& x, int64_t rows, int64_t dim, int64_t width, half_t* dst) {
  for (int64_t i = 0; i < 32; ++i) {
    for (int64_t d = 0; d < width; d += 32) {
      const __mmask32 mask = i < rows ? first_halves(dim - d) : 0;
      _mm512_store_si512(dst + i * width + d,
                         _mm512_maskz_loadu_epi16(mask, x.data + i * x.ld + d));
    }
  }
}

// 16 x 16 pairs of values; `ld`, in values, is even.
inline void transpose_dwords(const half_t* src, int64_t ld, half_t* dst) {
  transpose_block(reinterpret_cast<const float*>(src), ld / 2, reinterpret_cast<float*>(dst), 16);
}

// Operand B with the reduction along the rows: rows become columns, two values of a row stay
// together. dst[dim / 32][2][16 pairs of dims][16 rows][2]; all signs are changed if `flip`.
inline void pack_lanes(const HalfRows& x, int64_t rows, int64_t dim, bool flip, half_t* dst) {
  const __m512i signs = _mm512_set1_epi16(flip ? int16_t(-0x8000) : int16_t(0));
  const bool dwords = !flip && x.ld % 2 == 0;
  alignas(64) half_t square[TILE_HALVES];
  for (int64_t d = 0; d < dim; d += 32) {
    const __mmask32 dims = first_halves(dim - d);
    for (int64_t first = 0; first < 32; first += 16) {
      const half_t* from = x.data + first * x.ld + d;
      half_t* to = dst + (d / 16 + first / 16) * TILE_HALVES;
      if (dwords && first + 16 <= rows && d + 32 <= dim) {
        transpose_dwords(from, x.ld, to);
        continue;
      }
      for (int64_t i = 0; i < 16; ++i) {
        const __mmask32 mask = first + i < rows ? dims : 0;
        _mm512_store_si512(
            square + i * 32,
            _mm512_xor_si512(_mm512_maskz_loadu_epi16(mask, from + i * x.ld), signs));
      }
      transpose_dwords(square, 32, to);
    }
  }
}

// 16 pairs of rows x 32 dims, zipped: words 0, 32, 1, 33, .. of an even and an odd row are a row of
// the first tile, those of their upper halves one of the second.
inline void zip_rows(const HalfRows& x, int64_t rows, __mmask32 dims, half_t* first,
                     half_t* second) {
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t i = 0; i < 16; ++i) {
    const half_t* from = x.data + 2 * i * x.ld;
    const __m512i even = _mm512_maskz_loadu_epi16(2 * i < rows ? dims : 0, from);
    const __m512i odd = _mm512_maskz_loadu_epi16(2 * i + 1 < rows ? dims : 0, from + x.ld);
    _mm512_store_si512(first + i * 32, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_store_si512(second + i * 32, _mm512_permutex2var_epi16(even, high, odd));
  }
}

// Operand B with the reduction down the rows: dst[dim / 16][16 pairs of rows][16 dims][2]. dst
// holds round_up(dim, 32) / 16 tiles.
inline void zip_rows_to_tiles(const HalfRows& x, int64_t rows, int64_t dim, half_t* dst) {
  for (int64_t d = 0; d < dim; d += 32) {
    half_t* tile = dst + d / 16 * TILE_HALVES;
    zip_rows({x.data + d, x.ld}, rows, first_halves(dim - d), tile, tile + TILE_HALVES);
  }
}

// Operand A with the reduction down the rows: dst[dim / 16][16 dims][32 rows].
inline void transpose_rows_to_tiles(const HalfRows& x, int64_t rows, int64_t dim, half_t* dst) {
  alignas(64) half_t squares[2][TILE_HALVES];
  for (int64_t d = 0; d < dim; d += 32) {
    half_t* tile = dst + d / 16 * TILE_HALVES;
    zip_rows({x.data + d, x.ld}, rows, first_halves(dim - d), squares[0], squares[1]);
    transpose_dwords(squares[0], 32, tile);
    transpose_dwords(squares[1], 32, tile + TILE_HALVES);
  }
}

// `count` rows of the dtype from lanes: lanes_of(d) holds dim d of 16 rows. Pairs of dims are
// rounded while rows are the lanes, and transposed as one.
template <class Half, class LanesOf>
inline void write_lanes(const LanesOf& lanes_of, Vec<float> factor, int64_t count, int64_t dim,
                        const HalfRows& to) {
  alignas(64) half_t square[TILE_HALVES], rows[TILE_HALVES];
  for (int64_t d = 0; d < dim; d += 32) {
    for (int64_t pair = 0; pair < 16; ++pair) {
      const __m512i low = Half::round(Vec<float>::load(lanes_of(d + 2 * pair)) * factor);
      const __m512i high = Half::round(Vec<float>::load(lanes_of(d + 2 * pair + 1)) * factor);
      _mm512_store_si512(square + pair * 32, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
    transpose_dwords(square, 32, rows);
    for (int64_t i = 0; i < count; ++i) {
      _mm512_mask_storeu_epi16(const_cast<half_t*>(to.data) + i * to.ld + d, first_halves(dim - d),
                               _mm512_load_si512(rows + i * 32));
    }
  }
}

// The granules of one head: what they hold and how tiles of them are reached.
class PackedKeys {
 public:
  enum Use { FORWARD, BACKWARD };

  PackedKeys(const AttentionParams& p, const Sequence& seq, int64_t b, int64_t h_kv, Use use,
             const PackedHead& head)
      : p_(p),
        seq_(seq),
        b_(b),
        h_kv_(h_kv),
        use_(use),
        head_(head),
        key_width_(round_up(p.head_dim, 32)),
        value_width_(round_up(p.value_dim, 32)),
        bytes_(granule_bytes(p, use)) {}

  // K rows, then V^T (forward) or V rows and K^T (backward).
  static int64_t granule_bytes(const AttentionParams& p, Use use) {
    const int64_t keys = round_up(p.head_dim, 32), values = round_up(p.value_dim, 32);
    const int64_t width = use == FORWARD ? keys + values : 2 * keys + values;
    return GRANULE * width * static_cast<int64_t>(sizeof(half_t));
  }

  // Granules [begin, end) can be read afterwards.
  void prepare(int64_t begin, int64_t end) const {
    for (int64_t granule = begin; granule < end; ++granule) {
      int32_t* state = head_.state + granule;
      if (__atomic_load_n(state, __ATOMIC_ACQUIRE) == READY) continue;
      int32_t expected = UNTOUCHED;
      if (__atomic_compare_exchange_n(state, &expected, BUSY, false, __ATOMIC_ACQUIRE,
                                      __ATOMIC_ACQUIRE)) {
        pack(granule);
        __atomic_store_n(state, READY, __ATOMIC_RELEASE);
      }
      for (int spins = 0; __atomic_load_n(state, __ATOMIC_ACQUIRE) != READY; ++spins) {
        if (spins > 1000) yield_thread();
      }
    }
  }

  // Operand A of K Q^T and of V dO^T: the 32 keys of a granule, the reduction over dims.
  TileOperand key_rows(int64_t granule) const {
    return rows(p_.key, p_.head_dim, granule, at(granule));
  }
  TileOperand value_rows(int64_t granule) const {
    return rows(p_.value, p_.value_dim, granule, at(granule) + key_width_ * ROW_BYTES);
  }
  // Operand A of V^T P^T and of K^T dS^T: dims [32 * block, .. + 32), the reduction over keys.
  TileOperand value_columns(int64_t granule, int64_t block) const {
    return columns(at(granule) + key_width_ * ROW_BYTES, block);
  }
  TileOperand key_columns(int64_t granule, int64_t block) const {
    return columns(at(granule) + (key_width_ + value_width_) * ROW_BYTES, block);
  }

 private:
  static constexpr int32_t UNTOUCHED = 0, BUSY = 1, READY = 2;
  static constexpr int64_t ROW_BYTES = GRANULE * sizeof(half_t);  // per dim of a granule

  char* at(int64_t granule) const { return head_.memory + granule * bytes_; }
  int64_t rows_in(int64_t granule) const { return min_of(GRANULE, seq_.len_k - granule * GRANULE); }

  // Dense rows that begin on cache lines are operands already.
  bool in_place(const Operand& x, int64_t dim, int64_t granule) const {
    const half_t* data = half_rows(x, b_, h_kv_, seq_.k_start).data;
    return x.row == dim && dim % 32 == 0 && reinterpret_cast<uintptr_t>(data) % 64 == 0 &&
           rows_in(granule) == GRANULE;
  }

  TileOperand rows(const Operand& x, int64_t dim, int64_t granule, const char* packed) const {
    const int64_t stride = round_up(dim, 32) * static_cast<int64_t>(sizeof(half_t));
    if (!in_place(x, dim, granule)) return {packed, 16 * stride, 64, stride};
    const HalfRows source = half_rows(x, b_, h_kv_, seq_.k_start + granule * GRANULE);
    return {source.data, 16 * stride, 64, stride};
  }
  TileOperand columns(const char* packed, int64_t block) const {
    const int64_t tile = TILE_HALVES * static_cast<int64_t>(sizeof(half_t));
    return {packed + 2 * block * tile, tile, bytes_, 64};
  }

  void pack_rows(const Operand& x, int64_t dim, int64_t granule, char* to) const {
    if (in_place(x, dim, granule)) return;
    copy_rows(half_rows(x, b_, h_kv_, seq_.k_start + granule * GRANULE), rows_in(granule), dim,
              round_up(dim, 32), reinterpret_cast<half_t*>(to));
  }
  void pack_columns(const Operand& x, int64_t dim, int64_t granule, char* to) const {
    transpose_rows_to_tiles(half_rows(x, b_, h_kv_, seq_.k_start + granule * GRANULE),
                            rows_in(granule), dim, reinterpret_cast<half_t*>(to));
  }
  void pack(int64_t granule) const {
    char* to = at(granule);
    pack_rows(p_.key, p_.head_dim, granule, to);
    to += key_width_ * ROW_BYTES;
    if (use_ == FORWARD) {
      pack_columns(p_.value, p_.value_dim, granule, to);
      return;
    }
    pack_rows(p_.value, p_.value_dim, granule, to);
    pack_columns(p_.key, p_.head_dim, granule, to + value_width_ * ROW_BYTES);
  }

  const AttentionParams& p_;
  const Sequence& seq_;
  int64_t b_, h_kv_;
  Use use_;
  PackedHead head_;
  int64_t key_width_, value_width_;
  int64_t bytes_;
};

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
