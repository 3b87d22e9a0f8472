"""Names, order and defaults of arguments are flash-attn's: code passes them by position too."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest

from fused_attention.compat import bert_padding, flash_attn, flash_attn_interface, rotary

TAIL = (
    "dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 "
    "alibi_slopes=None deterministic=False return_attn_probs=False"
)
LENGTHS = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
LOW = (
    "dropout_p softmax_scale causal window_size_left window_size_right softcap alibi_slopes "
    "return_softmax"
)
LOW_BACKWARD = "dout q k v out softmax_lse dq dk dv"
LOW_TAIL = LOW.replace("return_softmax", "deterministic rng_state=None")
FLASH_ATTN_2 = {
    "flash_attn_func": f"q k v {TAIL}",
    "flash_attn_kvpacked_func": f"q kv {TAIL}",
    "flash_attn_qkvpacked_func": f"qkv {TAIL}",
    "flash_attn_varlen_func": f"q k v {LENGTHS} {TAIL} block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q kv {LENGTHS} {TAIL}",
    "flash_attn_varlen_qkvpacked_func": f"qkv cu_seqlens max_seqlen {TAIL}",
    "flash_attn_with_kvcache": (
        "q k_cache v_cache k=None v=None rotary_cos=None rotary_sin=None cache_seqlens=None "
        "cache_batch_idx=None cache_leftpad=None block_table=None softmax_scale=None causal=False "
        "window_size=(-1,-1) softcap=0.0 rotary_interleaved=True alibi_slopes=None num_splits=0 "
        "return_softmax_lse=False"
    ),
    "_flash_attn_forward": f"q k v {LOW}",
    "_flash_attn_backward": f"{LOW_BACKWARD} {LOW_TAIL}",
    "_flash_attn_varlen_forward": (
        f"q k v {LENGTHS} dropout_p softmax_scale causal window_size_left=-1 window_size_right=-1 "
        "softcap=0.0 alibi_slopes=None return_softmax=False block_table=None leftpad_k=None "
        "seqused_k=None zero_tensors=False num_splits=0"
    ),
    "_flash_attn_varlen_backward": f"{LOW_BACKWARD} {LENGTHS} {LOW_TAIL} zero_tensors=False",
    "_get_block_size_n": "device head_dim is_dropout is_causal",
}
DESCALES = "q_descale=None k_descale=None v_descale=None"
HINTS = "num_splits=1 pack_gqa=None deterministic=False sm_margin=0 return_attn_probs=False"
FLASH_ATTN_3 = {
    "flash_attn_func": (
        f"q k v softmax_scale=None causal=False qv=None {DESCALES} window_size=(-1,-1) "
        f"attention_chunk=0 softcap=0.0 {HINTS}"
    ),
    "flash_attn_qkvpacked_func": (
        f"qkv softmax_scale=None causal=False {DESCALES} window_size=(-1,-1) attention_chunk=0 "
        "softcap=0.0 deterministic=False num_heads_q=None sm_margin=0 return_attn_probs=False"
    ),
    "flash_attn_varlen_func": (
        f"q k v {LENGTHS} seqused_q=None seqused_k=None softmax_scale=None causal=False qv=None "
        f"{DESCALES} window_size=(-1,-1) attention_chunk=0 softcap=0.0 {HINTS}"
    ),
    "flash_attn_with_kvcache": (
        "q k_cache v_cache k=None v=None qv=None rotary_cos=None rotary_sin=None "
        "cache_seqlens=None cache_batch_idx=None cache_leftpad=None page_table=None "
        "cu_seqlens_q=None cu_seqlens_k_new=None max_seqlen_q=None rotary_seqlens=None "
        f"{DESCALES} softmax_scale=None causal=False window_size=(-1,-1) attention_chunk=0 "
        "softcap=0.0 rotary_interleaved=True scheduler_metadata=None num_splits=0 pack_gqa=None "
        "sm_margin=0 return_softmax_lse=False"
    ),
    "flash_attn_combine": "out_partial lse_partial out=None out_dtype=None",
    "get_scheduler_metadata": (
        "batch_size max_seqlen_q max_seqlen_k num_heads_q num_heads_kv headdim cache_seqlens "
        "qkv_dtype=torch.bfloat16 headdim_v=None cu_seqlens_q=None cu_seqlens_k_new=None "
        "cache_leftpad=None page_size=None max_seqlen_k_new=0 causal=False window_size=(-1,-1) "
        "attention_chunk=0 has_softcap=False num_splits=0 pack_gqa=None sm_margin=0"
    ),
    "_flash_attn_forward": (
        "q k v k_new=None v_new=None qv=None out_=None cu_seqlens_q=None cu_seqlens_k=None "
        "cu_seqlens_k_new=None seqused_q=None seqused_k=None max_seqlen_q=None max_seqlen_k=None "
        "page_table=None kv_batch_idx=None leftpad_k=None rotary_cos=None rotary_sin=None "
        f"seqlens_rotary=None {DESCALES} softmax_scale=None causal=False window_size_left=-1 "
        "window_size_right=-1 attention_chunk=0 softcap=0.0 rotary_interleaved=True "
        "scheduler_metadata=None num_splits=1 pack_gqa=None sm_margin=0"
    ),
    "_flash_attn_backward": (
        "dout q k v out softmax_lse cu_seqlens_q=None cu_seqlens_k=None sequed_q=None "
        "sequed_k=None max_seqlen_q=None max_seqlen_k=None dq=None dk=None dv=None "
        "softmax_scale=None is_causal=False window_size_left=-1 window_size_right=-1 softcap=0.0 "
        "deterministic=False sm_margin=0"
    ),
}
PADDING = {
    "unpad_input": "hidden_states attention_mask unused_mask=None",
    "pad_input": "hidden_states indices batch seqlen",
    "unpad_input_for_concatenated_sequences": "hidden_states attention_mask_in_length",
    "index_first_axis": "input indices",
    "index_put_first_axis": "values indices first_axis_dim",
}
ROTARY = {
    "apply_rotary": (
        "x cos sin seqlen_offsets=0 cu_seqlens=None max_seqlen=None interleaved=False "
        "inplace=False conjugate=False"
    ),
    "apply_rotary_emb": (
        "x cos sin interleaved=False inplace=False seqlen_offsets=0 cu_seqlens=None max_seqlen=None"
    ),
    "apply_rotary_emb_torch": "x cos sin interleaved=False",
    "apply_rotary_emb_qkv_": (
        "qkv cos sin cos_k=None sin_k=None interleaved=False seqlen_offsets=0 num_heads_q=None"
    ),
    "apply_rotary_emb_kv_": "kv cos sin interleaved=False seqlen_offsets=0",
    "RotaryEmbedding": "dim base=10000.0 interleaved=False scale_base=None device=None",
}
MODULES = [
    (flash_attn, FLASH_ATTN_2),
    (flash_attn_interface, FLASH_ATTN_3),
    (bert_padding, PADDING),
    (rotary, ROTARY),
]
FUNCTIONS = [
    pytest.param(module, name, signature, id=f"{module.__name__.rpartition('.')[2]}.{name}")
    for module, signatures in MODULES
    for name, signature in signatures.items()
]


@pytest.mark.parametrize(("module", "name", "signature"), FUNCTIONS)
def test_signature(module: ModuleType, name: str, signature: str) -> None:
    parameters = inspect.signature(getattr(module, name)).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    found = [
        p.name if p.default is p.empty else f"{p.name}={p.default}".replace(" ", "")
        for p in parameters
    ]
    assert found == signature.split()


def test_all_names_are_public() -> None:
    for module, signatures in MODULES:
        assert set(signatures) <= set(module.__all__)
