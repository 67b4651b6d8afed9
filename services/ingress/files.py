"""Files over HTTP, as the OpenAI API has them: uploaded and read as streams, listed, deleted."""

import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from urllib.parse import quote

from msgspec import Struct
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.ingress.auth import Auth, may_see
from services.ingress.http import ClientGone, Endpoint, ahead, header, query, respond
from services.ingress.tasks import page_limit
from services.ingress.uploads import FRAME_BYTES, Form, Lines
from shared.config import Config
from shared.errors import FileNotFound, HeadraceError, InvalidRequest
from shared.files import PROCESSED, File, Files, new_file_id, upload_key
from shared.messages import encode

PURPOSES = ("assistants", "batch", "evals", "fine-tune", "user_data", "vision")
"""What a client may upload a file for. Headrace itself reads only those of `batch`; the others it keeps, and gives
them to callables whose tasks name them."""
SHORTEST_S, LONGEST_S = 3600, 30 * 24 * 3600
"""Of `expires_after`, as the OpenAI API has it."""
LONGEST_PAGE = 10_000
ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"
FIELDS = ("purpose", ANCHOR, SECONDS)

_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")
"""Longer numbers are none that a file could have, and `int` refuses the longest: with them the header is as if it were not there."""


class FileView(Struct, kw_only=True, omit_defaults=True, tag_field="object", tag="file"):
    """A file as clients see it. Times are Unix seconds."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    status_details: str | None = None
    lines: int = 0
    """Those of an input or output of a batch."""


class FileRoutes:
    """Whoever has proved who it is sees its own tenant's files, and no others."""

    def __init__(self, config: Config, files: Files, auth: Auth) -> None:
        self._config, self._files, self._auth = config, files, auth
        self.create = Endpoint("/v1/files", self._create)
        self.list = Endpoint("/v1/files", self._list)
        self.show = Endpoint("/v1/files/{id}", self._show)
        self.content = Endpoint("/v1/files/{id}/content", self._content)
        self.delete = Endpoint("/v1/files/{id}", self._delete)

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer, limits = self._auth.payer(scope), self._config.limits
        _ = self._files.objects  # refused before anything is read, where there is no store
        check_no_key(scope)
        form, file_id = Form(scope, receive, limits.file_bytes), new_file_id()
        await form.open()
        check_fields(form.fields)
        await self._files.begin(file_id)
        try:
            made = await self._keep(payer.tenant, file_id, form, Lines(limits.body_bytes + FRAME_BYTES))
        except (HeadraceError, ClientGone):
            with contextlib.suppress(HeadraceError):  # else the sweep of the scheduler does it
                await self._files.remove(file_id)
            raise
        await respond(send, 200, encode(view(made)))

    async def _keep(self, tenant: str, file_id: str, form: Form, lines: Lines) -> File:
        """The content, then the record. Fields may come behind the file, so all of them are looked at again."""
        looked_at = form.fields.get("purpose") in (None, "batch")
        size = await self._files.objects.write(upload_key(file_id), seen(form, lines if looked_at else None))
        await form.close()
        kept_s, purpose = check_fields(form.fields), check_purpose(form.fields)
        lines.close()
        if purpose != "batch":
            lines = Lines(0)  # what others hold is no lines to us
        return await self._files.create(
            tenant,
            form.filename[:255],
            purpose,
            file_id=file_id,
            kept_s=kept_s,
            status=PROCESSED,
            part=upload_key(file_id),
            size=size,
            lines=lines.count,
            details=lines.details,
        )

    async def _list(self, scope: Scope, receive: Receive, send: Send) -> None:
        payer = self._auth.payer(scope)
        asked = query(scope, {"after": "", "limit": str(LONGEST_PAGE), "order": "desc", "purpose": ""})
        limit = page_limit(asked["limit"], LONGEST_PAGE)
        if asked["order"] not in ("asc", "desc"):
            raise InvalidRequest(f"`order` is {asked['order'][:40]!r}; allowed: asc, desc", param="order")
        found = await self._files.list(
            payer.tenant,
            after=asked["after"],
            limit=limit + 1,
            purpose=asked["purpose"],
            newest_first=asked["order"] == "desc",
        )
        views = [view(file) for file in found[:limit]]
        ends = {"first_id": views[0].id, "last_id": views[-1].id} if views else {"first_id": None, "last_id": None}
        await respond(send, 200, encode({"object": "list", "data": views, **ends, "has_more": len(found) > limit}))

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, 200, encode(view(await self._named(scope))))

    async def _content(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What there is of it at this moment; of a file that still grows, the rest can be asked for by `Range`."""
        file = await self._named(scope)
        start, end = span(header(scope, b"range"), file.bytes)
        headers = {
            "content-length": str(max(0, end - start)),
            "content-disposition": f"attachment; filename*=UTF-8''{quote(file.filename)}",
            "accept-ranges": "bytes",
        }
        partial = (start, end) != (0, file.bytes)
        if partial:
            headers["content-range"] = (
                f"bytes {start}-{end - 1}/{file.bytes}" if end > start else f"bytes */{file.bytes}"
            )
        if partial and end <= start:
            await respond(send, 416, b"", headers=[(b"content-range", headers["content-range"].encode())])
            return
        async with aclosing(self._read(file.id, start, end)) as pieces:
            first = await anext(pieces, b"")  # while an error can still be told as one
            answer = StreamingResponse(
                ahead(first, pieces), 206 if partial else 200, headers, media_type="application/octet-stream"
            )
            await answer(scope, receive, send)

    async def _delete(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = await self._named(scope)
        await self._files.delete(file.id)
        await respond(send, 200, encode({"id": file.id, "object": "file", "deleted": True}))

    # -- parts

    async def _named(self, scope: Scope) -> File:
        payer, file_id = self._auth.payer(scope), scope["path_params"]["id"]
        file = await self._files.get(file_id)
        if not may_see(payer, file.tenant):
            raise FileNotFound(file_id)
        return file

    async def _read(self, file_id: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._files.read(file_id, start)) as pieces:
            async for piece in pieces:
                yield piece[: end - start]
                start += len(piece)
                if start >= end:
                    return


async def seen(form: Form, lines: Lines | None) -> AsyncGenerator[bytes, None]:
    """The pieces of the file, after a look at their lines."""
    async for piece in form.pieces():
        if lines is not None:
            lines.feed(piece)
        yield piece


def check_no_key(scope: Scope) -> None:
    """Whether a repeat brings the same content is known only when all of it was stored again. Raises: InvalidRequest."""
    if header(scope, b"idempotency-key"):
        raise InvalidRequest(
            "An upload takes no Idempotency-Key: each makes a file of its own. Leave the header out, and delete what a "
            "repeat has made twice; a batch made with the same key is made once.",
            param="Idempotency-Key",
        )


def check_fields(fields: Mapping[str, str]) -> int:
    """How long the file is kept, s; 0: as long as others. Raises: InvalidRequest."""
    for name in fields:
        if name not in FIELDS:
            raise InvalidRequest(
                f"The field `{name[:80]}` is unknown; known: file, {', '.join(FIELDS)}.", param=name[:80]
            )
    if "purpose" in fields:
        check_purpose(fields)
    if fields.get(ANCHOR, "created_at") != "created_at":
        raise InvalidRequest(f"`{ANCHOR}` is {fields[ANCHOR][:40]!r}; allowed: created_at", param=ANCHOR)
    if SECONDS not in fields:
        return 0
    seconds = fields[SECONDS]
    if not seconds.isdecimal() or not SHORTEST_S <= int(seconds) <= LONGEST_S:
        raise InvalidRequest(f"`{SECONDS}` is {seconds[:40]!r}; allowed: {SHORTEST_S} to {LONGEST_S}", param=SECONDS)
    return int(seconds)


def check_purpose(fields: Mapping[str, str]) -> str:
    """Raises: InvalidRequest."""
    purpose = fields.get("purpose", "")
    if purpose not in PURPOSES:
        raise InvalidRequest(f"`purpose` is {purpose[:40]!r}; allowed: {', '.join(PURPOSES)}", param="purpose")
    return purpose


def span(asked: str, size: int) -> tuple[int, int]:
    """The bytes that a header `Range` asks for; all of them without one, or with one that asks for several ranges."""
    match = _RANGE.fullmatch(asked.strip())
    if match is None or match[0] == "bytes=-":
        return 0, size
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def view(file: File) -> FileView:
    return FileView(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at_ms // 1000,
        expires_at=file.expires_at_ms // 1000,
        filename=file.filename,
        purpose=file.purpose,
        status=file.status,
        status_details=file.details or None,
        lines=file.lines,
    )
