#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "fused_attention/launch.h"
#include "kernels.h"

// What the launches share: instruction sets, threads and their memory. Not for kernels: these are
// templates of the standard library.
namespace fused_attention::cpu {

// nullptr: this build or this machine does not have it.
const Kernels* find_tier(const char* isa);

// Whether this tier runs here, the heads fit each other and packed sequences lie in their tensors.
Status check_call(const AttentionParams& params, const char* isa);

// len_q and len_k of a packed batch are derived here, never trusted.
AttentionParams with_longest(const AttentionParams& params);

inline const KernelSet& kernel_set(const Kernels& tier, DType dtype) {
  switch (dtype) {
    case DType::FLOAT64:
      return *tier.fp64;
    case DType::BFLOAT16:
      return *tier.bf16;
    default:
      return *tier.fp32;
  }
}

// FUSED_ATTENTION_POISON_SCRATCH (tests) fills scratch memory with NaN before every call.
inline void* poisoned(void* memory, int64_t size) {
  static const bool poison = std::getenv("FUSED_ATTENTION_POISON_SCRATCH") != nullptr;
  if (poison && memory != nullptr) std::memset(memory, 0xFF, size);
  return memory;
}

// A thread keeps its tile memory between calls: a few hundred KB, with packed keys of its own a few
// MB; freed with the thread.
class Scratch {
 public:
  void* bytes(int64_t size) {
    if (size > capacity_) {
      memory_.reset(std::aligned_alloc(64, (size + 4095) / 4096 * 4096));
      capacity_ = memory_ ? size : 0;
    }
    return poisoned(memory_.get(), size);
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  int64_t capacity_ = 0;
};

inline void* thread_scratch(int64_t size) {
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

// Below this many multiplications a second thread costs more than it brings.
constexpr double WORTH_A_THREAD = 2e5;

inline ThreadPool useful_threads(double multiplications, ThreadPool pool) {
  pool.threads = static_cast<int>(
      std::max(1.0, std::min(static_cast<double>(pool.threads), multiplications / WORTH_A_THREAD)));
  return pool;
}

inline int64_t blocks(int64_t length, int64_t block) { return (length + block - 1) / block; }

// Whole (batch, key/value head)s as items, those with the most work first.
class WholeHeads {
 public:
  WholeHeads(const AttentionParams& p, const ThreadPool& pool)
      : heads_kv_(p.heads_kv), batches_(p.batch) {
    std::vector<double> work(p.batch);
    double most = 0, total = 0;
    for (int64_t b = 0; b < p.batch; ++b) {
      const Sequence seq = sequence_of(p, b);
      work[b] = static_cast<double>(seq.len_q) * static_cast<double>(seq.len_k);
      total += work[b] * static_cast<double>(p.heads_kv);
      most = std::max(most, work[b]);
      batches_[b] = b;
    }
    std::stable_sort(batches_.begin(), batches_.end(),
                     [&](int64_t x, int64_t y) { return work[x] > work[y]; });
    enough_ = pool.threads <= 1 || most * 8 * pool.threads <= total;
  }

  // Whether there are so many that all threads end at about the same time.
  bool enough() const { return enough_; }

  // body(b, h_kv, scratch) for every head.
  template <class Body>
  Status for_each(const ThreadPool& pool, int64_t scratch_bytes, const Body& body) const {
    const int64_t count = static_cast<int64_t>(batches_.size()) * heads_kv_;
    return for_each_item(pool, count, scratch_bytes, [&](int64_t item, void* scratch) {
      body(batches_[item / heads_kv_], item % heads_kv_, scratch);
    });
  }

 private:
  int64_t heads_kv_;
  std::vector<int64_t> batches_;
  bool enough_;
};

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

  BackwardOrder(const AttentionParams& p, int64_t block_q, int64_t block_kv, int threads)
      : block_q(block_q),
        q_blocks(blocks(p.len_q, block_q)),
        key_blocks(blocks(p.len_k, block_kv)),
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

}  // namespace fused_attention::cpu
