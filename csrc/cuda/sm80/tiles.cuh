#pragma once

#include <cstdint>

#include "../common/convert.cuh"
#include "../common/swizzle.h"
#include "fused_attention/params.h"
#include "ptx.cuh"

// Tiles in shared memory: rows of DIM 16-bit elements, swizzled; how they come from and go to
// global memory, and how a warp multiplies with them.
namespace fused_attention::cuda::sm80 {

// Rows of one head of one sequence in global memory.
struct RowsInMemory {
  char* data;
  int64_t stride;  // bytes between rows
  int count;
  int dim;       // elements; what a tile has beyond them is zero
  bool aligned;  // do all rows begin at multiples of 16 bytes?

  __device__ char* row(int i) const { return data + i * stride; }
};

__device__ inline RowsInMemory rows_of(const Operand& x, int64_t b, int64_t h, int64_t row,
                                       int64_t count, int64_t dim, bool aligned) {
  return {static_cast<char*>(x.data) + (b * x.batch + h * x.head + row * x.row) * ELEMENT_BYTES,
          x.row * ELEMENT_BYTES, static_cast<int>(count), static_cast<int>(dim), aligned};
}

__device__ inline float* row_values(const RowVector& x, int64_t b, int64_t h, int64_t row) {
  return static_cast<float*>(x.data) + b * x.batch + h * x.head + row * x.row;
}

// Bytes of the 16-byte chunk that lie inside a row of `dim` elements.
__device__ __forceinline__ int chunk_bytes(int dim, int chunk) {
  return min(max((dim - chunk * 8) * ELEMENT_BYTES, 0), 16);
}

__device__ inline uint4 load_chunk_by_elements(const char* src, int bytes) {
  uint32_t words[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i * ELEMENT_BYTES >= bytes) continue;
    const uint32_t bits = *reinterpret_cast<const uint16_t*>(src + i * ELEMENT_BYTES);
    words[i / 2] |= bits << (i % 2 * 16);
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline void store_chunk_by_elements(char* dst, const uint4& chunk, int bytes) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (i * ELEMENT_BYTES >= bytes) continue;
    const uint32_t bits = words[i / 2] >> (i % 2 * 16);
    *reinterpret_cast<uint16_t*>(dst + i * ELEMENT_BYTES) = static_cast<uint16_t>(bits);
  }
}

template <int DIM>
struct Tile {
  static constexpr int CHUNKS = DIM / 8;
  static constexpr int ROW_BYTES = DIM * ELEMENT_BYTES;
  using Layout = Swizzle<CHUNKS>;
  // Consecutive lanes that move one row: what they touch at a time is a whole number of 64 bytes,
  // and a thread's chunks keep their swizzled place from step to step.
  static constexpr int LANES = Layout::GROUP;
};

// Rows [begin, begin + ROWS) of x into a tile; rows and elements that do not exist become 0.
// Aligned rows arrive in the background; to be committed and waited for.
template <int DIM, int ROWS, int THREADS>
__device__ __forceinline__ void load_tile(uint32_t tile, const RowsInMemory& x, int begin) {
  using T = Tile<DIM>;
  constexpr int AT_ONCE = THREADS / T::LANES, STEPS = (ROWS + AT_ONCE - 1) / AT_ONCE;
  static_assert(AT_ONCE % 8 == 0, "the swizzle repeats every 8 rows");
  const int lane = threadIdx.x % T::LANES, first = threadIdx.x / T::LANES;
  if (ROWS < AT_ONCE && first >= ROWS) return;
  static_assert(ROWS < AT_ONCE || ROWS % AT_ONCE == 0, "no step is left half done");
  const uint32_t dst = tile + T::Layout::offset(first, lane);
  const char* src = x.row(begin + first) + lane * 16;
  if (x.aligned) {
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      const bool exists = begin + first + step * AT_ONCE < x.count;
#pragma unroll
      for (int group = 0; group < T::CHUNKS / T::LANES; ++group) {
        const int bytes = exists ? chunk_bytes(x.dim, lane + group * T::LANES) : 0;
        ptx::copy_async_16(dst + step * AT_ONCE * T::ROW_BYTES + group * T::LANES * 16,
                           src + group * T::LANES * 16, bytes);
      }
      src += AT_ONCE * x.stride;
    }
    return;
  }
#pragma unroll 1
  for (int step = 0; step < STEPS; ++step) {
    const bool exists = begin + first + step * AT_ONCE < x.count;
#pragma unroll 1
    for (int group = 0; group < T::CHUNKS / T::LANES; ++group) {
      const int bytes = exists ? chunk_bytes(x.dim, lane + group * T::LANES) : 0;
      ptx::store_shared(dst + step * AT_ONCE * T::ROW_BYTES + group * T::LANES * 16,
                        load_chunk_by_elements(src + group * T::LANES * 16, bytes));
    }
    src += AT_ONCE * x.stride;
  }
}

// Zeros in rows [begin, begin + rows) of x, as far as they exist; all threads of a block together.
template <int THREADS>
__device__ inline void clear_rows(const RowsInMemory& x, int begin, int rows) {
  const int end = min(begin + rows, x.count);
  for (int row = begin + static_cast<int>(threadIdx.x) / 32; row < end; row += THREADS / 32) {
    uint16_t* elements = reinterpret_cast<uint16_t*>(x.row(row));
    for (int d = threadIdx.x % 32; d < x.dim; d += 32) elements[d] = 0;
  }
}

// Address of a fragment in a tile for one lane: where the lane's row begins, swizzled for chunk
// `half`; at() moves on by 16 columns, which is another exclusive or.
template <int DIM>
struct FragmentAddress {
  static constexpr int STEPS_PER_GROUP = Tile<DIM>::Layout::GROUP / 2;
  uint32_t base;

  __device__ __forceinline__ FragmentAddress(uint32_t tile, int row, int half)
      : base(tile + Tile<DIM>::Layout::offset(row, half)) {}
  // At the beginning of a loop: what at() makes of the base is then worked out again in each step
  // instead of being kept in registers through the loop.
  __device__ __forceinline__ void start_step() { base = ptx::hidden(base); }
  // `row`: a constant multiple of 16, `step`: a constant number of 16 columns.
  __device__ __forceinline__ uint32_t at(int row, int step) const {
    return (base ^ (step % STEPS_PER_GROUP * 32)) + row * Tile<DIM>::ROW_BYTES +
           step / STEPS_PER_GROUP * Tile<DIM>::Layout::GROUP * 16;
  }
};

// Of the first operand (rows x depth), and of a second one that lies with its depth as rows, loaded
// transposed: matrices 0 and 1 are rows 0 - 7 and 8 - 15, matrices 2 and 3 the next 8 columns.
template <int DIM>
__device__ __forceinline__ FragmentAddress<DIM> fragment_by_rows(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return {tile, lane % 16, lane / 16};
}

// Of a second operand that lies with its columns as rows: matrices 0 and 1 are the two halves of
// the depth of the first 8 columns, matrices 2 and 3 those of the next 8.
template <int DIM>
__device__ __forceinline__ FragmentAddress<DIM> fragment_by_columns(uint32_t tile) {
  const int lane = threadIdx.x % 32;
  return {tile, lane % 8 + lane / 16 * 8, lane / 8 % 2};
}

template <int M, int N>
__device__ __forceinline__ void clear(float (&acc)[M][N][4]) {
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[m][n][e] = 0.0f;
    }
  }
}

// acc (16 M x 8 N) = A B^T: A are this warp's rows of a tile, B all 8 N rows of another; the depth
// is DIM.
template <class Element, int DIM, int M, int N>
__device__ __forceinline__ void multiply_tiles(float (&acc)[M][N][4], const FragmentAddress<DIM>& A,
                                               const FragmentAddress<DIM>& B) {
  clear(acc);
#pragma unroll
  for (int k = 0; k < DIM / 16; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) ptx::load_matrix_x4(a[m], A.at(m * 16, k));
#pragma unroll
    for (int n = 0; n < N / 2; ++n) {
      uint32_t b[4];
      ptx::load_matrix_x4(b, B.at(n * 16, k));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        ptx::mma_m16n8k16<Element>(acc[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_m16n8k16<Element>(acc[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// acc (16 M x DIM) += P B: P (16 M x 8 N) as a product left it, rounded to 16 bits; B are the 8 N
// rows of a tile. The columns that a thread holds of two neighbouring tiles of a result are those
// that it has to hold of a first operand, so P never leaves the registers.
template <class Element, int DIM, int M, int N>
__device__ __forceinline__ void accumulate_product(float (&acc)[M][DIM / 8][4],
                                                   const float (&P)[M][N][4],
                                                   const FragmentAddress<DIM>& B) {
#pragma unroll
  for (int k = 0; k < N / 2; ++k) {
    uint32_t a[M][4];
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float (&p)[4] = P[m][2 * k + i / 2];
        a[m][i] = pack<Element>(p[i % 2 * 2], p[i % 2 * 2 + 1]);
      }
    }
#pragma unroll
    for (int n = 0; n < DIM / 16; ++n) {
      uint32_t b[4];
      ptx::load_matrix_x4_transposed(b, B.at(k * 16, n));
#pragma unroll
      for (int m = 0; m < M; ++m) {
        ptx::mma_m16n8k16<Element>(acc[m][2 * n], a[m], b[0], b[1]);
        ptx::mma_m16n8k16<Element>(acc[m][2 * n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// acc, rounded, to rows [begin, begin + 16 M) of `out`, of which x.count exist. It takes the way
// through `tile`, 16 M rows of shared memory that only this warp uses, so that whole chunks are
// written.
template <class Element, int DIM, int M>
__device__ __forceinline__ void store_rows(const float (&acc)[M][DIM / 8][4], uint32_t tile,
                                           const RowsInMemory& out, int begin) {
  using T = Tile<DIM>;
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  __syncwarp();  // all lanes have read what this overwrites
#pragma unroll
  for (int m = 0; m < M; ++m) {
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = m * 16 + half * 8 + g;
        ptx::store_shared(tile + T::Layout::offset(row, n) + t * 4,
                          pack<Element>(acc[m][n][half * 2], acc[m][n][half * 2 + 1]));
      }
    }
  }
  __syncwarp();
  constexpr int AT_ONCE = 32 / T::LANES;
#pragma unroll 1
  for (int row = lane / T::LANES; row < 16 * M; row += AT_ONCE) {
    if (begin + row >= out.count) break;
#pragma unroll 1
    for (int chunk = lane % T::LANES; chunk < T::CHUNKS; chunk += T::LANES) {
      const uint4 value = ptx::load_shared_16(tile + T::Layout::offset(row, chunk));
      char* dst = out.row(begin + row) + chunk * 16;
      const int bytes = chunk_bytes(out.dim, chunk);
      if (out.aligned && bytes == 16) {
        *reinterpret_cast<uint4*>(dst) = value;
      } else {
        store_chunk_by_elements(dst, value, bytes);
      }
    }
  }
}

}  // namespace fused_attention::cuda::sm80
