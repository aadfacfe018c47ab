"""Gradio, if it is installed, and how the page uses it."""

import os
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # it is read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as missing:
    raise ValueError(
        f"the page needs gradio, which is not installed ({missing}): pip install -e '.[demo]'."
    ) from missing

__all__ = ["AT_ONCE", "COMPUTES", "Middleware", "QUIET", "Updates", "gr"]

Updates = dict[Any, Any]  # values of components, or what `gr.update` changes of them
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
AT_ONCE = QUIET | {"queue": False}
COMPUTES = QUIET | {"concurrency_id": "computing", "concurrency_limit": 1}
