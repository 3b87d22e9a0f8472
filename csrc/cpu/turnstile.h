#pragma once

#include "kernels.h"
#include "tiles.h"

// Who adds to the gradients of keys and values, and when.
namespace fused_attention::cpu::FUSED_ATTENTION_ISA {

// dK and dV of a block of keys are sums over blocks of queries (and over the query heads of a
// group). Several threads add to them, each in its turn: first come the blocks of the group's
// first head in ascending order, then those of the next. So the result does not depend on the
// number of threads, and neither atomics nor a copy per thread is needed. Threads follow each
// other through the keys one step apart; work is claimed in the order of the turns, so whoever is
// waited for is already running.
struct Turnstile {
  int32_t* done;  // per block of keys: how many blocks of queries have added theirs
  int64_t turn;

  Turnstile(int32_t* counters, const Sequence& seq, int64_t group_head, int64_t q_block,
            int64_t key_block)
      : done(counters + key_block) {
    const Range queries = band_q_range(seq.band, key_block * BLOCK_KV,
                                       min_of((key_block + 1) * BLOCK_KV, seq.len_k), seq.len_q);
    const int64_t first = queries.begin / BLOCK_Q;
    const int64_t visits = (queries.end + BLOCK_Q - 1) / BLOCK_Q - first;
    turn = group_head * visits + q_block - first;
  }
  void wait() const {
    for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) != turn; ++spins) {
      if (spins > 1000) yield_thread();
    }
  }
  // Whoever comes first stores into each row of a sum before anybody reads it. It holds zeros
  // anyway, but the system has not given it its pages yet: a page that is read first costs a second
  // fault when it is written, and interrupts all other threads.
  template <class T>
  void touch_first(T* rows, int64_t count, int64_t stride) const {
    if (turn != 0) return;
    for (int64_t row = 0; row < count; ++row) {
      __atomic_store_n(reinterpret_cast<int32_t*>(rows + row * stride), 0, __ATOMIC_RELAXED);
    }
  }
  void leave() const { __atomic_store_n(done, static_cast<int32_t>(turn + 1), __ATOMIC_RELEASE); }
};

}  // namespace fused_attention::cpu::FUSED_ATTENTION_ISA
