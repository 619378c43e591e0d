"""BEATs for Hugging Face transformers: configuration, feature extractor and models, known to its Auto classes.

    import torchbeats.integrations.transformers
    from transformers import AutoFeatureExtractor, AutoModel

    model = AutoModel.from_pretrained("folder")  # which `torchbeats convert beats-iter3 folder/` wrote

The folder opens with sentence-transformers too: ``SentenceTransformer("folder")``. Without the first line, both take
``trust_remote_code=True``.
"""

from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, AutoProcessor

from torchbeats.integrations.transformers.configuration import BEATsConfig
from torchbeats.integrations.transformers.feature_extraction import BEATsFeatureExtractor
from torchbeats.integrations.transformers.modeling import BEATsForAudioClassification, BEATsModel, BEATsPreTrainedModel

__all__ = [
    "BEATsConfig",
    "BEATsFeatureExtractor",
    "BEATsForAudioClassification",
    "BEATsModel",
    "BEATsPreTrainedModel",
]

# exist_ok: the import must not fail once transformers has a model called "beats" of its own; ours reads our folders.
AutoConfig.register(BEATsConfig.model_type, BEATsConfig, exist_ok=True)
AutoFeatureExtractor.register(BEATsConfig, BEATsFeatureExtractor, exist_ok=True)
AutoProcessor.register(BEATsConfig, BEATsFeatureExtractor, exist_ok=True)
AutoModel.register(BEATsConfig, BEATsModel, exist_ok=True)
AutoModelForAudioClassification.register(BEATsConfig, BEATsForAudioClassification, exist_ok=True)
