// Prints how each kernel is launched, a line each: what its demangled name contains, threads, bytes
// of dynamic shared memory.
#include <cstdio>
#include <utility>

#include "../../csrc/cuda/additive/config.h"
#include "../../csrc/cuda/decode/config.h"
#include "../../csrc/cuda/sm80/config.h"

namespace {

using namespace fused_attention::cuda;

template <template <class, int> class Config, class Element, int DIM>
void print(const char* config, const char* element) {
  using Shape = Config<Element, DIM>;
  std::printf("%s<%s, %d>\t%d\t%d\n", config, element, DIM, Shape::THREADS, Shape::SHARED_BYTES);
}

template <template <class, int> class Config, const auto& DIMS, size_t... I>
void print_all(const char* config, std::index_sequence<I...>) {
  (print<Config, Bfloat16, DIMS[I]>(config, "Bfloat16"), ...);
  (print<Config, Float16, DIMS[I]>(config, "Float16"), ...);
}

template <template <class, int> class Config, const auto& DIMS>
void print_all(const char* config) {
  constexpr size_t COUNT = sizeof(DIMS) / sizeof(DIMS[0]);
  print_all<Config, DIMS>(config, std::make_index_sequence<COUNT>{});
}

}  // namespace

int main() {
  print_all<sm80::ForwardConfig, sm80::DIMS>("sm80::ForwardConfig");
  print_all<sm80::QueryGradientConfig, sm80::DIMS>("sm80::QueryGradientConfig");
  print_all<sm80::KeyGradientConfig, sm80::DIMS>("sm80::KeyGradientConfig");
  print_all<decode::Config, decode::DIMS>("decode::Config");
  std::printf("sm80::delta_kernel\t%d\t0\n", sm80::DELTA_THREADS);
  std::printf("decode::append_kernel\t%d\t0\n", decode::APPEND_THREADS);
  for (const char* kernel : {"forward", "delta", "gradient", "v_gradient"}) {
    std::printf("additive::%s_kernel\t%d\t0\n", kernel, additive::THREADS);
  }
  std::printf("decode::combine_kernel\t%d\t0\n", decode::COMBINE_WARPS * 32);
}
