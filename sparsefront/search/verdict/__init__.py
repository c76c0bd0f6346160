"""The verdict: does an arm beat random search at the same sparsity, the same budget and the same seeds?

What is compared, in each replicate and at each level:

* The *arm's* network is the one of its candidates with the lowest validation error (most arms have one candidate).
  It cost its training and whatever had to be done before: an arm that chooses among scored masks pays for all scores
  of that replicate and level, one that prunes trained weights for the training of its parent.
* *Random search* is granted the same budget. It draws as many masks as that pays for, trains them and keeps the one
  with the lowest validation error; its expected result follows exactly from the random draws that were trained
  (``statistics.best_of_draws``). With fewer draws in the ledger than the budget pays for, all of them, and a note.

Failures neither vanish nor break the pairing. A candidate that *diverged* is a result of its method: it counts with the
accuracy of guessing, as one that never converged, and is kept only where nothing else was drawn. One that ended for
another reason (failed, timeout, out_of_memory, lost, stopped at a rung) says nothing about accuracy: such a random
draw is left out, such a network of an arm leaves its replicate without a pair; both are counted and reported.

Controls are not compared with random search: each says what the arm that it belongs to owes its result to. They are
compared with that arm, as a family of their own, single network against single network: nobody is granted a budget.

Not here: the statistics themselves (``statistics``) and the front (``front``).
"""

from sparsefront.search.verdict.controls import ControlPairs, compare_controls
from sparsefront.search.verdict.families import judged_effects, label_of
from sparsefront.search.verdict.judging import judge
from sparsefront.search.verdict.record import VERDICT_COLUMNS

__all__ = ["VERDICT_COLUMNS", "ControlPairs", "compare_controls", "judge", "judged_effects", "label_of"]
