"""Takes a Server-Sent Events body apart."""

DONE = b"[DONE]"


class Frames:
    """Collects pieces of a body, cut anywhere, into the payloads of whole `data:` frames."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        *whole, self._rest = (self._rest + piece).split(b"\n\n")
        return [payload for frame in whole if (payload := _payload(frame)) and payload != DONE]


def _payload(frame: bytes) -> bytes:
    """Other fields are left out: an `event:` is repeated in its data by every route that sends one."""
    return b"\n".join(line[5:].lstrip(b" ") for line in frame.splitlines() if line.startswith(b"data:"))
