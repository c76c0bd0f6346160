"""Work on its way from the driver to the worker that runs it, so that a trial's configuration holds a key alone."""

from __future__ import annotations

from typing import Any

import ray
from ray import cloudpickle
from ray.experimental import internal_kv

#: Keys of one driver in the store of a cluster that others may share.
_NAMESPACE = "sparsefront-orders"


class OrderBook:
    """Work by pack key, in the key-value store of Ray's head: no process of its own has to be started for it.

    Bytes go from a process of the study to another one of it, as Ray's own messages do, and are never a file.
    """

    def put(self, key: str, work: Any, masks: dict[str, bytes]) -> None:
        """Store work and the bits of the masks it needs, by digest."""
        internal_kv._internal_kv_put(_name(key), cloudpickle.dumps((work, masks)), namespace=_NAMESPACE)

    def take(self, key: str) -> tuple[Any, dict[str, bytes]]:
        """The work called `key`, which is forgotten: work that is lost comes back under another key.

        Raises:
            KeyError: if it is not there.
        """
        found = internal_kv._internal_kv_get(_name(key), namespace=_NAMESPACE)
        if found is None:
            raise KeyError(f"key={key!r}: no such order")
        internal_kv._internal_kv_del(_name(key), namespace=_NAMESPACE)
        work, masks = cloudpickle.loads(found)
        return work, masks

    def close(self) -> None:
        """Forget what nobody took."""
        internal_kv._internal_kv_del(_name(""), del_by_prefix=True, namespace=_NAMESPACE)


def _name(key: str) -> str:
    """The key within the store: a driver's is a job of the cluster, and its workers know which."""
    return f"{ray.get_runtime_context().get_job_id()}/{key}"
