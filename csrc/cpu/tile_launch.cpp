#include "tile_launch.h"

#include <algorithm>
#include <vector>

#include "gradient_sums.h"

namespace fused_attention::cpu {
namespace {

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
        heads_(p, pool),
        own_granules_(granules_of(p.len_k)),
        tile_bytes_((tile_bytes + 63) / 64 * 64),
        own_(own_granules_ * granule_bytes <= OWN_PACKED_BYTES && heads_.enough()) {}

  bool whole_heads() const { return own_; }

  // body(b, h_kv, packed head, scratch) for every head.
  template <class Body>
  Status for_each_head(const ThreadPool& pool, const Body& body) const {
    const int64_t packed_bytes = own_granules_ * layout_.granule_bytes;
    const int64_t state_bytes = own_granules_ * static_cast<int64_t>(sizeof(int32_t));
    return heads_.for_each(pool, tile_bytes_ + packed_bytes + state_bytes,
                           [&](int64_t b, int64_t h_kv, void* scratch) {
                             char* memory = static_cast<char*>(scratch) + tile_bytes_;
                             int32_t* state = reinterpret_cast<int32_t*>(memory + packed_bytes);
                             std::fill_n(state, own_granules_, 0);
                             body(b, h_kv, PackedHead{memory, state}, scratch);
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
  WholeHeads heads_;
  int64_t own_granules_, tile_bytes_;
  bool own_;
};

// Queries of one item: many, so that a thread stays with a head, but enough items for all threads.
int64_t queries_per_item(const AttentionParams& p, int threads) {
  int64_t rows = 256;
  while (rows > 32 && p.batch * p.heads_q * blocks(p.len_q, rows) < 8 * threads) rows /= 2;
  return rows;
}

}  // namespace

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

bool tiles_take_whole_heads(const AttentionParams& p, const TileKernels& tiles,
                            const ThreadPool& pool) {
  return PackedLaunch(p, tiles.backward_granule_bytes(p), 0, pool).whole_heads();
}

Status backward_on_tiles(const BackwardParams& params, const TileKernels& tiles,
                         const BackwardOrder& order, int32_t* turns, const ThreadPool& pool) {
  const AttentionParams& p = params.forward;
  const bool own_sums = params.key_sum.data == nullptr;
  const int64_t tile_bytes = HeadSums::behind(tiles.backward_bytes(p));
  const PackedLaunch launch(p, tiles.backward_granule_bytes(p),
                            tile_bytes + (own_sums ? HeadSums::bytes(p) : 0), pool);
  const auto run = [&](const BackwardParams& sums, const BackwardOrder::Block& x,
                       const PackedHead& head, void* scratch) {
    if (x.q_begin >= sequence_of(p, x.b).len_q) return;
    tiles.backward(sums, x.b, x.h, x.q_begin, turns + x.turns, head, scratch);
  };
  if (launch.whole_heads()) {
    return launch.for_each_head(
        pool, [&](int64_t b, int64_t h_kv, const PackedHead& head, void* scratch) {
          const auto blocks_of = [&](const BackwardParams& sums) {
            for (int64_t turn = 0; turn < order.per_head(); ++turn) {
              run(sums, order.block_of_head(b * p.heads_kv + h_kv, turn), head, scratch);
            }
          };
          if (!own_sums) return blocks_of(params);
          const HeadSums sums(params, b, static_cast<char*>(scratch) + tile_bytes);
          blocks_of(sums.params());
          sums.finish(h_kv, tiles.finish_key_rows);
        });
  }
  return launch.for_each_block(pool, order.count(),
                               [&](int64_t item, void* scratch, const auto& head_of) {
                                 const BackwardOrder::Block x = order.block(item);
                                 run(params, x, head_of(x.b, x.h / order.group), scratch);
                               });
}

}  // namespace fused_attention::cpu
