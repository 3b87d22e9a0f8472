#include "fused_attention/launch.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

// Chooses the instruction set, cuts the problem into items and hands them to the threads.
namespace fused_attention::cpu {
namespace {

// Tiers of this build, best first.
const Kernels* const TIERS[] = {
#if defined(__x86_64__)
    &kernels_amx_fp16, &kernels_amx_bf16, &kernels_avx512_bf16, &kernels_avx512, &kernels_avx2,
#endif
    &kernels_portable,
};

const Kernels* find_tier(const char* isa) {
  for (const Kernels* tier : TIERS) {
    if (std::strcmp(tier->name, isa) == 0) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

// A thread keeps its tile memory between calls: at most a few hundred KB, freed with the thread.
// FUSED_ATTENTION_POISON_SCRATCH (tests) fills it with NaN before every call.
class Scratch {
 public:
  void* bytes(int64_t size) {
    if (size > capacity_) {
      memory_.reset(std::aligned_alloc(64, (size + 4095) / 4096 * 4096));
      capacity_ = memory_ ? size : 0;
    }
    static const bool poison = std::getenv("FUSED_ATTENTION_POISON_SCRATCH") != nullptr;
    if (poison && memory_) std::memset(memory_.get(), 0xFF, size);
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t capacity_ = 0;
};

void* thread_scratch(int64_t size) {
  thread_local Scratch scratch;
  return scratch.bytes(size);
}

// Items 0 .. count - 1, claimed one by one in ascending order by as many threads as are useful.
template <class Body>
Status for_each_item(const ThreadPool& pool, int64_t count, int64_t scratch_bytes,
                     const Body& body) {
  struct Shared {
    const Body& body;
    int64_t count, scratch_bytes;
    std::atomic<int64_t> next{0};
  } shared{body, count, scratch_bytes};
  const auto work = [](void* context, int) {
    Shared& all = *static_cast<Shared*>(context);
    void* scratch = all.scratch_bytes > 0 ? thread_scratch(all.scratch_bytes) : nullptr;
    if (all.scratch_bytes > 0 && scratch == nullptr) return;
    for (int64_t i; (i = all.next.fetch_add(1, std::memory_order_relaxed)) < all.count;) {
      all.body(i, scratch);
    }
  };
  const int workers = static_cast<int>(std::min<int64_t>(pool.threads, count));
  if (workers <= 1) {
    work(&shared, 0);
  } else {
    pool.run(pool.state, workers, work, &shared);
  }
  if (shared.next < count) return Status::error("out of memory: no tile scratch for any thread");
  return Status{};
}

int64_t blocks(int64_t length, int64_t block) { return (length + block - 1) / block; }

// Below this many multiplications a second thread costs more than it brings.
constexpr double WORTH_A_THREAD = 2e5;

ThreadPool limit_threads(const AttentionParams& p, ThreadPool pool) {
  const double work = static_cast<double>(p.batch) * static_cast<double>(p.heads_q) *
                      static_cast<double>(p.len_q) * static_cast<double>(p.len_k) *
                      static_cast<double>(p.head_dim + p.value_dim);
  pool.threads = static_cast<int>(
      std::max(1.0, std::min(static_cast<double>(pool.threads), work / WORTH_A_THREAD)));
  return pool;
}

const KernelSet& kernel_set(const Kernels& tier, DType dtype) {
  switch (dtype) {
    case DType::FLOAT64:
      return *tier.fp64;
    case DType::BFLOAT16:
      return *tier.bf16;
    default:
      return *tier.fp32;
  }
}

// nullptr: this problem is not for tiles.
const TileKernels* tile_kernels(const Kernels& tier, const AttentionParams& p) {
  const TileKernels* tiles = p.dtype == DType::BFLOAT16  ? tier.bf16_tiles
                             : p.dtype == DType::FLOAT16 ? tier.fp16_tiles
                                                         : nullptr;
  return tiles != nullptr && tiles->serves(p) ? tiles : nullptr;
}

// Key/value heads and how much work each is.
struct KeyHeads {
  std::vector<int64_t> batches;  // with the most work first
  double most = 0, total = 0;

  explicit KeyHeads(const AttentionParams& p) : batches(p.batch) {
    std::vector<double> work(p.batch);
    for (int64_t b = 0; b < p.batch; ++b) {
      const Sequence seq = sequence_of(p, b);
      work[b] = static_cast<double>(seq.len_q) * static_cast<double>(seq.len_k);
      total += work[b] * static_cast<double>(p.heads_kv);
      most = std::max(most, work[b]);
      batches[b] = b;
    }
    std::stable_sort(batches.begin(), batches.end(),
                     [&](int64_t x, int64_t y) { return work[x] > work[y]; });
  }
};

// Bytes of packed keys that a thread can keep to itself: they stay in its L2 cache or near it.
constexpr int64_t OWN_PACKED_BYTES = 4 << 20;

// The packed keys of a problem and who works on which head. Many heads: each is one item, packed
// into the thread's own memory, which stays in its cache. Few heads: their blocks of queries are
// the items, and the threads share packed keys, at most as large as the keys and values themselves.
class PackedLaunch {
 public:
  PackedLaunch(const AttentionParams& p, int64_t granule_bytes, int64_t tile_bytes,
               const ThreadPool& pool)
      : p_(p),
        layout_(p, granule_bytes),
        heads_(p),
        own_granules_(granules_of(p.len_k)),
        tile_bytes_((tile_bytes + 63) / 64 * 64),
        own_((own_granules_ * granule_bytes <= OWN_PACKED_BYTES) &&
             (pool.threads <= 1 || heads_.most * 8 * pool.threads <= heads_.total)) {}

  bool whole_heads() const { return own_; }

  // body(b, h_kv, packed head, scratch) for every head.
  template <class Body>
  Status for_each_head(const ThreadPool& pool, const Body& body) const {
    const int64_t packed_bytes = own_granules_ * layout_.granule_bytes;
    const int64_t state_bytes = own_granules_ * static_cast<int64_t>(sizeof(int32_t));
    const int64_t count = p_.batch * p_.heads_kv;
    return for_each_item(pool, count, tile_bytes_ + packed_bytes + state_bytes,
                         [&](int64_t item, void* scratch) {
                           char* memory = static_cast<char*>(scratch) + tile_bytes_;
                           int32_t* state = reinterpret_cast<int32_t*>(memory + packed_bytes);
                           std::fill_n(state, own_granules_, 0);
                           body(heads_.batches[item / p_.heads_kv], item % p_.heads_kv,
                                PackedHead{memory, state}, scratch);
                         });
  }

  // body(item, scratch, head_of), where head_of(b, h_kv) is the packed head that all items share.
  template <class Body>
  Status for_each_block(const ThreadPool& pool, int64_t count, const Body& body) const {
    std::vector<int32_t> state(layout_.granules(), 0);
    Scratch memory;
    const int64_t bytes = std::max<int64_t>(layout_.granules() * layout_.granule_bytes, 1);
    char* packed = static_cast<char*>(memory.bytes(bytes));
    if (packed == nullptr) return Status::error("out of memory: no room for packed keys");
    const auto head_of = [&](int64_t b, int64_t h_kv) {
      return layout_.head(packed, state.data(), b, h_kv);
    };
    return for_each_item(pool, count, tile_bytes_,
                         [&](int64_t item, void* scratch) { body(item, scratch, head_of); });
  }

 private:
  const AttentionParams& p_;
  PackedLayout layout_;
  KeyHeads heads_;
  int64_t own_granules_, tile_bytes_;
  bool own_;
};

// Queries of one item: many, so that a thread stays with a head, but enough items for all threads.
int64_t queries_per_item(const AttentionParams& p, int threads) {
  int64_t rows = 256;
  while (rows > 32 && p.batch * p.heads_q * blocks(p.len_q, rows) < 8 * threads) rows /= 2;
  return rows;
}

Status forward_on_tiles(const AttentionParams& p, const TileKernels& tiles,
                        const ThreadPool& pool) {
  const int64_t group = p.heads_q / p.heads_kv;
  const PackedLaunch launch(p, tiles.forward_granule_bytes(p), tiles.forward_bytes(p), pool);
  if (launch.whole_heads()) {
    return launch.for_each_head(
        pool, [&](int64_t b, int64_t h_kv, const PackedHead& head, void* scratch) {
          for (int64_t h = h_kv * group; h < (h_kv + 1) * group; ++h) {
            tiles.forward(p, b, h, 0, p.len_q, head, scratch);
          }
        });
  }
  const int64_t rows = queries_per_item(p, pool.threads);
  const int64_t heads = p.batch * p.heads_q, q_blocks = blocks(p.len_q, rows);
  return launch.for_each_block(
      pool, heads * q_blocks, [&](int64_t item, void* scratch, const auto& head_of) {
        const int64_t q_begin = (q_blocks - 1 - item / heads) * rows;
        const int64_t b = item % heads / p.heads_q, h = item % p.heads_q;
        if (q_begin >= sequence_of(p, b).len_q) return;
        tiles.forward(p, b, h, q_begin, q_begin + rows, head_of(b, h / group), scratch);
      });
}

// Backward's blocks of queries. As many key/value heads side by side as there are threads; inside
// such a set the blocks in the order of their turns (see Turnstile), one of each head after the
// other, so that a thread tends to stay with a head and nobody waits for work that has not been
// claimed.
struct BackwardOrder {
  struct Block {
    int64_t b, h, q_begin;
    int64_t turns;  // where the counters of the key/value head begin
  };
  int64_t block_q, q_blocks, key_blocks, heads_kv, group, kv_heads, side_by_side;

  BackwardOrder(const AttentionParams& p, const Kernels& tier, int threads)
      : block_q(tier.block_q),
        q_blocks(blocks(p.len_q, tier.block_q)),
        key_blocks(blocks(p.len_k, tier.block_kv)),
        heads_kv(p.heads_kv),
        group(p.heads_q / p.heads_kv),
        kv_heads(p.batch * p.heads_kv),
        side_by_side(std::min<int64_t>(std::max(threads, 1), std::max<int64_t>(kv_heads, 1))) {}

  int64_t per_head() const { return group * q_blocks; }
  int64_t count() const { return kv_heads * per_head(); }

  Block block_of_head(int64_t kv_head, int64_t turn) const {
    return {kv_head / heads_kv, kv_head % heads_kv * group + turn / q_blocks,
            turn % q_blocks * block_q, kv_head * key_blocks};
  }
  Block block(int64_t item) const {
    const int64_t set = item / (side_by_side * per_head()),
                  in_set = item % (side_by_side * per_head());
    const int64_t width = std::min(side_by_side, kv_heads - set * side_by_side);
    return block_of_head(set * side_by_side + in_set % width, in_set / width);
  }
};

Status backward_on_tiles(const BackwardParams& params, const TileKernels& tiles,
                         const BackwardOrder& order, int32_t* turns, const ThreadPool& pool) {
  const AttentionParams& p = params.forward;
  const PackedLaunch launch(p, tiles.backward_granule_bytes(p), tiles.backward_bytes(p), pool);
  const auto run = [&](const BackwardOrder::Block& x, const PackedHead& head, void* scratch) {
    if (x.q_begin >= sequence_of(p, x.b).len_q) return;
    tiles.backward(params, x.b, x.h, x.q_begin, turns + x.turns, head, scratch);
  };
  if (launch.whole_heads()) {
    return launch.for_each_head(
        pool, [&](int64_t b, int64_t h_kv, const PackedHead& head, void* scratch) {
          for (int64_t turn = 0; turn < order.per_head(); ++turn) {
            run(order.block_of_head(b * p.heads_kv + h_kv, turn), head, scratch);
          }
        });
  }
  return launch.for_each_block(pool, order.count(),
                               [&](int64_t item, void* scratch, const auto& head_of) {
                                 const BackwardOrder::Block x = order.block(item);
                                 run(x, head_of(x.b, x.h / order.group), scratch);
                               });
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
  const Kernels* tier = find_tier(isa);
  if (Status status = check(params.forward, tier, isa); !status.ok) return status;
  BackwardParams all = params;
  all.forward = with_longest(params.forward);
  const AttentionParams& p = all.forward;
  const KernelSet& kernels = kernel_set(*tier, p.dtype);
  const ThreadPool useful = limit_threads(p, pool);
  clear_tail(p, all.grad_query, p.head_dim, all.delta, 0.0);
  const TileKernels* tiles = tile_kernels(*tier, p);
  const BackwardOrder order(p, *tier, useful.threads);
  std::vector<int32_t> turns(p.batch * p.heads_kv * order.key_blocks, 0);
  const int64_t scratch = kernels.backward_bytes(p);
  const auto body = [&](int64_t item, void* memory) {
    const BackwardOrder::Block x = order.block(item);
    if (x.q_begin >= sequence_of(p, x.b).len_q) return;
    kernels.backward(all, x.b, x.h, x.q_begin, turns.data() + x.turns, memory);
  };
  Status status = tiles != nullptr ? backward_on_tiles(all, *tiles, order, turns.data(), useful)
                                   : for_each_item(useful, order.count(), scratch, body);
  if (!status.ok) return status;

  const auto finish_key_row = tiles != nullptr ? tiles->finish_key_row : kernels.finish_key_row;
  const int64_t rows = p.cu_seqlens_q != nullptr ? p.total_k : p.len_k;
  const int64_t batches = p.cu_seqlens_q != nullptr ? 1 : p.batch;
  status = for_each_item(useful, batches * p.heads_kv, 0, [&](int64_t item, void*) {
    for (int64_t row = 0; row < rows; ++row) {
      finish_key_row(all, item / p.heads_kv, item % p.heads_kv, row);
    }
  });
  if (!status.ok || all.grad_bias.data == nullptr) return status;
  return for_each_item(pool, kernels.bias_tiles(all), scratch, [&](int64_t item, void* memory) {
    kernels.bias_gradient(all, item, memory);
  });
}

}  // namespace fused_attention::cpu
