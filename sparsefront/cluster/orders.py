"""Work on its way from the driver to the worker that runs it, so that a trial's configuration holds a key alone."""

from __future__ import annotations

from typing import Any

import ray
from ray import cloudpickle
from ray._private.state import jobs
from ray.experimental import internal_kv

#: Keys of one driver in the store of a cluster that others may share.
_NAMESPACE = "sparsefront-orders"
#: Most bytes of one value: longer messages are refused (512 MiB), and hold up the driver.
_PART_BYTES = 64 << 20


class OrderBook:
    """Work by pack key, in the key-value store of Ray's head: no process of its own has to be started for it.

    Bytes go from a process of the study to another one of it, as Ray's own messages do, and are never a file.
    """

    def put(self, key: str, work: Any, masks: dict[str, bytes]) -> None:
        """Store work and the bits of the masks it needs, by digest.

        Raises:
            RayError: the head cannot be reached.
        """
        # As Ray itself sends arguments: who can write to its head can run code on it anyway.
        order = cloudpickle.dumps((work, masks))
        parts = [order[i : i + _PART_BYTES] for i in range(0, len(order), _PART_BYTES)]
        for i, part in enumerate(parts):
            internal_kv._internal_kv_put(f"{_name(key)}/{i}", part, namespace=_NAMESPACE)

    def take(self, key: str) -> tuple[Any, dict[str, bytes]]:
        """The work called `key`, which is forgotten: work that is lost comes back under another key.

        Raises:
            KeyError: if it is not there.
            RayError: the head cannot be reached.
        """
        parts: list[bytes] = []
        while (part := internal_kv._internal_kv_get(f"{_name(key)}/{len(parts)}", namespace=_NAMESPACE)) is not None:
            parts.append(part)
        if not parts:
            raise KeyError(f"key={key!r}: no such order")
        _forget(f"{_name(key)}/")
        work, masks = cloudpickle.loads(b"".join(parts))
        return work, masks

    def close(self) -> None:
        """Forget what nobody took, of this driver and of those that were killed."""
        _forget(_name(""))
        for job in jobs():
            if job["IsDead"]:
                _forget(f"{job['JobID']}/")


def _forget(prefix: str) -> None:
    internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=_NAMESPACE)


def _name(key: str) -> str:
    """The key within the store: a driver's is a job of the cluster, and its workers know which."""
    return f"{ray.get_runtime_context().get_job_id()}/{key}"
