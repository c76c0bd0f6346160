"""Fresh sample: the error on examples that the generator of the data set draws under another seed.

All replicates of a study, and all who tuned its methods, share one test part. A mask that was found on a data set can
be fitted to it, and how far a result is of these examples alone shows on others from the same source. The sample is of
the study, the same for all its networks; it is as large as the test part and made as that is.

Reference: Greydanus and Kobak, Scaling down deep learning with MNIST-1D, ICML 2024 (tickets, evaluated on data that
were generated anew).
"""

from __future__ import annotations

from sparsefront.trainables.quality.subject import Column, Observed, Quality, Subject, wrong


def _observe(subject: Subject) -> Observed:
    fresh = subject.inputs.fresh()
    error = wrong(subject.logits(fresh.x), fresh.labels).double().mean(dim=1)
    return {
        "fresh_error": error,
        "fresh_error_increase": error - wrong(subject.clean, subject.labels).double().mean(dim=1),
    }


QUALITY = Quality(
    summary="the error on a test part that the data set's generator draws anew",
    source="Greydanus and Kobak 2024",
    columns={
        "fresh_error": Column("misclassified fraction of a test part drawn under another seed (0..1)"),
        "fresh_error_increase": Column("that less the error on the test examples (-1..1)"),
    },
    forward_passes=1,
    observe=_observe,
    needs_fresh=True,
)
