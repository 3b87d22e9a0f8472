#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gradient_sums.h"
#include "tile_launch.h"

// Chooses the instruction set, cuts the problem into items and hands them to the threads.
namespace fused_attention::cpu {
namespace {

constexpr int64_t ROWS_TO_FINISH = 512;  // of dK and dV, by one thread
constexpr int64_t FEWEST_QUERIES = 16;   // for blocks of queries; fewer are a step of decoding

// Tiers of this build, best first.
const Kernels* const TIERS[] = {
#if defined(FUSED_ATTENTION_AMX)
    &kernels_amx_fp16,    &kernels_amx_bf16,
#endif
#if defined(__x86_64__)
    &kernels_avx512_bf16, &kernels_avx512,   &kernels_avx2,
#endif
    &kernels_portable,
};

ThreadPool limit_threads(const AttentionParams& p, ThreadPool pool) {
  const double work = static_cast<double>(p.batch) * static_cast<double>(p.heads_q) *
                      static_cast<double>(p.len_q) * static_cast<double>(p.len_k) *
                      static_cast<double>(p.head_dim + p.value_dim);
  return useful_threads(work, pool);
}

// Few queries leave most lanes of a block empty, and a group's heads would each read its keys: that
// is a step of decoding, whose kernels take neither a bias nor dropout.
bool is_decoding(const AttentionParams& p) {
  return p.cu_seqlens_q == nullptr && p.len_q > 0 && p.len_q < FEWEST_QUERIES &&
         p.bias.data == nullptr && p.dropout.threshold == 0;
}

Status forward_as_decoding(const AttentionParams& p, const char* isa, const ThreadPool& pool) {
  DecodeParams step;
  step.attention = p;
  std::vector<int32_t> lengths(p.batch), offsets(p.batch);
  for (int64_t b = 0; b < p.batch; ++b) {
    const Sequence seq = sequence_of(p, b);
    lengths[b] = static_cast<int32_t>(std::max<int64_t>(seq.len_k, 0));
    offsets[b] = static_cast<int32_t>(seq.band.offset);
  }
  step.cache_lengths = lengths.data();
  step.attention.band_offsets = offsets.data();
  step.workspace_bytes = decode_workspace_bytes(step, isa);
  const std::unique_ptr<char[]> workspace(new char[step.workspace_bytes]);
  step.workspace = workspace.get();
  return launch_decode(step, isa, pool);
}

int64_t element_size(DType dtype) {
  return dtype == DType::FLOAT64 ? 8 : dtype == DType::FLOAT32 ? 4 : 2;
}

// Forward works on this many heads at a time: enough that every thread has one and that the last
// blocks of all of them fill the threads evenly, but not more keys and values than stay in a
// core's cache while its blocks of queries come by.
int64_t heads_side_by_side(const AttentionParams& p, int threads) {
  constexpr int64_t CACHE_BYTES = 512 * 1024;
  const int64_t bytes = p.len_k * (p.head_dim + p.value_dim) * element_size(p.dtype);
  const int64_t group = p.heads_q / p.heads_kv;
  const int64_t fitting = bytes > 0 ? CACHE_BYTES / bytes : 1;
  return std::max<int64_t>(threads, 1) * std::max<int64_t>(fitting * group, 1);
}

template <class T>
void fill_row_values(const RowVector& x, const AttentionParams& p, int64_t row, T value) {
  for (int64_t h = 0; h < p.heads_q; ++h) {
    static_cast<T*>(x.data)[h * x.head + row * x.row] = value;
  }
}

// Rows of a packed tensor beyond the last sequence belong to nobody: zeros, like all others
// written, so that no stale memory leaves a call.
void clear_rows(const Operand& rows, int64_t begin, int64_t end, int64_t heads, int64_t bytes,
                int64_t element) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t h = 0; h < heads; ++h) {
      char* at = static_cast<char*>(rows.data) + (h * rows.head + row * rows.row) * element;
      std::memset(at, 0, bytes);
    }
  }
}

// Those of a tensor of queries, and `value` in the statistics.
void clear_query_tail(const AttentionParams& p, const Operand& rows, int64_t dim,
                      const RowVector& statistics, double value) {
  if (p.cu_seqlens_q == nullptr) return;
  const int64_t begin = p.cu_seqlens_q[p.batch], element = element_size(p.dtype);
  clear_rows(rows, begin, p.total_q, p.heads_q, dim * element, element);
  for (int64_t row = begin; row < p.total_q; ++row) {
    if (p.dtype == DType::FLOAT64) {
      fill_row_values<double>(statistics, p, row, value);
    } else {
      fill_row_values<float>(statistics, p, row, static_cast<float>(value));
    }
  }
}

void clear_key_tail(const BackwardParams& params) {
  const AttentionParams& p = params.forward;
  if (p.cu_seqlens_k == nullptr) return;
  const int64_t begin = p.cu_seqlens_k[p.batch], element = element_size(p.dtype);
  clear_rows(params.grad_key, begin, p.total_k, p.heads_kv, p.head_dim * element, element);
  clear_rows(params.grad_value, begin, p.total_k, p.heads_kv, p.value_dim * element, element);
}

// dQ, and dK and dV where threads take whole heads, each with sums of its own.
Status backward_on_rows(const BackwardParams& all, const KernelSet& kernels,
                        const BackwardOrder& order, const WholeHeads& heads, int32_t* turns,
                        const ThreadPool& pool) {
  const AttentionParams& p = all.forward;
  const int64_t scratch = HeadSums::behind(kernels.backward_bytes(p));
  const auto run = [&](const BackwardParams& params, const BackwardOrder::Block& x, void* memory) {
    if (x.q_begin >= sequence_of(p, x.b).len_q) return;
    kernels.backward(params, x.b, x.h, x.q_begin, turns + x.turns, memory);
  };
  if (all.key_sum.data != nullptr) {
    return for_each_item(pool, order.count(), scratch,
                         [&](int64_t item, void* memory) { run(all, order.block(item), memory); });
  }
  return heads.for_each(
      pool, scratch + HeadSums::bytes(p), [&](int64_t b, int64_t h_kv, void* memory) {
        const HeadSums sums(all, b, static_cast<char*>(memory) + scratch);
        for (int64_t turn = 0; turn < order.per_head(); ++turn) {
          run(sums.params(), order.block_of_head(b * p.heads_kv + h_kv, turn), memory);
        }
        sums.finish(h_kv, kernels.finish_key_rows);
      });
}

// dK and dV from the sums of all heads.
template <class FinishKeyRows>
Status finish_keys(const BackwardParams& all, const FinishKeyRows& finish_key_rows,
                   const ThreadPool& pool) {
  const AttentionParams& p = all.forward;
  const int64_t rows = p.cu_seqlens_q != nullptr ? p.total_k : p.len_k;
  const int64_t batches = p.cu_seqlens_q != nullptr ? 1 : p.batch;
  const int64_t row_blocks = blocks(rows, ROWS_TO_FINISH);
  return for_each_item(pool, batches * p.heads_kv * row_blocks, 0, [&](int64_t item, void*) {
    const int64_t head = item / row_blocks, begin = item % row_blocks * ROWS_TO_FINISH;
    finish_key_rows(all, head / p.heads_kv, head % p.heads_kv, begin,
                    std::min(begin + ROWS_TO_FINISH, rows));
  });
}

}  // namespace

const Kernels* find_tier(const char* isa) {
  for (const Kernels* tier : TIERS) {
    if (std::strcmp(tier->name, isa) == 0) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

Status check_call(const AttentionParams& p, const char* isa) {
  if (find_tier(isa) == nullptr) {
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

Status launch_forward(const AttentionParams& params, bool backward_follows, const char* isa,
                      const ThreadPool& pool) {
  if (Status status = check_call(params, isa); !status.ok) return status;
  const Kernels* tier = find_tier(isa);
  if (!backward_follows && is_decoding(params)) return forward_as_decoding(params, isa, pool);
  const AttentionParams p = with_longest(params);
  const KernelSet& kernels = kernel_set(*tier, p.dtype);
  clear_query_tail(p, p.out, p.value_dim, p.lse, -INFINITY);
  const ThreadPool useful = limit_threads(p, pool);
  if (const TileKernels* tiles = tile_kernels(*tier, p)) return forward_on_tiles(p, *tiles, useful);
  const int64_t heads = p.batch * p.heads_q, q_blocks = blocks(p.len_q, tier->block_q);
  const int64_t set_heads = heads_side_by_side(p, useful.threads);
  // Last blocks of queries first: under a causal mask they are the longest, and a long item that
  // starts last leaves the other threads idle.
  const auto body = [&](int64_t item, void* scratch) {
    const int64_t set = item / (set_heads * q_blocks), in_set = item % (set_heads * q_blocks);
    const int64_t width = std::min(set_heads, heads - set * set_heads);
    const int64_t head = set * set_heads + in_set % width;
    const int64_t q_begin = (q_blocks - 1 - in_set / width) * tier->block_q;
    const int64_t b = head / p.heads_q, h = head % p.heads_q;
    if (q_begin < sequence_of(p, b).len_q) kernels.forward(p, b, h, q_begin, scratch);
  };
  return for_each_item(useful, heads * q_blocks, kernels.forward_bytes(p), body);
}

Status launch_backward(const BackwardParams& params, const char* isa, const ThreadPool& pool) {
  if (Status status = check_call(params.forward, isa); !status.ok) return status;
  const Kernels* tier = find_tier(isa);
  BackwardParams all = params;
  all.forward = with_longest(params.forward);
  const AttentionParams& p = all.forward;
  const KernelSet& kernels = kernel_set(*tier, p.dtype);
  const TileKernels* tiles = tile_kernels(*tier, p);
  const ThreadPool useful = limit_threads(p, pool);
  const WholeHeads heads(p, useful);
  const bool own_sums = HeadSums::bytes(p) <= HeadSums::MOST_BYTES && heads.enough() &&
                        (tiles == nullptr || tiles_take_whole_heads(p, *tiles, useful));
  std::optional<GradientSums> sums;
  if (!own_sums) {
    sums.emplace(all);
    if (all.key_sum.data == nullptr) return Status::error("out of memory: no sums of gradients");
  }
  clear_query_tail(p, all.grad_query, p.head_dim, all.delta, 0.0);
  const BackwardOrder order(p, tier->block_q, tier->block_kv, useful.threads);
  std::vector<int32_t> turns(p.batch * p.heads_kv * order.key_blocks, 0);
  Status status = tiles != nullptr
                      ? backward_on_tiles(all, *tiles, order, turns.data(), useful)
                      : backward_on_rows(all, kernels, order, heads, turns.data(), useful);
  if (!status.ok) return status;
  if (own_sums) {
    clear_key_tail(all);
  } else {
    status = finish_keys(all, tiles != nullptr ? tiles->finish_key_rows : kernels.finish_key_rows,
                         useful);
  }
  if (!status.ok || all.grad_bias.data == nullptr) return status;
  return for_each_item(
      pool, kernels.bias_tiles(all), kernels.backward_bytes(p),
      [&](int64_t item, void* memory) { kernels.bias_gradient(all, item, memory); });
}

}  // namespace fused_attention::cpu
