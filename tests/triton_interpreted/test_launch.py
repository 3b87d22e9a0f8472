"""Starting kernels: which arguments they get, which configs there are, how these are measured."""

from __future__ import annotations

import pytest
import torch
from attention_case import AttentionCase
from triton_interpreted.kernel_calls import call_of

from fused_attention.masks import UNBOUNDED
from fused_attention.triton_kernels import autotune, configs, launch
from fused_attention.triton_kernels.configs import candidates, config_for, config_shared_bytes
from fused_attention.triton_kernels.forward import attention_forward
from fused_attention.triton_kernels.launch import Config
from fused_attention.triton_kernels.tiles import padded_dim

ARCHS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Recorder:
    """A runner that executes nothing."""

    def __init__(self, arch: str = "sm_90") -> None:
        self._arch = arch
        self.launches: list[tuple] = []

    def arch(self, device):
        return self._arch

    def run(self, kernel, grid, arguments, constants, config):
        self.launches.append((kernel, grid, arguments, constants, config))


def recorded(case: AttentionCase, arch: str = "sm_90") -> tuple:
    """The one launch of a forward."""
    call, recorder = call_of(case.make(0)), Recorder(arch)
    with launch.using(recorder):
        attention_forward(call, call.empty_out(), call.empty_lse())
    (found,) = recorder.launches
    return found


def test_a_kernel_gets_its_parameters_and_nothing_else():
    kernel, grid, arguments, constants, _ = recorded(
        AttentionCase("plain", len_q=300, dtype=torch.float16)
    )
    assert arguments.keys() | constants.keys() == launch.parameter_names(kernel)
    assert not arguments.keys() & constants.keys()
    assert grid == (2 * 2 * 3,)  # batch, heads, blocks of 128


def test_nothing_is_launched_on_an_empty_grid():
    recorder = Recorder()
    with launch.using(recorder):
        launch.launch(attention_forward, (3, 0), {}, {}, Config(16, 16, 1, 1))
    assert recorder.launches == []


def test_the_runner_is_put_back():
    device = torch.device("cpu")
    before = launch.arch_of(device)
    with pytest.raises(KeyError), launch.using(Recorder("sm_120")):
        assert launch.arch_of(device) == "sm_120"
        raise KeyError
    assert launch.arch_of(device) == before


def test_few_queries_of_grouped_heads_share_blocks():
    case = AttentionCase("few", heads_q=8, heads_kv=2, len_q=5, len_k=70, dtype=torch.bfloat16)
    _, grid, _, constants, config = recorded(case)
    assert constants["PACK_HEADS"] and grid == (2 * 2,)
    assert config.block_q == 32  # 4 heads of 5 queries


def test_descriptors_where_they_can_stand_for_the_operands():
    good = AttentionCase("good", head_dim=64, len_q=300, dtype=torch.bfloat16)
    assert recorded(good)[3]["USE_DESCRIPTORS"]
    assert not recorded(good, "sm_80")[3]["USE_DESCRIPTORS"]
    odd = AttentionCase("odd", head_dim=63, len_q=300, dtype=torch.bfloat16)
    assert not recorded(odd)[3]["USE_DESCRIPTORS"]


def test_pipelined_pointers_before_wgmma_need_triton_3_7(monkeypatch):
    config = Config(128, 128, 8, 3, True)
    monkeypatch.setattr(configs, "pointers_need_a_fence", lambda: True)
    assert configs.by_pointers(config, "sm_90") == Config(128, 128, 8, 1)
    assert configs.by_pointers(config, "sm_80") == Config(128, 128, 8, 3)
    monkeypatch.setattr(configs, "pointers_need_a_fence", lambda: False)
    assert configs.by_pointers(config, "sm_90") == Config(128, 128, 8, 3)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_config_fits_into_the_chip(arch, dtype):
    for head_dim, value_dim in ((16, 16), (64, 64), (80, 80), (192, 128), (256, 256), (512, 512)):
        for window in (17, 1 << 20):
            for tile_terms in (False, True):
                found = candidates(
                    "forward", head_dim, value_dim, dtype, arch, window, tile_terms=tile_terms
                )
                assert found and len(found) == len(set(found))
                for config in found:
                    needed = config_shared_bytes(config, padded_dim(head_dim), dtype, arch)
                    assert needed <= configs.shared_bytes(arch)
                    assert config.block_kv % 32 == 0 and config.block_q >= 16


def test_small_windows_get_small_tiles():
    wide, narrow = (
        config_for("forward", 64, 64, torch.bfloat16, "sm_90", window) for window in (4096, 128)
    )
    assert (wide.block_q, wide.block_kv) == (128, 128)
    assert max(narrow.block_q, narrow.block_kv) <= 64
    assert config_for("forward", 64, 64, torch.bfloat16, "sm_90", UNBOUNDED) == wide


def test_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match="^kind: must be 'forward', got 'sideways'$"):
        candidates("sideways", 64, 64, torch.float16, "sm_80", 10)


class TestAutotune:
    CONFIGS = (Config(16, 32, 1, 1), Config(32, 32, 2, 1), Config(64, 32, 4, 1))

    @pytest.fixture
    def measured(self, monkeypatch):
        """Configs in the order in which they are measured; one of two warps does not compile."""
        seen: list[Config] = []

        def measure(config, run):
            seen.append(config)
            if config.num_warps == 2:
                raise RuntimeError("ptxas")
            return 1.0 / config.num_warps

        monkeypatch.setattr(autotune, "_measure", measure)
        monkeypatch.setattr(autotune, "_found", {})
        return seen

    def test_the_fastest_that_compiles_is_found_once(self, measured):
        for _ in range(2):
            assert autotune.fastest("key", self.CONFIGS, print) == self.CONFIGS[2]
        assert measured == list(self.CONFIGS)

    def test_every_problem_has_its_own(self, measured):
        autotune.fastest("key", self.CONFIGS, print)
        assert autotune.fastest("other", self.CONFIGS[:1], print) == self.CONFIGS[0]

    def test_none_compiles(self, measured):
        with pytest.raises(RuntimeError, match="no config of the kernel runs: .*ptxas"):
            autotune.fastest("key", self.CONFIGS[1:2], print)

    def test_it_is_asked_for_by_the_environment(self, monkeypatch):
        monkeypatch.setattr(autotune, "interpreted", lambda: False)
        assert not autotune.wanted()
        monkeypatch.setenv(autotune.VARIABLE, "1")
        assert autotune.wanted()
        monkeypatch.setattr(autotune, "interpreted", lambda: True)
        assert not autotune.wanted()

    def test_the_forward_takes_what_was_found(self, monkeypatch):
        offered = []

        def fastest(key, found, run):
            offered.extend(found)
            return found[-1]

        monkeypatch.setattr(autotune, "wanted", lambda: True)
        monkeypatch.setattr(autotune, "fastest", fastest)
        case = AttentionCase("tuned", head_dim=128, len_q=300, dtype=torch.bfloat16)
        config = recorded(case)[4]
        assert len(offered) > 1 and config == offered[-1]
