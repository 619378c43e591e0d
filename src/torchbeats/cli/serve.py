"""``torchbeats serve``: models at an address, for programs and browsers."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from torchbeats.cli.console import say, working
from torchbeats.cli.tables import MODEL, NAMES, Device, or_built_in
from torchbeats.errors import MissingPackageError
from torchbeats.extras import is_installed, require
from torchbeats.weights import hub

ACCESS = "Access"
BOUNDS = "Bounds"


def serve(
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", rich_help_panel=MODEL, help=f"For embeddings. {NAMES} Default: {hub.BUILT_IN}."),
    ] = None,
    tagger: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, help=f"For labels, likewise. Default: {hub.BUILT_IN_TAGGER}."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(rich_help_panel=MODEL, help="Table that `torchbeats embed` wrote, to search and to teach from."),
    ] = None,
    device: Device = "auto",
    host: Annotated[
        str, typer.Option(rich_help_panel=ACCESS, help="Address to listen on. Others than this machine's need a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, rich_help_panel=ACCESS, help="Port to listen on; 0 for any that is free.")
    ] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="TORCHBEATS_TOKEN",
            rich_help_panel=ACCESS,
            help="What a request must bring as Authorization: Bearer; a browser opens /?token=… once. Other users of "
            "this machine can see it on the command line, but not in the environment.",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", rich_help_panel=ACCESS, help="Let anybody on the network use the server.")
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            rich_help_panel=ACCESS,
            help="Site whose pages may use the server, such as https://example.org; * for any. Default: none.",
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Show a page to browsers.")] = True,
    max_body: Annotated[float, typer.Option(rich_help_panel=BOUNDS, help="MB of a request's body.")] = 64,
    max_audio: Annotated[float, typer.Option(rich_help_panel=BOUNDS, help="Seconds of sound in a request.")] = 600,
    max_inputs: Annotated[int, typer.Option(rich_help_panel=BOUNDS, help="Sounds in a request.")] = 64,
    max_seconds: Annotated[float, typer.Option(rich_help_panel=BOUNDS, help="Seconds that a request may take.")] = 60,
    max_queue: Annotated[int, typer.Option(rich_help_panel=BOUNDS, help="Requests that are worked on or wait.")] = 256,
    max_held: Annotated[float, typer.Option(rich_help_panel=BOUNDS, help="MB of all bodies that are held.")] = 1024,
    decoders: Annotated[int, typer.Option(rich_help_panel=BOUNDS, help="Processes that decode.")] = 2,
    max_decoder: Annotated[
        float, typer.Option(rich_help_panel=BOUNDS, help="MB that decoding a sound may take.")
    ] = 1024,
    max_decoding: Annotated[
        float, typer.Option(rich_help_panel=BOUNDS, help="Seconds that decoding a sound may take.")
    ] = 20,
) -> None:
    """Serve a REST interface, shaped like OpenAI's, and a page for browsers, until Ctrl-C.

    POST /v1/embeddings, /v1/tags and, with --table, /v1/search; GET /v1/models, /health, /metrics and /openapi.json.
    Sounds are sent along; no URL is fetched and no file of this machine is opened for a client, but those that
    the table names.
    """
    for package in ("fastapi", "uvicorn", "python_multipart"):
        require(package, "serve")
    if page:  # imported behind the first answers; whether it is there is said before
        for package, extra in (("gradio", "serve"), ("matplotlib", "plots"), ("sklearn", "probe")):
            if not is_installed(package):
                raise MissingPackageError(package, extra)
    from torchbeats.serve.limits import Limits
    from torchbeats.serve.page.application import make
    from torchbeats.serve.running import address_of, listen, run
    from torchbeats.serve.security import Access, check_token
    from torchbeats.serve.service import Service

    limits = Limits(
        max_body, max_audio, max_inputs, max_seconds, max_queue, max_held, decoders, max_decoder, max_decoding
    )
    check_token(host, token, no_token)
    place = listen(host, port)
    model = or_built_in(model)
    tagger = or_built_in(tagger, hub.BUILT_IN_TAGGER, hub.BUILT_IN_TAGGER_NOTE)
    with working("Loading"):
        service = Service(model, tagger, table, limits=limits, device=device)
    ready = partial(say, f"torchbeats answers at {address_of(place, host)}", flush=True)
    run(service, place, Access(host, token, tuple(cors or ())), page=make if page else None, ready=ready)
