"""The honest race: small networks, eight methods, equal budgets, steps and seconds.

``python -m gnewton.experiments`` lists the experiments, ``python -m gnewton.experiments mlp`` runs one; ``load("mlp")``
reads the results that are shipped; ``registry.py`` lists what there is. Everything runs on a laptop, on the 5,000 MNIST digits of
``gnewton.datasets.mnist_5k``.

The protocol
    * *Budget.* Every method chooses from six settings, fixed in ``methods.py``. All have the same epochs and the same
      mini-batches of 100, one optimizer step each: the same number of steps. The lists of settings were widened on the
      held-out part, for every method but Adam, until most of the best settings lay within; the test part took no part.
    * *Tuning.* A fifth of the training part is held out (``Dataset.hold_out(seed=0)``). Each setting trains once on the
      rest, from seed 0; the three best also from seeds 1 and 2, and where one of them diverges the next in line. Chosen is
      the one whose worst loss on the held-out part at the end is lowest. "(edge)" marks a choice at the end of a list of
      three or more numbers: a better one may lie beyond.
    * *Seeds.* The chosen setting trains from five seeds on the whole training part and is measured on the test part. A
      seed decides the initial network and the order of the mini-batches: the same for every method.
    * *Learning rate.* For every method alike it falls by half when the training loss of an epoch has not fallen for more
      than two epochs (``ReduceLROnPlateau``, patience 2, threshold 1e-4, as in the paper).
    * *Curvature.* GroupedNewton and K-FAC renew their curvature every 10 steps, from a mini-batch of their own: 500
      samples of the training part. L-BFGS takes up to four inner iterations, about five evaluations, on each mini-batch (more with
      a line search); its memory then mixes mini-batches, which it was not made for.
    * *Clocks.* Seconds are processor time of the steps on one thread, evaluations left out, so that other programs hardly
      count. Before the clock starts, a twin network takes one step, so that what is loaded once is not counted.
    * *Divergence.* A loss that is not finite, or an epoch's training loss of more than 100 times the first, ends a run.
      A method that diverges from any seed is ranked last.
    * *Spread.* Means over the seeds, with the smallest and the largest value.

The methods: GroupedNewton as in the paper (Wolinski, arXiv 2312.03885, appendix F: direction SGD with momentum 0.9, one
group per tensor, negative rates removed; lambda_1 = ``lr`` and lambda_int = ``cubic`` are tuned, both beyond the paper's
ranges), the same with the diagonal of H-bar alone, with a single group (S = 1), and with a lambda_int that learns from its
predictions (``cubic="adaptive"``, the one setting of the experiment ``untuned``, nothing tuned here: direction RMSprop with
momentum 0.9, negative rates kept); SGD with momentum 0.9, Adam, L-BFGS (torch), K-FAC (``kfac.py``, with curvlinops' Kronecker
factors).
"""

from gnewton.experiments.registry import find
from gnewton.experiments.results import load

__all__ = ["find", "load"]
