"""The page, served."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from experiments.demo_page.page import build
from experiments.demo_page.toolkit import Middleware, gr
from experiments.demo_page.work import LARGEST_UPLOAD, Work

_CSS = pathlib.Path(__file__).with_name("page.css")
# Nothing is fetched from elsewhere, whatever a text or a model's name holds.
_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'"
)


class _OnlyFromHere:
    """Tells browsers to load nothing from other hosts."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message = message | {"headers": [*message.get("headers", []), policy]}
            await send(message)

        await self._app(scope, receive, send_with_policy)


@contextlib.contextmanager
def serve(work: Work, host: str, port: int) -> Iterator[str]:
    """Serves the page from a thread as long as this block runs; gives its address.

    Args:
        work: what computes.
        host: the address to be reached at; 127.0.0.1 is this machine alone.
        port: 0 takes a free one.

    Raises:
        ValueError: the port is taken.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gradmem_page_") as folder,
        _environment("GRADIO_TEMP_DIR", folder),  # of uploads
    ):
        page = build(work, folder)
        page.queue(max_size=32, api_open=False)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port or None,
                share=False,
                prevent_thread_lock=True,
                quiet=True,
                show_error=False,
                ssr_mode=False,
                pwa=False,
                enable_monitoring=False,
                run_history=False,
                footer_links=[],
                max_file_size=LARGEST_UPLOAD,
                theme=_theme(),
                css_paths=_CSS,
                app_kwargs={"middleware": [Middleware(_OnlyFromHere)]},
            )
        except OSError as error:
            raise ValueError(
                f"the page cannot be served at --host={host} --port={port}: another program has "
                "the port, or this machine has no such address. Choose others; --port=0 finds one."
            ) from error
        try:
            yield address
        finally:
            page.close(verbose=False)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment in this block."""
    earlier = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if earlier is not None:
            os.environ[name] = earlier


def _theme() -> gr.Theme:
    """Colours, and fonts that every machine has."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
