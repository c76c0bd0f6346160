"""Orders and workers on a real cluster of this process's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import ray

import sparsefront
from sparsefront import errors
from sparsefront.cluster import orders
from sparsefront.cluster import ray_cluster as ray_cluster_module
from sparsefront.cluster.orders import OrderBook
from sparsefront.cluster.ray_cluster import Resources, ray_cluster
from sparsefront.search.plan import ScoreWork

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with ray_cluster(Resources(None, "cpu", 1, 0)):
        yield


@ray.remote(num_cpus=0)
def take_there(key: str) -> object:
    try:
        return OrderBook().take(key)
    except KeyError as error:
        return str(error)


def test_an_order_is_taken_once_in_another_process(cluster: None) -> None:
    book, work = OrderBook(), ScoreWork(0, 0.5, 0, 2)
    book.put("a", work, {"x": b"1"})
    book.put("b", work, {})
    assert ray.get(take_there.remote("a")) == (work, {"x": b"1"})
    assert "key='a': no such order" in ray.get(take_there.remote("a"))
    assert book.take("b") == (work, {})


def test_orders_that_nobody_took_are_forgotten_at_the_end(cluster: None) -> None:
    book = OrderBook()
    for key in ("a", "b"):
        book.put(key, ScoreWork(0, 0.5, 0, 2), {})
    book.close()
    for key in ("a", "b"):
        with pytest.raises(KeyError, match="no such order"):
            book.take(key)


def test_a_large_order_travels_in_parts(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_PART_BYTES", 1000)
    masks = {str(i): os.urandom(700) for i in range(5)}
    OrderBook().put("large", None, masks)
    assert OrderBook().take("large") == (None, masks)
    with pytest.raises(KeyError, match="no such order"):
        OrderBook().take("large")


def test_workers_have_loaded_their_modules_before_they_are_asked(cluster: None) -> None:
    """The process that Ray starts with the cluster; nothing of it stays in the environment of this one."""

    @ray.remote(num_cpus=1)
    class Worker:
        def loaded(self) -> tuple[str | None, str | None]:
            module = sys.modules.get("sparsefront")
            is_ready = {"sparsefront.cluster.ahead", "sparsefront.cluster.worker"} <= sys.modules.keys()
            return module.__file__ if module and is_ready else None, os.environ.get("OMP_NUM_THREADS")

    assert ray.get(Worker.remote().loaded.remote()) == (sparsefront.__file__, "1")
    assert "RAY_preload_python_modules" not in os.environ


def test_modules_are_loaded_ahead_only_where_a_new_process_finds_this_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_ahead(resources: Resources) -> bool:
        with ray_cluster_module._loaded_ahead(resources):
            return "RAY_preload_python_modules" in os.environ

    assert is_ahead(Resources(None, "cpu", 2, 0))
    assert not is_ahead(Resources(None, "cpu", 2, 0, cpus_per_trial=2))
    assert not is_ahead(Resources(None, "cuda", 2, 0))
    assert not is_ahead(Resources(None, "cpu", 64, 0))
    monkeypatch.setattr(errors, "__file__", "/elsewhere/sparsefront/errors.py")
    assert not is_ahead(Resources(None, "cpu", 2, 0))
