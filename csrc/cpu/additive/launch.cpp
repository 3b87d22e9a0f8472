#include "launch.h"

#include <cstring>
#include <vector>

#include "cpu/gradient_sums.h"
#include "kernels.h"

// Chooses the instruction set, cuts additive attention into blocks of queries, and hands them to
// the threads.
namespace fused_attention::cpu {
namespace {

const AdditiveKernels* const TIERS[] = {
#if defined(__x86_64__)
    &additive_avx512,
    &additive_avx2,
#endif
    &additive_portable,
};

// nullptr: this build or this machine does not have it. A tanh is no product of bf16 pairs or
// tiles: the tiers that have those run the best without.
const AdditiveKernels* find_tier_of_additive(const char* isa) {
  if (std::strncmp(isa, "amx", 3) == 0 || std::strncmp(isa, "avx512", 6) == 0) {
    isa = TIERS[0]->name;
  }
  for (const AdditiveKernels* tier : TIERS) {
    if (std::strcmp(tier->name, isa) == 0) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

Status unknown_tier(const char* isa) {
  return Status::error("instruction set '%s' is not available here (available: %s)", isa,
                       available_isas());
}

const AdditiveKernelSet& kernel_set(const AdditiveKernels& tier, DType dtype) {
  return dtype == DType::FLOAT64 ? tier.fp64 : tier.fp32;
}

ThreadPool limit_threads(const AttentionParams& p, const ThreadPool& pool) {
  constexpr double TANH = 4;  // multiplications that take as long
  return useful_threads(static_cast<double>(p.batch * p.heads_q) * static_cast<double>(p.len_q) *
                            static_cast<double>(p.len_k) *
                            (TANH * static_cast<double>(p.head_dim) + p.value_dim),
                        pool);
}

// dK and dV may grow where they will stand, if that is of the accumulators' type and every row is
// whole vectors. They then need no memory of their own, which would be as much again.
bool sum_in_place(BackwardParams& params) {
  constexpr int64_t ROW_ALIGN = 16;  // of tiles.h
  const AttentionParams& p = params.forward;
  if (p.dtype == DType::BFLOAT16 || p.dtype == DType::FLOAT16) return false;
  if (p.head_dim % ROW_ALIGN != 0 || p.value_dim % ROW_ALIGN != 0) return false;
  if (params.grad_key.data == nullptr || params.grad_value.data == nullptr) return false;
  params.key_sum = params.grad_key;
  params.value_sum = params.grad_value;
  return true;
}

void clear_sums(const BackwardParams& params, const ThreadPool& pool) {
  const AttentionParams& p = params.forward;
  const int64_t size = p.dtype == DType::FLOAT64 ? 8 : 4;
  for_each_item(pool, p.batch * p.heads_q, 0, [&](int64_t item, void*) {
    const auto clear = [&](const Operand& x, int64_t dim) {
      char* at = static_cast<char*>(x.data) +
                 (item / p.heads_q * x.batch + item % p.heads_q * x.head) * size;
      for (int64_t row = 0; row < p.len_k; ++row) {
        std::memset(at + row * x.row * size, 0, dim * size);
      }
    };
    clear(params.key_sum, p.head_dim);
    clear(params.value_sum, p.value_dim);
  });
}

// grad_v is the sum of what the blocks of queries of all batch rows left, in their order.
template <class T>
void sum_parts(const AdditiveBackwardParams& params, int64_t q_blocks) {
  const AttentionParams& p = params.attention.forward;
  const T* parts = static_cast<const T*>(params.v_parts);
  std::vector<double> sum(p.head_dim);
  for (int64_t h = 0; h < p.heads_q; ++h) {
    sum.assign(p.head_dim, 0.0);
    for (int64_t b = 0; b < p.batch; ++b) {
      for (int64_t block = 0; block < q_blocks; ++block) {
        const T* part = parts + ((b * p.heads_q + h) * q_blocks + block) * p.head_dim;
        for (int64_t d = 0; d < p.head_dim; ++d) sum[d] += part[d];
      }
    }
    T* grad = static_cast<T*>(params.grad_v) + h * p.head_dim;
    for (int64_t d = 0; d < p.head_dim; ++d) grad[d] = static_cast<T>(sum[d]);
  }
}

}  // namespace

Status launch_additive_forward(const AdditiveParams& params, const char* isa,
                               const ThreadPool& pool) {
  const AdditiveKernels* tier = find_tier_of_additive(isa);
  if (tier == nullptr) return unknown_tier(isa);
  const AttentionParams& p = params.attention;
  const AdditiveKernelSet& kernels = kernel_set(*tier, p.dtype);
  const int64_t q_blocks = blocks(p.len_q, tier->block_q);
  // Last blocks of a head first: under a causal mask they are the longest.
  const auto body = [&](int64_t item, void* scratch) {
    const int64_t head = item / q_blocks, block = q_blocks - 1 - item % q_blocks;
    kernels.forward(params, head / p.heads_q, head % p.heads_q, block * tier->block_q, scratch);
  };
  return for_each_item(limit_threads(p, pool), p.batch * p.heads_q * q_blocks,
                       kernels.forward_bytes(params), body);
}

Status launch_additive_backward(const AdditiveBackwardParams& params, const char* isa,
                                const ThreadPool& pool) {
  const AdditiveKernels* tier = find_tier_of_additive(isa);
  if (tier == nullptr) return unknown_tier(isa);
  AdditiveBackwardParams all = params;
  const AttentionParams& p = all.attention.forward;
  std::unique_ptr<GradientSums> sums;
  if (!sum_in_place(all.attention)) sums = std::make_unique<GradientSums>(all.attention);
  if (all.attention.key_sum.data == nullptr) {
    return Status::error("out of memory: no sums of gradients");
  }
  const AdditiveKernelSet& kernels = kernel_set(*tier, p.dtype);
  const ThreadPool useful = limit_threads(p, pool);
  const BackwardOrder order(p, tier->block_q, tier->block_kv, useful.threads);
  std::vector<int32_t> turns(p.batch * p.heads_q * order.key_blocks, 0);
  const int64_t size = p.dtype == DType::FLOAT64 ? 8 : 4, part_bytes = p.head_dim * size;
  const std::unique_ptr<char[]> parts(new char[order.count() * part_bytes]);
  all.v_parts = parts.get();
  const auto body = [&](int64_t item, void* scratch) {
    const BackwardOrder::Block x = order.block(item);
    const int64_t part = (x.b * p.heads_q + x.h) * order.q_blocks + x.q_begin / tier->block_q;
    kernels.backward(all, x.b, x.h, x.q_begin, turns.data() + x.turns,
                     parts.get() + part * part_bytes, scratch);
  };
  const int64_t scratch = kernels.backward_bytes(all);
  if (sums == nullptr) clear_sums(all.attention, useful);
  Status status = for_each_item(useful, order.count(), scratch, body);
  if (!status.ok) return status;
  status = for_each_item(useful, p.batch * p.heads_q, scratch, [&](int64_t item, void* memory) {
    for (int64_t row = 0; row < p.len_k; ++row) {
      kernels.finish_key_row(all, item / p.heads_q, item % p.heads_q, row, memory);
    }
  });
  if (!status.ok || all.grad_v == nullptr) return status;
  (p.dtype == DType::FLOAT64 ? sum_parts<double> : sum_parts<float>)(all, order.q_blocks);
  return status;
}

}  // namespace fused_attention::cpu
