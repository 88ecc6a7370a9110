"""Ray: started on this machine, for itself alone, or reached where it runs."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

from autodiffusion._errors import InputError

ONLY_HERE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0 before Ray is imported, it makes Ray bind to the loopback on any system, as Ray does by itself on those."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
LOOPBACK = "127.0.0.1"
PATIENCE = 10.0
"""Seconds in which a cluster must answer."""


def connect(address: str | None, count: int | None) -> Any:
    """Connects this process to Ray, and gives the package.

    Args:
        address: of a running cluster, ``auto`` or ``host:6379``; ``None`` to start one on this machine, bound to its
            loopback.
        count: of workers that one on this machine has room for; ``None`` for one a CPU.

    Raises:
        InputError: Ray is not installed, cannot be reached, or would be reached by others.
    """
    if address is None:
        os.environ.setdefault(ONLY_HERE, "0")
    ray = package()
    if address is None and os.environ[ONLY_HERE] == "0" and ray.util.get_node_ip_address() != LOOPBACK:
        raise InputError(
            f"Ray: was imported before workers were started, and would listen to the network; set {ONLY_HERE}=0 for "
            "this process, or to 1 if it may"
        )
    try:
        if address is None:  # "local" rather than whatever RAY_ADDRESS says
            ray.init("local", num_cpus=count, include_dashboard=False, **QUIET)
        else:
            _check_reachable(address)
            ray.init(address, **QUIET)
    except (ConnectionError, ValueError, RuntimeError, OSError, TimeoutError) as error:
        where = "Ray" if address is None else f"Ray cluster '{address}'"
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: cannot be reached ({said})") from None
    return ray


def _check_reachable(address: str) -> None:
    """Raises :class:`OSError` where nothing answers at ``host:6379``; Ray would ask again for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        with closing(socket.create_connection((host.strip("[]"), int(port)), PATIENCE)):
            pass


def package() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise InputError('several workers need Ray; pip install "autodiffusion[cluster]"') from None
    return ray
