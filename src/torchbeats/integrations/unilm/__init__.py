"""The interface of the research code (github.com/microsoft/unilm, folder ``beats``), without a copy of its files.

Module and class names are those of its files, so that only the place changes that they are imported from:

    from torchbeats.integrations.unilm.BEATs import BEATs, BEATsConfig          # was: from BEATs import ...
    from torchbeats.integrations.unilm.Tokenizers import Tokenizers, TokenizersConfig

The classes are also attributes of this package, where two of them hide the module of the same name; a class therefore
also has the names of its module: ``unilm.BEATs.BEATsConfig`` works whichever of the two ``unilm.BEATs`` is.
"""

from torchbeats.integrations.unilm import backbone, modules, quantizer
from torchbeats.integrations.unilm.BEATs import BEATs, BEATsConfig
from torchbeats.integrations.unilm.Tokenizers import Tokenizers, TokenizersConfig

__all__ = ["BEATs", "BEATsConfig", "Tokenizers", "TokenizersConfig", "backbone", "modules", "quantizer"]
