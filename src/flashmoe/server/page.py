"""The page at /: files of server/web, read once when the server starts."""

from __future__ import annotations

from mimetypes import guess_type
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from flashmoe.errors import RequestError

FOLDER = Path(__file__).parent / "web"
INDEX = "index.html"
# Nothing from outside, no inline scripts, not in a frame.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Page:
    """Serves files out of memory: a request's path is looked up by name, never opened."""

    def __init__(self) -> None:
        found = FOLDER.iterdir() if FOLDER.is_dir() else ()
        self._files = {file.name: file.read_bytes() for file in found if file.is_file()}

    async def index(self, request: Request) -> Response:
        """The page itself."""
        return self._file(INDEX)

    async def part(self, request: Request) -> Response:
        """A file that the page needs: /page/NAME."""
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise RequestError("there is no such file in the page", status=404)
        kind = guess_type(name)[0] or "application/octet-stream"
        headers = {"content-security-policy": POLICY, "cache-control": "no-cache"}
        return Response(self._files[name], headers=headers, media_type=kind)
