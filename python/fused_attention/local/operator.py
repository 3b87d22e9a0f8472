"""fused_attention::local_forward and local_backward, and the backends that they run on."""

from __future__ import annotations

from fused_attention.local import cpu, triton
from fused_attention.local.call import LocalCall, LocalGradients
from fused_attention.local.problem import check_local_values
from fused_attention.local.reference import local_backward_reference, local_reference
from fused_attention.mechanism import Backend, Formulas
from fused_attention.operators import OperatorPair

reference = Formulas(local_reference, local_backward_reference, LocalGradients._fields)
ORDER: tuple[Backend, ...] = (cpu, triton, reference)  # best first

attend = OperatorPair(
    "local",
    LocalCall,
    backends=ORDER,
    formulas=reference,
    check_values=check_local_values,
)
