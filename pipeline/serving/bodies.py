"""Bodies of requests: read within limits of size, time and memory, and taken apart into images."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pipeline.models.contract import Contract
from pipeline.serving import images
from pipeline.serving.errors import NotAvailable, RequestError
from pipeline.serving.params import ServeParams

BODIES_IN_MEMORY = 4  # of the largest size, in all requests together
DISCARDED_BODIES = 4  # times the limit, of one request that is too large
PIXELS_AT_ONCE = 200_000  # pictures with more are decoded in another thread, one request at a time
MANY_BYTES = 2**18  # of JSON; more is parsed in another thread
TYPES = "application/json, application/x-npy, multipart/form-data with pictures, or image/*"


@dataclass(frozen=True)
class Limits:
    """Limits of a request's body."""

    body: int  # bytes
    seconds: float  # to receive it
    images: int

    @classmethod
    def of(cls, params: ServeParams) -> "Limits":
        """Convert the parameters."""
        return cls(int(params.max_body_mb * 2**20), params.body_seconds, params.max_images)


class BodyReader:
    """Reads the bodies of all requests of a process, and bounds the memory that they take together."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0
        self._decoding = asyncio.Lock()

    async def _read(self, request: Request, body: "Body", most: int | None = None) -> bytes:
        most = self._limits.body if most is None else min(most, self._limits.body)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise RequestError("the body is compressed", status=415, expected="no content-encoding", found=encoding)
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            await self._discard(request, most)
            raise _too_large(int(length), most)
        try:
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    body.size += len(chunk)
                    self._held += len(chunk)
                    if body.size > most:
                        raise _too_large(body.size, most)
                    if self._held > BODIES_IN_MEMORY * self._limits.body:
                        raise NotAvailable("the server has more requests than it can keep in memory")
                    body.chunks.append(chunk)
        except TimeoutError:
            raise RequestError(
                "the body came too slowly",
                status=408,
                expected=f"all of it within {self._limits.seconds:g} s",
                found=f"{body.size:,} bytes",
            ) from None
        except ClientDisconnect:
            raise RequestError("the client ended the connection before its body was complete") from None
        return b"".join(body.chunks) if len(body.chunks) != 1 else body.chunks[0]

    async def read(self, request: Request, most: int | None = None) -> bytes:
        """Read a body that is not taken apart here. Raises what `read_images` raises about type, size and time.

        Args:
            most: a limit in bytes that is lower than that of all bodies.
        """
        body = Body()
        try:
            return await self._read(request, body, most)
        finally:
            self._held -= body.size

    async def read_images(self, request: Request, contract: Contract) -> np.ndarray:
        """Read the images of a request: uint8 [n, *shape].

        Pictures are resized as the contract says; with `?invert=1`, dark and bright are swapped first.

        Raises:
            RequestError: the body has another type or content, is too large, or came too slowly.
            NotAvailable: the bodies of other requests take all the memory.
            DataError: a picture is damaged.
        """
        body = Body()
        try:
            return await self._read_images(request, contract, body)
        finally:
            self._held -= body.size

    async def _read_images(self, request: Request, contract: Contract, body: "Body") -> np.ndarray:
        media, most = request.headers.get("content-type", "").partition(";")[0].strip().lower(), self._limits.images
        if media == "application/json" or media.endswith("+json"):
            content = await self._read(request, body)
            if len(content) > MANY_BYTES:
                return await run_in_threadpool(images.read_json, content, contract, most)
            return images.read_json(content, contract, most)
        if media == "application/x-npy":
            return images.read_npy(await self._read(request, body), contract, most)
        if media == "multipart/form-data":
            return await self._decode(request, await self._read_files(request, body), contract)
        if media.startswith("image/"):
            return await self._decode(request, [("the picture", await self._read(request, body))], contract)
        raise RequestError("the body has an unknown type", status=415, expected=TYPES, found=media or "no content-type")

    async def _read_files(self, request: Request, body: "Body") -> list[tuple[str, bytes]]:
        """Return names and contents of the files in a form."""

        async def stream() -> AsyncGenerator[bytes, None]:
            yield content

        content, most = await self._read(request, body), self._limits.images
        try:
            parser = MultiPartParser(request.headers, stream(), max_files=most, max_fields=most)
            parser.spool_max_size = self._limits.body  # in memory, which is bounded already
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:  # KeyError: no boundary
            found = str(getattr(error, "message", error))[:200] or type(error).__name__
            raise RequestError("the form cannot be read", expected="multipart/form-data", found=found) from None
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) < len(form.multi_items()):
            raise RequestError("the form has fields that are not files", expected="pictures, each as a file")
        images.require_count(len(files), most)
        return [(file.filename or f"file {place}", await file.read()) for place, file in enumerate(files)]

    async def _decode(self, request: Request, pictures: list[tuple[str, bytes]], contract: Contract) -> np.ndarray:
        invert = request.query_params.get("invert", "") in ("1", "true")
        if images.count_pixels(pictures) <= PIXELS_AT_ONCE:
            return images.convert_pictures(pictures, contract, invert=invert)
        async with self._decoding:  # a decoded picture takes up to 100 MB
            return await run_in_threadpool(images.convert_pictures, pictures, contract, invert=invert)

    async def _discard(self, request: Request, most: int) -> None:
        """Read a body that is too large, and drop it. Many clients look for an answer only after they sent it all."""
        size = 0
        with suppress(TimeoutError, ClientDisconnect):
            async with asyncio.timeout(self._limits.seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > DISCARDED_BODIES * most:
                        return


class Body:
    """The parts of a body, as they arrive."""

    def __init__(self) -> None:
        self.size, self.chunks = 0, list[bytes]()


def _too_large(size: int, most: int) -> RequestError:
    return RequestError(
        "the body is too large",
        status=413,
        expected=f"at most {most:,} bytes",
        found=f"{size:,} or more",
        remedy="send several requests, or run: pipeline score",
    )
