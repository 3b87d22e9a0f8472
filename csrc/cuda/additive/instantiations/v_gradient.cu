#include "../arguments.h"
#include "../config.h"
#include "../kernels.h"

namespace fused_attention::cuda::additive {

// dv of REDUCE_COLUMNS columns of a head: each warp adds every WARPS-th part, then the first all
// warps' sums.
__global__ void __launch_bounds__(THREADS)
    v_gradient_kernel(const __grid_constant__ BackwardArguments args) {
  __shared__ float sums[WARPS][REDUCE_COLUMNS];
  const AttentionParams& p = args.params.attention.forward;
  const int dim = static_cast<int>(p.head_dim), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int column_blocks = (dim + REDUCE_COLUMNS - 1) / REDUCE_COLUMNS;
  const int head = blockIdx.x / column_blocks;
  const int column = blockIdx.x % column_blocks * REDUCE_COLUMNS + lane;
  const int64_t parts = p.batch * args.query_order.blocks * WARPS;
  float sum = 0.0f;
  for (int64_t part = warp; column < dim && part < parts; part += WARPS) {
    sum += args.v_sums[(head * parts + part) * args.v_sums_width + column];
  }
  sums[warp][lane] = sum;
  __syncthreads();  // the sums of all warps are there
  if (warp != 0 || column >= dim) return;
#pragma unroll
  for (int other = 1; other < WARPS; ++other) sum += sums[other][lane];
  static_cast<float*>(args.params.grad_v)[int64_t{head} * dim + column] = sum;
}

const void* v_gradient_kernel_address() {
  return reinterpret_cast<const void*>(&v_gradient_kernel);
}

}  // namespace fused_attention::cuda::additive
