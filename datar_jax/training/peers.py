"""Ends a process of many when another one is gone: status 75 and one line.

Every process holds a connection to the first one, beside those of jax; whoever dies closes it. jax itself would abort,
or wait in a collective.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import struct
import threading
import time
from typing import Any

from datar_jax.training.termination import RESTART

SILENCE_SECONDS = 60  # after so long without a sign of a process it counts as gone: its machine is, or the network
SIGN_SECONDS = 5  # between two signs
ERROR_SECONDS = 15  # so long after another process has ended with an error, this one ends too
CONNECT_SECONDS = 60
_SIGN = 255  # any other byte is the exit status of a process that ends
_KEY = "datar_jax/peers"
_HELLO = struct.Struct("<16sI")  # a secret of this run, so that no stranger counts, and the number of the process
_SIGNAL_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


class Peers:
    """The connections of this process: of the first one to all others, of each other one to the first.

    Args:
      store: key-value store of all processes, that of jax's client.
      host: of the first process, as the others know it.
      process: number of this one.
      processes: how many there are.
      program: stands before the line on standard error.

    Raises:
      OSError: the first process cannot be reached.
    """

    def __init__(self, store: Any, host: str, process: int, processes: int, program: str) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._ends = threading.Event()  # this process ends by itself, or because of another one
        self._status: int | None = None  # how it ends by itself
        self._links: list[socket.socket] = []
        self._on_abort = _SIGNAL_HANDLER(self._aborts)  # kept: C holds its address alone
        if process:
            secret, port = store.blocking_key_value_get(_KEY, CONNECT_SECONDS * 1000).split()
            link = socket.create_connection((host, int(port)), CONNECT_SECONDS)
            link.sendall(_HELLO.pack(bytes.fromhex(secret), process))
            self._follow(link, 0)
        else:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            server = socket.create_server(("", 0), family=family, dualstack_ipv6=family == socket.AF_INET6)
            secret = secrets.token_bytes(_HELLO.size - 4)
            store.key_value_set(_KEY, f"{secret.hex()} {server.getsockname()[1]}")
            self._start(self._accept, server, secret, processes - 1)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)

    def close(self, status: int) -> None:
        """Announces the exit status of this process, which the others would take for killed."""
        with self._lock:
            self._status = status
            self._ends.set()
            self._announce(status)

    def wait_for_loss(self) -> None:
        """Waits a moment for the end of this process, if an error comes from a collective that lost a process."""
        time.sleep(2 * SIGN_SECONDS)

    def _accept(self, server: socket.socket, secret: bytes, missing: int) -> None:
        while missing:
            link = server.accept()[0]
            link.settimeout(CONNECT_SECONDS)
            given, process = b"", 0
            with contextlib.suppress(OSError):
                given, process = _HELLO.unpack(link.recv(_HELLO.size, socket.MSG_WAITALL).ljust(_HELLO.size, b"\0"))
            if secrets.compare_digest(given, secret):
                missing -= 1
                self._follow(link, process)
            else:
                link.close()

    def _follow(self, link: socket.socket, process: int) -> None:
        link.settimeout(SILENCE_SECONDS)
        self._links.append(link)
        self._start(self._send_signs, link)
        self._start(self._receive, link, process)

    def _send_signs(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the receiver reports it
            while not self._ends.wait(SIGN_SECONDS):
                link.sendall(bytes([_SIGN]))

    def _receive(self, link: socket.socket, process: int) -> None:
        status = _SIGN
        with contextlib.suppress(OSError):
            while status == _SIGN:
                received = link.recv(1)
                if not received:
                    break
                status = received[0]
        if status == _SIGN:
            self._end(f"process {process} is gone; the same command continues at the newest checkpoint", RESTART)
        elif status not in (0, RESTART, 128 + signal.SIGINT) and not self._ends.wait(ERROR_SECONDS):
            self._end(f"process {process} has ended with status {status}", status)

    def _end(self, line: str, status: int) -> None:
        with self._lock:
            if self._ends.is_set():
                return
            os.write(2, f"{self._program}: {line}\n".encode())
            if status != RESTART:
                self._announce(status)  # a lost process is noticed by all, as this one goes
            os._exit(status)

    def _announce(self, status: int) -> None:
        for link in self._links:
            with contextlib.suppress(OSError):
                link.sendall(bytes([status]))

    def _aborts(self, _number: int) -> None:
        """Runs as jax's runtime aborts, mostly since it noticed the loss of a process before the connection did."""
        if not self._ends.wait(2) or self._status is None:  # meanwhile `_receive` ends this process
            os.write(2, f"{self._program}: jax aborts; with TF_CPP_MIN_LOG_LEVEL=3 it prints why\n".encode())
            return
        os._exit(self._status)  # its work is done

    @staticmethod
    def _start(run: Any, *given: Any) -> None:
        threading.Thread(target=run, args=given, name="peers", daemon=True).start()
