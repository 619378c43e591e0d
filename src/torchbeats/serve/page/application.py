"""The page as an application: Gradio's blocks, and what they show beside themselves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response

from torchbeats.errors import AudioError
from torchbeats.extras import require
from torchbeats.serve.page.guard import Guard
from torchbeats.serve.page.results import Results
from torchbeats.serve.service import Service

PREFIX = "torchbeats-serve-"  # of the folder of uploads; then the process
UPLOAD_SECONDS = 1800  # that a file which a browser has sent stays, unless the server ends before
PRIVATE = {"Cache-Control": "private, max-age=600"}


def make(service: Service) -> FastAPI:
    """The page of a service.

    Its uploads lie in a private folder that its lifespan removes.

    Raises:
        MissingPackageError: Gradio, matplotlib or scikit-learn is not installed.
    """
    # Gradio reads these when it is imported: it is to tell nobody that it runs, and to ask nobody for a newer version.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    folder = _private_folder()
    os.environ["GRADIO_TEMP_DIR"] = folder
    for package, extra in (("gradio", "serve"), ("matplotlib", "plots"), ("sklearn", "probe")):
        require(package, extra)
    import gradio as gr

    results = Results()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_without(folder))
    _add_routes(app, service, results)
    blocks = _blocks(service, results)
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    from torchbeats.serve.page.parts import STYLE

    app.add_middleware(Guard, folder=folder)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=service.limits.body_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Base(font=fonts[0], font_mono=fonts[1]),
        css=STYLE,
    )
    return mounted


def _private_folder() -> str:
    """A new one for this user alone; those that servers have left which were killed go."""
    if os.name == "posix":
        for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
            process = old.name.removeprefix(PREFIX).partition("-")[0]
            with suppress(OSError):
                if process.isdecimal() and old.stat().st_uid == os.geteuid() and not _is_alive(int(process)):
                    shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _blocks(service: Service, results: Results) -> Any:
    import gradio as gr

    from torchbeats.serve.page import find, listen, teach
    from torchbeats.serve.page.labelling import Marks

    with gr.Blocks(title="torchbeats", analytics_enabled=False, delete_cache=(300, UPLOAD_SECONDS)) as blocks:
        gr.HTML("<h1>torchbeats</h1>", js_on_load=None)
        with gr.Tab("Listen"):
            listen.build(service, results)
        if service.table is not None:
            query = gr.State(find.Query())
            with gr.Tab("Find"):
                find.build(service, query)
            with gr.Tab("Teach"):
                teach.build(blocks, service, query, Marks(service.table), results)
    blocks.queue(default_concurrency_limit=4, max_size=service.limits.queue, api_open=False)
    return blocks


def _add_routes(app: FastAPI, service: Service, results: Results) -> None:
    """Files that the page links to."""

    @app.get("/results/{key}/{name}")
    def result(key: str, name: str) -> Response:
        content = results.get(key, name)
        if content is None:
            return Response("This file has gone; make it again.", 404)
        kind = "image/png" if name.endswith(".png") else "text/plain; charset=utf-8"
        return Response(content, media_type=kind)

    table = service.table
    if table is None:
        return
    from torchbeats.serve.page.excerpts import Excerpts
    from torchbeats.serve.page.labelling import MODEL_SUFFIX

    excerpts = Excerpts(table)

    @app.get("/rows/{row}/{name}")
    def excerpt(row: int, name: str) -> Response:
        kinds = {"sound.wav": (excerpts.wav, "audio/wav"), "spectrogram.png": (excerpts.spectrogram, "image/png")}
        if name not in kinds or not 0 <= row < table.count:
            return Response("There is no such row.", 404)
        make, kind = kinds[name]
        try:
            return Response(make(row), media_type=kind, headers=PRIVATE)
        except AudioError as error:
            return Response(str(error), 404, media_type="text/plain; charset=utf-8")

    @app.get("/model.safetensors")
    def model() -> Response:
        path = table.path.with_name(table.path.name + MODEL_SUFFIX)
        return FileResponse(path) if path.exists() else Response("No model has been saved yet.", 404)


def _without(folder: str) -> Any:
    """A lifespan at whose end a folder is removed."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return lifespan
