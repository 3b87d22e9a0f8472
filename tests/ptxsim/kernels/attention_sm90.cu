// Attention of 64 queries a block, head dim 64, bfloat16: a producer warpgroup that loads by TMA
// through a ring of two stages, a consumer warpgroup that multiplies by wgmma, and a TMA store.
// `fault` chooses a mistake; tests/test_mutations_sm90.py wants each of them found.
#include "sm90.cuh"

using namespace sm90;

namespace {

constexpr int TILE = 64, TILE_BYTES = TILE * 128, STAGES = 2;

enum Fault {
  NONE,
  FULL_PARITY,
  EMPTY_PARITY,
  FEWER_BYTES,
  MORE_BYTES,
  EMPTY_COUNT,
  ARRIVE_TWICE,
  ARRIVE_EARLY,
  STAGE,
  K_STEP,
  DESCRIPTOR,
  MASK_EDGE,
  SCALE,
  ROW_SUM,
  COORDINATE,
  SWIZZLE_ROW,
  BARRIER_THREADS,
  SKIP_WARP,
  NO_RESCALE,
};

struct Arguments {
  int keys;
  float scale;
  int fault;
};

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

struct Barriers {
  uint32_t query, full[STAGES], empty[STAGES];

  __device__ explicit Barriers(uint32_t at) : query(at) {
    for (int s = 0; s < STAGES; ++s) {
      full[s] = at + 8 + s * 8;
      empty[s] = at + 8 + (STAGES + s) * 8;
    }
  }
};

}  // namespace

extern "C" __global__ void __launch_bounds__(256, 1)
    attention_sm90(const __grid_constant__ TensorMap query, const __grid_constant__ TensorMap key,
                   const __grid_constant__ TensorMap value, const __grid_constant__ TensorMap out,
                   const Arguments args) {
  extern __shared__ __align__(1024) unsigned char shared[];
  const uint32_t Q = shared_address(shared), K = Q + TILE_BYTES, V = K + STAGES * TILE_BYTES;
  const Barriers barriers(V + STAGES * TILE_BYTES);
  const int thread = threadIdx.x, fault = args.fault;
  const int steps = (args.keys + TILE - 1) / TILE;
  const int begin = blockIdx.x * TILE, head = blockIdx.y;

  if (thread == 0) {
    init_barrier(barriers.query, 1);
    for (int s = 0; s < STAGES; ++s) {
      init_barrier(barriers.full[s], 1);
      init_barrier(barriers.empty[s], fault == EMPTY_COUNT ? 5 : 4);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (thread >= 128) {  // the producer
    asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
    if (thread != 128) return;
    expect_bytes(barriers.query, TILE_BYTES);
    load_tile(Q, &query, barriers.query, 0, begin + (fault == COORDINATE), head);
    for (int step = 0; step < steps; ++step) {
      const int stage = step % STAGES;
      if (step >= STAGES) {
        wait(barriers.empty[stage], (step / STAGES & 1) ^ (fault == EMPTY_PARITY ? 0 : 1));
      }
      const int change = fault == FEWER_BYTES ? -128 : fault == MORE_BYTES ? 128 : 0;
      expect_bytes(barriers.full[stage], 2 * TILE_BYTES + change);
      load_tile(K + stage * TILE_BYTES, &key, barriers.full[stage], 0, step * TILE, head);
      load_tile(V + stage * TILE_BYTES, &value, barriers.full[stage], 0, step * TILE, head);
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
  const int warp = thread / 32, lane = thread % 32;
  const float scale = args.scale * (fault == SCALE ? 1.0f : 1.4426950408889634f);
  float O[32], max[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) O[i] = 0.0f;
  wait(barriers.query, 0);
  for (int step = 0; step < steps; ++step) {
    const int stage = step % STAGES;
    const int used = fault == STAGE ? stage ^ 1 : stage;
    wait(barriers.full[stage], (step / STAGES & 1) ^ (fault == FULL_PARITY ? 1 : 0));
    if (fault == ARRIVE_EARLY && lane == 0) arrive(barriers.empty[stage]);
    float S[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int at = fault == K_STEP ? 0 : k * 32;
      const uint32_t stride = fault == DESCRIPTOR ? 512 : 1024;
      multiply(S, descriptor(Q + k * 32, 0, 1024),
               descriptor(K + used * TILE_BYTES + at, 0, stride), k != 0);
    }
    wgmma_wait(S);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int column = step * TILE + i / 4 * 8 + lane % 4 * 2 + i % 2;
      if (column >= args.keys + (fault == MASK_EDGE)) S[i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = max[half];
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i / 2 % 2 == half) top = fmaxf(top, S[i]);
      }
      top = quad_max(top);
      const float alpha = fault == NO_RESCALE ? 1.0f : exp2_fast((max[half] - top) * scale);
      max[half] = top;
      sum[half] *= alpha;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i / 2 % 2 != half) continue;
        S[i] = exp2_fast((S[i] - top) * scale);
        sum[half] += S[i];
        O[i] *= alpha;
      }
    }
    uint32_t P[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int e = 0; e < 4; ++e) P[k][e] = pack(S[8 * k + 2 * e], S[8 * k + 2 * e + 1]);
    }
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply(O, P[k], descriptor(V + used * TILE_BYTES + k * 2048, 1024, 1024));
    }
    wgmma_wait(O);
    if (lane == 0 && fault != ARRIVE_EARLY) arrive(barriers.empty[stage]);
    if (lane == 0 && fault == ARRIVE_TWICE) arrive(barriers.empty[stage]);
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = fault == ROW_SUM ? sum[half] : quad_sum(sum[half]);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (i / 2 % 2 == half) O[i] /= total;
    }
  }
  const int row = warp * 16 + lane % 16;
#pragma unroll
  for (int c = 0; c < 4; ++c) {  // over Q, which has been used; 16 columns a step
    const int unit = (c * 2 + lane / 16) ^ (fault == SWIZZLE_ROW ? 0 : row % 8);
    if (fault == SKIP_WARP && warp == 3) continue;
    store_matrices(Q + row * 128 + unit * 16, pack(O[8 * c], O[8 * c + 1]),
                   pack(O[8 * c + 2], O[8 * c + 3]), pack(O[8 * c + 4], O[8 * c + 5]),
                   pack(O[8 * c + 6], O[8 * c + 7]));
  }
  fence_async();
  sync_threads(1, fault == BARRIER_THREADS ? 96 : 128);
  if (thread == 0) {
    store_tile(&out, Q, 0, begin, head);
    commit_stores();
    wait_stores();
  }
}

// Adds `count` numbers of every block to `sums`, through shared memory and a bulk reduction.
extern "C" __global__ void __launch_bounds__(32)
    sum_sm90(const float* __restrict__ numbers, float* __restrict__ sums, int count) {
  __shared__ __align__(128) float tile[256];
  __shared__ uint64_t barrier;
  const uint32_t at = shared_address(&barrier), to = shared_address(tile);
  if (threadIdx.x == 0) {
    init_barrier(at, 1);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncwarp();
  if (threadIdx.x == 0) {
    expect_bytes(at, count * 4);
    load_bytes(to, numbers + blockIdx.x * count, count * 4, at);
  }
  wait(at, 0);
  for (int i = threadIdx.x; i < count; i += 32) tile[i] *= 2.0f;
  fence_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    add_floats(sums, to, count * 4);
    commit_stores();
    wait_stores();
  }
}
