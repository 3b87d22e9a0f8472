#include "prepare.h"

namespace fused_attention::cuda::sm80 {
namespace {

Status check(const AttentionParams& p) {
  const Status status = check_problem(p);
  return status.ok ? check_lengths({p.len_q, p.len_k, p.total_q, p.total_k}) : status;
}

int tile_dim(const AttentionParams& p) {
  for (const int dim : DIMS) {
    if (widest_dim(p) <= dim) return dim;
  }
  return 0;
}

int64_t blocks_of(int64_t length, int64_t block) { return (length + block - 1) / block; }

// One slice per sequence, for packed tensors another one for the rows behind the last sequence.
int64_t slices(const AttentionParams& p) { return p.batch + (p.cu_seqlens_q != nullptr ? 1 : 0); }

bool fits_grid(int64_t blocks, int64_t heads) {
  return heads == 0 || blocks <= INT32_MAX / heads;  // two 32-bit factors
}

// Blocks of `length` rows for `heads` heads in each slice. A length of 0 in all sequences still
// leaves rows behind the last one.
TileOrder order_of(const AttentionParams& p, int64_t length, int block, int64_t heads,
                   bool last_first) {
  TileOrder order;
  const bool behind = p.cu_seqlens_q != nullptr;
  const int64_t blocks = blocks_of(length, block);
  order.blocks = static_cast<uint32_t>(behind && blocks == 0 ? 1 : blocks);
  order.heads = static_cast<uint32_t>(heads * slices(p));
  const int64_t head_bytes = p.len_k * (p.head_dim + p.value_dim) * ELEMENT_BYTES;
  order.section = heads_side_by_side(order.heads, heads / p.heads_kv, head_bytes);
  order.last_first = last_first;
  return order;
}

template <template <class, int> class Config>
struct ShapeOf {
  template <int DIM>
  static KernelLaunch launch(uint32_t blocks) {
    using C = Config<Bfloat16, DIM>;  // nothing depends on the element type
    return {blocks, C::THREADS, C::SHARED_BYTES};
  }
  static KernelLaunch launch(int dim, uint32_t blocks) {
    switch (dim) {
      case 32:
        return launch<32>(blocks);
      case 64:
        return launch<64>(blocks);
      case 96:
        return launch<96>(blocks);
      case 128:
        return launch<128>(blocks);
      case 192:
        return launch<192>(blocks);
      default:
        return launch<256>(blocks);
    }
  }
};

}  // namespace

ForwardPlan plan_forward(const AttentionParams& params) {
  ForwardPlan plan;
  plan.status = check(params);
  if (!plan.status.ok) return plan;
  const AttentionParams& p = plan.arguments.problem = params;
  plan.dim = tile_dim(p);
  const int block_q = forward_shape(plan.dim).rows;
  if (!fits_grid(blocks_of(p.len_q, block_q) + 1, p.heads_q * slices(p))) {
    plan.status = Status::error("too many blocks of queries for one launch");
    return plan;
  }
  // Under a causal band the last queries see most keys; under its reverse the first ones.
  const bool last_first = p.band.left >= p.band.right;
  plan.arguments.order = order_of(p, p.len_q, block_q, p.heads_q, last_first);
  plan.arguments.terms = score_terms(p);
  plan.arguments.aligned_rows = rows_are_aligned(p.query, p.batch, p.heads_q) &&
                                rows_are_aligned(p.key, p.batch, p.heads_kv) &&
                                rows_are_aligned(p.value, p.batch, p.heads_kv) &&
                                rows_are_aligned(p.out, p.batch, p.heads_q);
  const TileOrder& order = plan.arguments.order;
  plan.forward = ShapeOf<ForwardConfig>::launch(plan.dim, order.blocks * order.heads);
  return plan;
}

BackwardPlan plan_backward(const BackwardParams& params) {
  BackwardPlan plan;
  const AttentionParams& p = params.forward;
  plan.status = check(p);
  if (!plan.status.ok) return plan;
  if (params.grad_bias.data != nullptr) {
    plan.status = Status::error("these kernels take no bias");
    return plan;
  }
  plan.arguments.params = params;
  plan.dim = tile_dim(p);
  const int block_q = query_gradient_shape(plan.dim).rows;
  const int block_kv = key_gradient_shape(plan.dim).rows;
  const int64_t key_roles = key_gradient_roles(plan.dim);
  if (!fits_grid(blocks_of(p.len_q, block_q) + 1, p.heads_q * slices(p)) ||
      !fits_grid((blocks_of(p.len_k, block_kv) + 1) * key_roles, p.heads_kv * slices(p))) {
    plan.status = Status::error("too many blocks of queries or keys for one launch");
    return plan;
  }
  const bool last_first = p.band.left >= p.band.right;
  TileOrder& query_order = plan.arguments.query_order;
  TileOrder& key_order = plan.arguments.key_order;
  query_order = order_of(p, p.len_q, block_q, p.heads_q, last_first);
  key_order = order_of(p, p.len_k, block_kv, p.heads_kv, !last_first);
  plan.arguments.block_q = block_q;
  plan.arguments.terms = score_terms(p);
  plan.arguments.aligned_rows = rows_are_aligned(p.query, p.batch, p.heads_q) &&
                                rows_are_aligned(p.key, p.batch, p.heads_kv) &&
                                rows_are_aligned(p.value, p.batch, p.heads_kv) &&
                                rows_are_aligned(p.out, p.batch, p.heads_q) &&
                                rows_are_aligned(params.grad_out, p.batch, p.heads_q) &&
                                rows_are_aligned(params.grad_query, p.batch, p.heads_q) &&
                                rows_are_aligned(params.grad_key, p.batch, p.heads_kv) &&
                                rows_are_aligned(params.grad_value, p.batch, p.heads_kv);
  const uint32_t query_blocks = query_order.blocks * query_order.heads;
  const uint32_t key_blocks = key_order.blocks * key_order.heads;
  plan.delta = {query_blocks, DELTA_THREADS, 0};
  plan.query_gradient = ShapeOf<QueryGradientConfig>::launch(plan.dim, query_blocks);
  plan.key_gradient =
      ShapeOf<KeyGradientConfig>::launch(plan.dim, key_blocks * static_cast<uint32_t>(key_roles));
  return plan;
}

}  // namespace fused_attention::cuda::sm80
