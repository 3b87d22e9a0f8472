#pragma once

#include "backward.cuh"
#include "query_block.cuh"

namespace fused_attention::cuda::sm80 {

// One chunk of 8 elements of a row as floats.
template <class Element>
__device__ inline void load_floats(const RowsInMemory& x, int row, int chunk, float (&values)[8]) {
  const int bytes = chunk_bytes(x.dim, chunk);
  const char* src = x.row(row) + chunk * 16;
  const uint4 loaded = x.aligned && bytes == 16 ? *reinterpret_cast<const uint4*>(src)
                                                : load_chunk_by_elements(src, bytes);
  const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    values[i] = to_float<Element>(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
  }
}

// delta of all rows; 0 for queries that see nothing and behind the last sequence.
template <class Element>
__global__ void __launch_bounds__(DELTA_THREADS)
    delta_kernel(const __grid_constant__ BackwardArguments args) {
  const AttentionParams& p = args.params.forward;
  const QueryBlock block(p, args.query_order(blockIdx.x), args.block_q);
  const Sequence& seq = block.seq;
  const int64_t b = block.behind ? 0 : block.b;
  const RowsInMemory out =
      rows_of(p.out, b, block.h, seq.q_start, seq.len_q, p.value_dim, args.aligned_rows);
  const RowsInMemory grad_out = rows_of(args.params.grad_out, b, block.h, seq.q_start, seq.len_q,
                                        p.value_dim, args.aligned_rows);
  const float* lse = row_values(p.lse, b, block.h, seq.q_start);
  float* delta = row_values(args.params.delta, b, block.h, seq.q_start);

  const int lane = threadIdx.x % DELTA_LANES, first = threadIdx.x / DELTA_LANES;
  const int step = block.behind ? static_cast<int>(args.query_order.blocks) * args.block_q
                                : static_cast<int>(seq.len_q);  // one round
  for (int begin = block.begin; begin < seq.len_q; begin += step) {
    const int end = min(begin + args.block_q, static_cast<int>(seq.len_q));
    for (int row = begin + first; row - first < end; row += DELTA_THREADS / DELTA_LANES) {
      const bool live = row < end && !block.behind && lse[row * p.lse.row] != -INFINITY;
      float sum = 0.0f;
      for (int chunk = lane; live && chunk * 8 < p.value_dim; chunk += DELTA_LANES) {
        float x[8], y[8];
        load_floats<Element>(out, row, chunk, x);
        load_floats<Element>(grad_out, row, chunk, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(x[i], y[i], sum);
      }
#pragma unroll
      for (int apart = 1; apart < DELTA_LANES; apart *= 2) {
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, apart);
      }
      if (lane != 0 || row >= end) continue;
      if (live && args.params.grad_lse.data != nullptr) {
        const RowVector& grad_lse = args.params.grad_lse;
        sum -= row_values(grad_lse, b, block.h, seq.q_start)[row * grad_lse.row];
      }
      delta[row * args.params.delta.row] = sum;
    }
  }
}

template <class Element>
const void* delta_kernel_address() {
  return reinterpret_cast<const void*>(&delta_kernel<Element>);
}

}  // namespace fused_attention::cuda::sm80
