"""fused_attention::additive_forward and additive_backward, and the backends that they run on."""

from __future__ import annotations

from fused_attention.additive import cpu, cuda, triton
from fused_attention.additive.call import AdditiveCall, check_values
from fused_attention.additive.reference import additive_gradients, additive_results
from fused_attention.mechanism import Backend, Formulas
from fused_attention.operators import OperatorPair

reference = Formulas(additive_results, additive_gradients, ("query", "key", "value", "v"))
ORDER: tuple[Backend, ...] = (cuda, cpu, triton, reference)  # best first

attend = OperatorPair(
    "additive",
    AdditiveCall,
    backends=ORDER,
    formulas=reference,
    check_values=check_values,
)
