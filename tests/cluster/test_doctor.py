"""What the doctor finds: every bad environment is a finding, and none tells a secret."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from sparsefront.cluster import doctor
from sparsefront.cluster.doctor import Finding, examine


def found(findings: list[Finding], what: str) -> Finding:
    (finding,) = [f for f in findings if f.what == what]
    return finding


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray is looked at in a test of its own."""

    @contextlib.contextmanager
    def cluster(resources: object) -> Iterator[int]:
        raise OSError("no room for Ray")
        yield 1

    monkeypatch.setattr(doctor, "ray_cluster", cluster)


def test_a_good_machine_has_nothing_bad_and_a_broken_part_is_one_finding(no_ray: None) -> None:
    findings = examine()
    assert [f for f in findings if f.state == "bad"] == [Finding("bad", "Ray", "OSError: no room for Ray")]
    assert found(findings, "training").detail.startswith("a pack of 3 networks trained on ")
    assert "pyarrow 2" in found(findings, "packages").detail
    assert {f.what for f in findings} >= {"Python", "cores", "memory", "shared memory", "device", "MLflow", "telemetry"}


def test_versions_out_of_range_or_missing_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=1,<2", "no-such-package>=3", "ruff>=1; extra == 'dev'", "scipy>=1.15"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    findings = list(doctor._versions())
    assert found(findings, "numpy").state == "bad"
    assert "is installed (needs <2,>=1)" in found(findings, "numpy").detail
    assert found(findings, "no-such-package") == Finding("bad", "no-such-package", "is not installed (needs >=3)")
    assert "ruff" not in {f.what for f in findings}
    assert "with scipy 1" in found(findings, "packages").detail


def test_an_old_python_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    assert found(list(doctor._versions()), "Python") == Finding("bad", "Python", "3.9.1 (needs >=3.11)")


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:1"])
def test_an_address_that_is_wrong_is_a_finding(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_training", lambda: iter(()))
    finding = found(examine(address), "Ray")
    assert finding.state == "bad"
    assert finding.detail.startswith(f"ConfigError: --address {address}: ")


def test_a_pack_that_does_not_train_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr("sparsefront.trainables.workshop.Pack", broken)
    (finding,) = doctor._training()
    assert finding.state == "bad"
    assert finding.detail.startswith("a pack on ")
    assert "no kernel image is available" in finding.detail


def test_a_little_memory_and_shared_memory_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1e9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 64 << 20})())
    findings = list(doctor._machine())
    assert [f.what for f in findings if f.state == "warning"] == ["memory", "disk", "shared memory"]
    assert "--shm-size" in found(findings, "shared memory").detail


@pytest.mark.parametrize(
    ("uri", "state", "detail"),
    [
        ("", "good", "a SQLite store in each folder of a study (MLFLOW_TRACKING_URI is not set)"),
        ("postgresql://me:secret@db/x", "good", "MLFLOW_TRACKING_URI names a store of kind 'postgresql'"),
        ("/some/folder", "good", "MLFLOW_TRACKING_URI names a store of kind 'folder'"),
        ("http://me:secret@127.0.0.1:1/x?token=secret", "warning", "http://127.0.0.1:1 cannot be reached ("),
    ],
)
def test_where_mlflow_would_be_without_its_secrets(uri: str, state: str, detail: str) -> None:
    (finding,) = doctor._mlflow(uri)
    assert finding.state == state
    assert finding.detail.startswith(detail)
    assert "secret" not in finding.detail


def test_a_tracking_server_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        (finding,) = doctor._mlflow(f"http://127.0.0.1:{port}")
        assert finding == Finding("good", "MLflow", f"http://127.0.0.1:{port} answers")
        monkeypatch.setattr(doctor, "is_loopback", lambda host: False)
        (finding,) = doctor._mlflow(f"http://127.0.0.1:{port}")
        assert finding.state == "warning"
        assert "clear text" in finding.detail


def test_telemetry_that_was_turned_on_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    assert list(doctor._telemetry()) == [Finding("warning", "telemetry", "turned on by RAY_USAGE_STATS_ENABLED")]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_starts_here_and_is_gone_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    findings = list(doctor._ray(None))
    assert found(findings, "Ray").detail.endswith("starts on this machine, on loopback")
    assert found(findings, "RAY_ADDRESS").state == "warning"
    assert not ray.is_initialized()
