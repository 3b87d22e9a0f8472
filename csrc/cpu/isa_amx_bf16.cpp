// bf16 by AMX tiles; setup.py compiles this file with the flags of AVX512-BF16, which does what is
// not a product. The instructions themselves stand in amx.h. With FUSED_ATTENTION_AMX_MODEL they
// are modelled, and the tier has a name of its own.
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FUSED_ATTENTION_VEC_AVX512
#define FUSED_ATTENTION_AMX
#if defined(FUSED_ATTENTION_AMX_MODEL)
#define FUSED_ATTENTION_ISA amx_model
#else
#define FUSED_ATTENTION_ISA amx_bf16
#endif
#include "kernels.h"
// The kernels, compiled by the flags and in the namespace of this instruction set.
#include "kernel_set.h"
#include "kernel_set_pairs.h"

namespace fused_attention::cpu {

static constexpr KernelSet amx_bf16_bf16 = FUSED_ATTENTION_ISA::BF16_KERNELS;

#if defined(FUSED_ATTENTION_AMX_MODEL)

static constexpr KernelSet amx_model_fp32 = amx_model::kernel_set<float>();
static constexpr KernelSet amx_model_fp64 = amx_model::kernel_set<double>();

const Kernels kernels_amx_model = {
    "amx_model",        [] { return bool(__builtin_cpu_supports("avx512bf16")); },
    amx_model::BLOCK_Q, amx_model::BLOCK_KV,
    &amx_model_fp32,    &amx_model_fp64,
    &amx_bf16_bf16,
};

#else

namespace {

// The processor has AMX-BF16, and Linux lets this process use the tiles: they are asked for once,
// and the permission holds for all threads.
bool amx_bf16_permitted() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  if ((edx & AMX_BF16) == 0 || (edx & AMX_TILE) == 0) return false;
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

}  // namespace

const Kernels kernels_amx_bf16 = {
    "amx_bf16",        [] { return kernels_avx512_bf16.supported() && amx_bf16_permitted(); },
    amx_bf16::BLOCK_Q, amx_bf16::BLOCK_KV,
    &avx512_fp32,      &avx512_fp64,
    &amx_bf16_bf16,
};

#endif

}  // namespace fused_attention::cpu
