"""The rules: what each kind of operation does to tangents and adds to the summaries.

A rule stands with the functions that it serves in one file, named after the kind of mathematics:

    linear      sums, multiples, whatever has no curvature     softmax      softmax and its relatives
    moves       along axes, as views                           norms        layer norm and its relatives
    indexing    a choice by index or mask                      bilinear     products: what all of them share
    reductions  many scalars made one                          matmul       matrix products
    pointwise   activations, powers, exponentials              convolution  convolutions
    losses      loss functions                                 pooling      pooling and resampling of images
    division    quotients of tensors                           contraction  einsum, products with vectors
    vector_norms  the p-norm along some axes                  complex_numbers  all of these with complex numbers
    shapes      the same scalars in another shape            matrices     solve, inverse, Cholesky, log-determinant

A function that no rule serves gets ``generic``, which is right for all, and slower.

To add a closed form, write a subclass of ``operation.Rule`` in the file of its kind, or in a new file here, which is then
found by itself. Below the class, ``register("names of the torch functions", TheRule())`` puts it to work. ``applies`` says
for which arguments it is made. For one operation at most one rule may apply, which `tests/derivatives/test_rules.py` asks of
every model in `tests/support/zoo.py`. Add a model there that calls the function: `tests/derivatives/test_tape.py` compares
all orders with nested backward passes.
"""

from importlib import import_module
from pkgutil import iter_modules

from gnewton.derivatives.operation import Operation, Rule, matching_rules
from gnewton.derivatives.rules.complex_numbers import complex_rule
from gnewton.derivatives.rules.generic import Generic

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

_GENERIC = Generic()


def rule_for(o: Operation) -> Rule:
    """The rule of an operation; ``Generic`` where no other applies."""
    return complex_rule(o) if o.is_complex else next(iter(matching_rules(o)), _GENERIC)
