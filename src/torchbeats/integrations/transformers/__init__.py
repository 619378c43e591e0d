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

AutoConfig.register(BEATsConfig.model_type, BEATsConfig)
AutoFeatureExtractor.register(BEATsConfig, BEATsFeatureExtractor)
AutoProcessor.register(BEATsConfig, BEATsFeatureExtractor)
AutoModel.register(BEATsConfig, BEATsModel)
AutoModelForAudioClassification.register(BEATsConfig, BEATsForAudioClassification)
