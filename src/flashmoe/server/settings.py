"""What a user chooses about the server, and the limits of what one request may ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from flashmoe.errors import UsageError

# Below the shortest idle limit of common proxies and clients.
KEEPALIVE_SECONDS = 5.0


@dataclass(frozen=True)
class Limits:
    """Bounds of one request; beyond them it is refused, never cut.

    body_bytes, body_seconds: size of a body and time to send it. depth: nesting of its JSON.
    messages, tools, stops, choices, top_logprobs, prompts: most entries. answer_seconds: from the
    arrival of a request to the end of its answer. connections: open at once.
    """

    body_bytes: int = 32 * 2**20
    body_seconds: float = 60.0
    depth: int = 100
    messages: int = 4096
    tools: int = 512
    stops: int = 16
    choices: int = 8
    top_logprobs: int = 20
    prompts: int = 64
    answer_seconds: float = 6 * 3600.0
    connections: int = 1024


@dataclass(frozen=True)
class ServerSettings:
    """Address, keys and limits.

    keys: what clients must send, any of them; empty: no key is asked for. cors: origins whose
    pages may call the server ("*": all). keepalive: seconds of silence in a stream after which a
    comment is sent.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    keepalive: float = KEEPALIVE_SECONDS
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError("wrong value", where="--port", expected="0 to 65535", got=self.port)
        if not all(key and key.isascii() for key in self.keys):
            raise UsageError("wrong value", where="--api-key", expected="printable ASCII")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:  # a host name: it may mean any interface
            return False
