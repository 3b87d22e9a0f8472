#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"
#include "work.h"

// Chooses the instruction set, cuts the problem into items and hands them to the threads.
namespace fused_attention::cpu {
namespace {

// Tiers of this build, best first.
const Kernels* const TIERS[] = {
#if defined(__x86_64__)
    &kernels_avx512,
    &kernels_avx2,
#endif
    &kernels_portable,
};

const Kernels* find_tier(const char* isa) {
  for (const Kernels* tier : TIERS) {
    if (std::strcmp(tier->name, isa) == 0) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

int64_t blocks(int64_t length, int64_t block) { return (length + block - 1) / block; }

ThreadPool limit_threads(const AttentionParams& p, ThreadPool pool) {
  const double work = static_cast<double>(p.batch) * static_cast<double>(p.heads_q) *
                      static_cast<double>(p.len_q) * static_cast<double>(p.len_k) *
                      static_cast<double>(p.head_dim + p.value_dim);
  return useful_threads(work, pool);
}

const KernelSet& kernel_set(const Kernels& tier, DType dtype) {
  return dtype == DType::FLOAT64 ? tier.fp64 : tier.fp32;
}

Status check(const AttentionParams& p, const Kernels* tier, const char* isa) {
  if (tier == nullptr) {
    return Status::error("instruction set '%s' is not available here (available: %s)", isa,
                         available_isas());
  }
  if (p.heads_kv <= 0 || p.heads_q % p.heads_kv != 0) {
    return Status::error("%lld query heads do not divide into %lld key/value heads",
                         static_cast<long long>(p.heads_q), static_cast<long long>(p.heads_kv));
  }
  if (p.cu_seqlens_q == nullptr) return Status{};
  if (p.cu_seqlens_q[0] != 0 || p.cu_seqlens_k[0] != 0) {
    return Status::error("cu_seqlens: must start at 0");
  }
  for (int64_t b = 0; b < p.batch; ++b) {
    if (p.cu_seqlens_q[b + 1] < p.cu_seqlens_q[b] || p.cu_seqlens_q[b + 1] > p.total_q ||
        p.cu_seqlens_k[b + 1] < p.cu_seqlens_k[b] || p.cu_seqlens_k[b + 1] > p.total_k) {
      return Status::error("cu_seqlens: sequence %lld does not lie inside the packed tensors",
                           static_cast<long long>(b));
    }
  }
  return Status{};
}

// len_q and len_k of a packed batch are derived here, never trusted.
AttentionParams with_longest(const AttentionParams& params) {
  AttentionParams p = params;
  if (p.cu_seqlens_q == nullptr) return p;
  p.len_q = p.len_k = 0;
  for (int64_t b = 0; b < p.batch; ++b) {
    p.len_q = std::max<int64_t>(p.len_q, p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b]);
    p.len_k = std::max<int64_t>(p.len_k, p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b]);
  }
  return p;
}

// Decoding with grouped heads: the one query of each head of a group becomes a row of one block, so
// that the group's keys and values are read once.
AttentionParams with_heads_as_rows(AttentionParams p) {
  const int64_t group = p.heads_kv > 0 ? p.heads_q / p.heads_kv : 1;
  const bool rows_alike = p.bias.data == nullptr && p.alibi_slopes == nullptr &&
                          p.sinks == nullptr && p.dropout.threshold == 0;
  if (p.cu_seqlens_q != nullptr || p.len_q != 1 || group == 1 || !rows_alike) return p;
  for (Operand* x : {&p.query, &p.out}) *x = {x->data, x->batch, x->head * group, x->head};
  p.lse = {p.lse.data, p.lse.batch, p.lse.head * group, p.lse.head};
  p.len_q = group;
  p.heads_q = p.heads_kv;
  p.rows_share_position = true;
  return p;
}

int64_t element_size(DType dtype) {
  return dtype == DType::FLOAT64 ? 8 : dtype == DType::FLOAT32 ? 4 : 2;
}

template <class T>
void fill_row_values(const RowVector& x, const AttentionParams& p, int64_t row, T value) {
  for (int64_t h = 0; h < p.heads_q; ++h) {
    static_cast<T*>(x.data)[h * x.head + row * x.row] = value;
  }
}

// Rows of a packed tensor beyond the last sequence belong to nobody: zeros, and `value` for the
// statistics. They are written like all others, so that no stale memory leaves a call.
void clear_tail(const AttentionParams& p, const Operand& rows, int64_t dim,
                const RowVector& statistics, double value) {
  if (p.cu_seqlens_q == nullptr) return;
  for (int64_t row = p.cu_seqlens_q[p.batch]; row < p.total_q; ++row) {
    for (int64_t h = 0; h < p.heads_q; ++h) {
      char* at =
          static_cast<char*>(rows.data) + (h * rows.head + row * rows.row) * element_size(p.dtype);
      std::memset(at, 0, dim * element_size(p.dtype));
    }
    if (p.dtype == DType::FLOAT64) {
      fill_row_values<double>(statistics, p, row, value);
    } else {
      fill_row_values<float>(statistics, p, row, static_cast<float>(value));
    }
  }
}

}  // namespace

void yield_thread() { sched_yield(); }

const char* available_isas() {
  static const std::string names = [] {
    std::string list;
    for (const Kernels* tier : TIERS) {
      if (tier->supported()) list += (list.empty() ? "" : ",") + std::string(tier->name);
    }
    return list;
  }();
  return names.c_str();
}

Status launch_forward(const AttentionParams& params, const char* isa, const ThreadPool& pool) {
  const Kernels* tier = find_tier(isa);
  if (Status status = check(params, tier, isa); !status.ok) return status;
  const AttentionParams p = with_heads_as_rows(with_longest(params));
  const KernelSet& kernels = kernel_set(*tier, p.dtype);
  clear_tail(p, p.out, p.value_dim, p.lse, -INFINITY);
  const int64_t heads = p.batch * p.heads_q, q_blocks = blocks(p.len_q, tier->block_q);
  // Last blocks of queries first: under a causal mask they are the longest, and a long item that
  // starts last leaves the other threads idle.
  const auto body = [&](int64_t item, void* scratch) {
    const int64_t q_begin = (q_blocks - 1 - item / heads) * tier->block_q;
    const int64_t b = item % heads / p.heads_q, h = item % p.heads_q;
    if (q_begin < sequence_of(p, b).len_q) kernels.forward(p, b, h, q_begin, scratch);
  };
  return for_each_item(limit_threads(p, pool), heads * q_blocks, kernels.forward_bytes(p), body);
}

Status launch_backward(const BackwardParams& params, const char* isa, const ThreadPool& pool) {
  const Kernels* tier = find_tier(isa);
  if (Status status = check(params.forward, tier, isa); !status.ok) return status;
  BackwardParams all = params;
  all.forward = with_longest(params.forward);
  const AttentionParams& p = all.forward;
  const KernelSet& kernels = kernel_set(*tier, p.dtype);
  const ThreadPool useful = limit_threads(p, pool);
  clear_tail(p, all.grad_query, p.head_dim, all.delta, 0.0);
  const int64_t q_blocks = blocks(p.len_q, tier->block_q);
  const int64_t key_blocks = blocks(p.len_k, tier->block_kv);
  const int64_t group = p.heads_q / p.heads_kv, kv_heads = p.batch * p.heads_kv;
  std::vector<int32_t> turns(kv_heads * key_blocks, 0);

  // As many key/value heads side by side as there are threads; inside such a set the blocks of
  // queries in the order of their turns (see Turnstile), one of each head after the other, so
  // that a thread tends to stay with a head and nobody waits for work that has not been claimed.
  const int64_t side_by_side =
      std::min<int64_t>(std::max(useful.threads, 1), std::max<int64_t>(kv_heads, 1));
  const int64_t per_head = group * q_blocks;
  const auto body = [&](int64_t item, void* scratch) {
    const int64_t set = item / (side_by_side * per_head), in_set = item % (side_by_side * per_head);
    const int64_t width = std::min(side_by_side, kv_heads - set * side_by_side);
    const int64_t kv_head = set * side_by_side + in_set % width, turn = in_set / width;
    const int64_t b = kv_head / p.heads_kv, h_kv = kv_head % p.heads_kv;
    const int64_t h = h_kv * group + turn / q_blocks, q_begin = turn % q_blocks * tier->block_q;
    if (q_begin >= sequence_of(p, b).len_q) return;
    kernels.backward(all, b, h, q_begin, turns.data() + kv_head * key_blocks, scratch);
  };
  const int64_t scratch = kernels.backward_bytes(p);
  Status status = for_each_item(useful, kv_heads * per_head, scratch, body);
  if (!status.ok) return status;

  const int64_t rows = p.cu_seqlens_q != nullptr ? p.total_k : p.len_k;
  const int64_t batches = p.cu_seqlens_q != nullptr ? 1 : p.batch;
  status = for_each_item(useful, batches * p.heads_kv, 0, [&](int64_t item, void*) {
    for (int64_t row = 0; row < rows; ++row) {
      kernels.finish_key_row(all, item / p.heads_kv, item % p.heads_kv, row);
    }
  });
  if (!status.ok || all.grad_bias.data == nullptr) return status;
  return for_each_item(pool, kernels.bias_tiles(all), scratch, [&](int64_t item, void* memory) {
    kernels.bias_gradient(all, item, memory);
  });
}

}  // namespace fused_attention::cpu
