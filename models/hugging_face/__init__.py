"""Any decoder-only causal language model of Hugging Face transformers: `hf:NAME_OR_FOLDER`.

The module is that of transformers, with its own names. What is added is a `forward` as `paralab.models.spec` wants it
(`wrapped`), what a pipeline stage of it is (`stages`) and which layers tensor ranks share (`plan`).
"""

from paralab.models.hugging_face.config import CausalLMConfig
from paralab.models.hugging_face.make import spec_of

__all__ = ["CausalLMConfig", "spec_of"]
