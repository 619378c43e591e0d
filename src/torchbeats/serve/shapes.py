"""What requests and answers look like: checked, and described in the OpenAPI document."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from torchbeats.plans import SHORTEST_SECONDS, WINDOW_SECONDS
from torchbeats.pooling import WINDOW_POOLINGS
from torchbeats.serve.limits import MOST_INPUTS
from torchbeats.tagging import SHORTEST_EVERY, TOP

LONGEST_WINDOW = 60.0  # memory grows with a window's length, and time with the square of it
SILENCE = "data:audio/wav;base64,UklGRiQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQAAAAA="  # a header alone

Pool = Enum("Pool", {name: name for name in WINDOW_POOLINGS}, type=str)  # type: ignore[misc]
DataUrl = Annotated[StrictStr, Field(description="A sound file of any format: data:audio/…;base64,…")]
Sounds = Annotated[
    DataUrl | Annotated[list[DataUrl], Field(min_length=1, max_length=MOST_INPUTS)],
    Field(description="One sound, or several.", examples=[SILENCE]),
]
Seconds = Annotated[float, Field(ge=SHORTEST_SECONDS, le=LONGEST_WINDOW)]
Every = Annotated[float, Field(ge=SHORTEST_EVERY, le=LONGEST_WINDOW)]
ModelName = Annotated[StrictStr | None, Field(description="One of GET /v1/models; the server's own where not given.")]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class EmbeddingOptions(_Request):
    """How sounds are embedded."""

    model: ModelName = None
    encoding_format: Annotated[
        Literal["float", "base64"], Field(description="Numbers, or float32 in base64, little-endian.")
    ] = "float"
    pool: Annotated[Pool, Field(description="How a window's patches become one vector.")] = Pool.mean  # type: ignore[attr-defined]
    layer: Annotated[
        int | None, Field(ge=0, le=1000, description="0 is the input of the first; default: the last.")
    ] = None
    window: Annotated[Seconds, Field(description="Seconds that the model sees at once.")] = WINDOW_SECONDS
    hop: Annotated[
        Every | None, Field(description="Seconds from a window's start to the next; default: a window's length.")
    ] = None
    each_window: Annotated[
        bool,
        Field(
            description="A row for each window, with its start and end, rather than the mean over a sound's windows."
        ),
    ] = False
    user: Annotated[StrictStr | None, Field(description="OpenAI's clients may send it; it does not matter.")] = None


class EmbeddingRequest(EmbeddingOptions):
    """Sounds to embed."""

    input: Sounds


class EmbeddingRow(BaseModel):
    """An embedding."""

    object: Literal["embedding"] = "embedding"
    index: Annotated[int, Field(description="Of the input.")]
    embedding: list[float] | str
    start: Annotated[float | None, Field(description="In seconds; with each_window.")] = None
    end: float | None = None


class Usage(BaseModel):
    """What a request has cost."""

    prompt_tokens: Annotated[int, Field(description="Patches of 160 ms and 16 mel bands that the model saw.")]
    total_tokens: int
    audio_seconds: float


class Warned(BaseModel):
    """A sound of which not everything could be read."""

    index: int
    message: str


class Embeddings(BaseModel):
    """Embeddings, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[EmbeddingRow]
    model: str
    usage: Usage
    warnings: list[Warned] = []


class TagOptions(_Request):
    """How sounds are tagged."""

    model: ModelName = None
    top: Annotated[int, Field(ge=1, le=10_000, description="Labels in a row, at most.")] = TOP
    threshold: Annotated[
        float | None,
        Field(
            ge=0, le=1, description="Smallest probability; default: 0, of events what a class was fitted with, or 0.5."
        ),
    ] = None
    unknown: Annotated[
        bool,
        Field(
            description="Call a row unknown that is less familiar than the model's file asks for; false names the "
            "likeliest labels of every row."
        ),
    ] = True
    every: Annotated[
        Every | None, Field(description="A row every so many seconds; default: one a sound, or every 1 s for events.")
    ] = None
    window: Annotated[Seconds | None, Field(description="Seconds that the model sees at once.")] = None
    events: Annotated[bool, Field(description="Stretches in which a label reaches its threshold, not rows.")] = False
    min_gap: Annotated[float, Field(ge=0, le=3600, description="Seconds; closer events of a label are merged.")] = 0.0
    min_length: Annotated[float, Field(ge=0, le=3600, description="Seconds; shorter events are dropped.")] = 0.0


class TagRequest(TagOptions):
    """Sounds to tag."""

    input: Sounds


class Label(BaseModel):
    """A label and its probability."""

    label: str
    probability: float


class TagRow(BaseModel):
    """What is heard in a stretch of a sound."""

    start: float
    end: float
    labels: list[Label]


class Event(BaseModel):
    """A stretch in which one label goes on."""

    start: float
    end: float
    label: str
    peak: float
    mean: float


class TaggedSound(BaseModel):
    """What is heard in a sound: rows, or events where those were asked for."""

    object: Literal["tags"] = "tags"
    index: int
    rows: list[TagRow] | None = None
    events: list[Event] | None = None


class TagAnswer(BaseModel):
    """Tags, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[TaggedSound]
    model: str
    usage: Usage
    warnings: list[Warned] = []


class SearchOptions(_Request):
    """How a table is searched."""

    n: Annotated[int, Field(ge=1, le=1000, description="Matches, at most.")] = 20
    not_same_file: Annotated[
        bool, Field(description="Leave out rows of the files that rows of the query are from.")
    ] = False


Query = Annotated[StrictInt | DataUrl, Field(description="The index of a row of the table, or a sound.")]


class SearchRequest(SearchOptions):
    """What to look for."""

    like: Annotated[
        list[Query], Field(min_length=1, max_length=MOST_INPUTS, description="The mean of these.", examples=[[0]])
    ]
    unlike: Annotated[list[Query], Field(max_length=MOST_INPUTS, description="And unlike these.", examples=[[]])] = []


class MatchRow(BaseModel):
    """A row of the table."""

    row: int
    score: Annotated[float, Field(description="Cosine, from -1 to 1.")]
    path: str
    start: float
    end: float


class SearchAnswer(BaseModel):
    """Matches, the best first."""

    object: Literal["list"] = "list"
    data: list[MatchRow]
    warnings: list[Warned] = []


class ModelRow(BaseModel):
    """A model that the server has."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["torchbeats"] = "torchbeats"
    outputs: list[str]
    labels: list[str] | None


class Models(BaseModel):
    """The models that the server has."""

    object: Literal["list"] = "list"
    data: list[ModelRow]


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"] = "ok"


class ErrorRow(BaseModel):
    """What is wrong."""

    message: Annotated[str, Field(description="A sentence for a person.")]
    type: str
    code: Annotated[str, Field(description="The reason in one word, for programs.")]
    param: None = None


class Error(BaseModel):
    """The one shape of all errors."""

    error: ErrorRow
