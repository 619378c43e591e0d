"""An encoder for MTEB, the Massive Text Embedding Benchmark; its tasks of sounds are MAEB.

    import mteb
    from torchbeats.integrations.mteb import BEATsEncoder, classification_task

    model = BEATsEncoder("beats-iter3")
    mteb.evaluate(model, mteb.get_tasks(tasks=["ESC50"]))
    mteb.evaluate(model, classification_task("sounds"))

Sounds are read by torchbeats, whatever their format, rate and channels, so the encoder needs no torchaudio.
"""

from mteb.models import ModelMeta

from torchbeats.integrations.mteb.encoder import BEATsEncoder
from torchbeats.integrations.mteb.metadata import FACTS, listed
from torchbeats.integrations.mteb.tasks import classification_task

__all__ = ["METAS", "BEATsEncoder", "classification_task"]

# The metadata of each name in `torchbeats models`, tokenizers left out. `mteb.evaluate` takes one in place of a model,
# and loads the model only if it has no results of it yet.
METAS: dict[str, ModelMeta] = {name: listed(name, BEATsEncoder) for name in FACTS}
