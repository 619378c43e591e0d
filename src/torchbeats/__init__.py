"""torchbeats: the BEATs audio encoder (arXiv 2212.09058) as a library.

model = torchbeats.load("beats-iter3-plus-as2m")
for row in torchbeats.embed("recordings/", model=model):
    print(row.path, row.start, row.end, row.embedding.shape)
"""

from torchbeats import interrupts, openmp  # noqa: F401 - before the rest, whose import a Ctrl-C may end, and PyTorch

# isort: split
from torchbeats.arrays import encode
from torchbeats.attention import MultiheadAttention
from torchbeats.audio import AudioWarning
from torchbeats.backbone import Encoded
from torchbeats.config import SIZES, BEATsConfig, RandomProjectionConfig, TokenizersConfig
from torchbeats.description import describe
from torchbeats.embedder import Embedder, Tagger
from torchbeats.encoder import TransformerEncoder, TransformerSentenceEncoderLayer, init_bert_params
from torchbeats.errors import (
    AudioError,
    CheckpointError,
    CorpusError,
    FileInUseError,
    HubError,
    InputError,
    MissingPackageError,
    ModelError,
    SettingsError,
    StoreError,
    TorchbeatsError,
)
from torchbeats.inference import Embedding, TokenGrid, embed, tokenize
from torchbeats.layers import (
    GLU_Linear,
    GradMultiply,
    SamePad,
    Swish,
    gelu,
    gelu_accurate,
    get_activation_fn,
    quant_noise,
)
from torchbeats.loading import load
from torchbeats.model import BEATs
from torchbeats.onnx.engine import OnnxModel
from torchbeats.onnx.export import export
from torchbeats.plans import EmbeddingPlan, ScorePlan, TokenPlan
from torchbeats.protocol import Model
from torchbeats.search.searching import Match, search
from torchbeats.tables.writing import TableResult, write_table
from torchbeats.tagging import Tags, tag
from torchbeats.tokenizers import NormEMAVectorQuantizer, RandomProjectionTokenizer, Tokenizers, Tokens
from torchbeats.version import __version__
from torchbeats.weights.catalogue import ModelEntry, models
from torchbeats.weights.checkpoint import save

__all__ = [
    "SIZES",
    "AudioError",
    "AudioWarning",
    "BEATs",
    "BEATsConfig",
    "CheckpointError",
    "CorpusError",
    "Embedder",
    "Embedding",
    "EmbeddingPlan",
    "Encoded",
    "FileInUseError",
    "GLU_Linear",
    "GradMultiply",
    "HubError",
    "InputError",
    "Match",
    "MissingPackageError",
    "Model",
    "ModelEntry",
    "ModelError",
    "MultiheadAttention",
    "NormEMAVectorQuantizer",
    "OnnxModel",
    "RandomProjectionConfig",
    "RandomProjectionTokenizer",
    "SamePad",
    "ScorePlan",
    "SettingsError",
    "StoreError",
    "Swish",
    "TableResult",
    "Tagger",
    "Tags",
    "TokenGrid",
    "TokenPlan",
    "Tokenizers",
    "TokenizersConfig",
    "Tokens",
    "TorchbeatsError",
    "TransformerEncoder",
    "TransformerSentenceEncoderLayer",
    "__version__",
    "describe",
    "embed",
    "encode",
    "export",
    "gelu",
    "gelu_accurate",
    "get_activation_fn",
    "init_bert_params",
    "load",
    "models",
    "quant_noise",
    "save",
    "search",
    "tag",
    "tokenize",
    "write_table",
]
