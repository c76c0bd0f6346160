"""Addresses of Ray clusters, as a user gives them: checked before Ray, which would wait a minute for a wrong one."""

from __future__ import annotations

import ipaddress
import re
import socket

from sparsefront.errors import ConfigError

#: Long enough for a cluster on the other side of the world.
_CONNECT_S = 5.0

_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/\s\[\]@]+):(?P<port>[0-9]{1,5})")


def check_address(address: str) -> None:
    """Refuse an address at which nothing can be reached.

    Args:
        address: 'auto' (Ray looks for a cluster of this machine), 'host:port' or 'ray://host:port'.

    Raises:
        ConfigError: malformed, or nothing answers there.

    >>> check_address("localhost")
    Traceback (most recent call last):
    sparsefront.errors.ConfigError: --address localhost: must be 'host:port', 'ray://host:port' or 'auto'
    """
    if address == "auto":
        return
    found = _ADDRESS.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ConfigError(f"--address {address}: must be 'host:port', 'ray://host:port' or 'auto'")
    try:
        socket.create_connection((found["host"].strip("[]"), int(found["port"])), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"--address {address}: cannot be reached ({error}); is the cluster up, and this its address?"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine, by its spelling; nothing is looked up.

    >>> is_loopback("localhost"), is_loopback("127.0.1.1"), is_loopback("::1"), is_loopback("10.0.0.1")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
