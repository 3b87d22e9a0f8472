#include "prepare.h"

#include <algorithm>

#include "config.h"

namespace fused_attention::cuda::decode {
namespace {

// Parts are at least this long: a shorter one costs more to combine than it saves.
constexpr int64_t LEAST_KEYS = 128;
constexpr int64_t MOST_SPLITS = 128;
// Thread blocks per multiprocessor that keep the memory busy.
constexpr int64_t BLOCKS_WANTED = 2;

int64_t divide_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

Status check_cache(const DecodeParams& step) {
  const AttentionParams& p = step.attention;
  if (step.cache_lengths == nullptr) return Status::error("decoding needs cache_lengths");
  if (step.block_table != nullptr && step.page_size < 1) {
    return Status::error("pages must hold a key or more, got %lld", printable(step.page_size));
  }
  if (step.block_table != nullptr && step.cache_batch != nullptr) {
    return Status::error("a paged cache has no rows that cache_batch could choose");
  }
  if (step.rotary_dim % 2 != 0 || step.rotary_dim < 0 || step.rotary_dim > p.head_dim) {
    return Status::error("the rotary dim must be even and at most head_dim, got %lld",
                         printable(step.rotary_dim));
  }
  const bool rotates = step.rotary_cos != nullptr && step.rotary_sin != nullptr;
  if (step.rotary_dim != 0 && !rotates) return Status::error("rotating needs cos and sin");
  if (step.rotary_dim != 0 && step.rotary_dtype != p.dtype && step.rotary_dtype != DType::FLOAT32) {
    return Status::error("cos and sin must be fp32 or of the query's dtype");
  }
  return Status{};
}

Status check(const DecodeParams& step) {
  const AttentionParams& p = step.attention;
  if (p.dropout.threshold != 0) return Status::error("decoding takes no dropout");
  for (const Status& status : {check_problem(p), check_lengths({p.len_q, p.len_k, step.len_new})}) {
    if (!status.ok) return status;
  }
  return check_cache(step);
}

// How many thread blocks share the keys of one tile of rows; `tiles`: all tiles of rows. The host
// does not know the lengths, so it counts with the longest: parts are cut on the device, evenly for
// each batch row.
int64_t choose_splits(const DecodeParams& step, int64_t tiles, int multiprocessors) {
  const AttentionParams& p = step.attention;
  if (step.batch_invariant) return std::max<int64_t>(1, divide_up(p.len_k, INVARIANT_KEYS));
  const int64_t window = p.band.left + p.band.right + p.len_q;
  const int64_t keys = std::min(p.len_k, window);
  const int64_t most = std::clamp<int64_t>(divide_up(keys, TILE_KEYS), 1, MOST_SPLITS);
  if (step.splits > 0) return std::min(step.splits, most);
  const int64_t wanted = BLOCKS_WANTED * multiprocessors / std::max<int64_t>(1, tiles);
  return std::clamp<int64_t>(wanted, 1, std::clamp<int64_t>(keys / LEAST_KEYS, 1, most));
}

template <int DIM>
KernelLaunch shape(uint32_t blocks) {
  using C = Config<Bfloat16, DIM>;  // nothing depends on the element type
  return {blocks, C::THREADS, C::SHARED_BYTES};
}

KernelLaunch shape(int dim, uint32_t blocks) {
  return dim == 64 ? shape<64>(blocks) : dim == 128 ? shape<128>(blocks) : shape<256>(blocks);
}

void plan_workspace(Plan& plan, const DecodeParams& step) {
  const AttentionParams& p = step.attention;
  Arguments& args = plan.arguments;
  args.sum_width = static_cast<int>(divide_up(p.value_dim, 4) * 4);
  if (!args.combined) return;
  const int64_t rows = args.splits * p.batch * p.heads_q * p.len_q;
  plan.workspace_bytes = rows * (args.sum_width + 1) * static_cast<int64_t>(sizeof(float));
  args.part_sums = static_cast<float*>(step.workspace);  // first: read 16 bytes at a time
  if (step.workspace != nullptr) args.part_lse = args.part_sums + rows * args.sum_width;
  plan.combine.blocks =
      static_cast<uint32_t>(divide_up(p.batch * p.heads_q * p.len_q, COMBINE_WARPS));
  plan.combine.threads = COMBINE_WARPS * 32;
}

}  // namespace

Plan plan(const DecodeParams& step, int multiprocessors) {
  Plan plan;
  plan.status = check(step);
  if (!plan.status.ok) return plan;
  const AttentionParams& p = step.attention;
  plan.dim = *std::find_if(DIMS, DIMS + 3, [&](int dim) { return widest_dim(p) <= dim; });

  Arguments& args = plan.arguments;
  args.step = step;
  args.terms = score_terms(p);
  args.group = static_cast<int>(p.heads_q / p.heads_kv);
  args.row_tiles = static_cast<int>(divide_up(args.group * p.len_q, TILE_ROWS));
  const int64_t tiles = args.row_tiles * p.heads_kv * p.batch;
  args.splits = static_cast<int>(choose_splits(step, tiles, multiprocessors));
  // One path for any number of parts, or the number would show in the last bit.
  args.combined = args.splits > 1 || step.batch_invariant;
  // One row of pages or of the cache may still be one of many.
  args.aligned = rows_are_aligned(p.query, p.batch, p.heads_q) &&
                 rows_are_aligned(p.key, 2, p.heads_kv) && rows_are_aligned(p.value, 2, p.heads_kv);

  const int64_t new_rows = step.new_key.data == nullptr ? 0 : p.batch * p.heads_kv * step.len_new;
  const int64_t rows = p.batch * p.heads_q * p.len_q;
  for (const int64_t blocks : {new_rows, rows, tiles * args.splits}) {
    if (blocks > INT32_MAX) {
      plan.status = Status::error("too many rows for one launch");
      return plan;
    }
  }
  plan.append = {static_cast<uint32_t>(new_rows), APPEND_THREADS, 0};
  if (rows == 0) return plan;
  plan.decode = shape(plan.dim, static_cast<uint32_t>(tiles * args.splits));
  plan_workspace(plan, step);
  return plan;
}

}  // namespace fused_attention::cuda::decode
