"""The configuration of a model of transformers: read from a folder, from a GGUF file or from the hub, and checked."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paralab.errors import ConfigError, did_you_mean
from paralab.models import HUGGING_FACE
from paralab.models.hugging_face import mixture
from paralab.models.hugging_face.config import CausalLMConfig, as_text, dropouts, new_model, with_dropout
from paralab.models.spec import WithoutInit

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SEQ_LEN = 1024  # tokens of a sample, where the model has more positions and none were requested
_CLASSES = ("ForCausalLM", "LMHeadModel")  # how a class of a causal language model ends
_GPT2 = 50_257  # tokens of the built-in encoding


def read(name: str) -> CausalLMConfig:
    """Return the config of a folder, of a GGUF file, or of a model of the hub by its name.

    Raises: ConfigError when there is none, it is damaged, or it is not that of a decoder-only language model.
    """
    where = find(name)
    values = _values(where, name)
    theirs = _known(values, where)
    architecture = _causal(theirs, values, where)
    longest = max(getattr(theirs, "max_position_embeddings", None) or 0, 0) or None  # XLNet says -1: any number
    config = CausalLMConfig(
        architecture=architecture,
        values=as_text({name: value for name, value in theirs.to_dict().items() if name not in _OF_THE_FILE}),
        seq_len=min(longest or SEQ_LEN, SEQ_LEN),
        longest=longest,
        tokenizer=_tokenizer(where, theirs.vocab_size),
        dropout=max(dropouts(theirs).values(), default=0.0),
    )
    _check_can_be_made(config, where)
    return config


def find(name: str) -> Path:
    """Return the folder or GGUF file of a name, or the copy of a model that has been fetched from the hub.

    Raises: ConfigError.
    """
    path = Path(name).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.is_file():
        raise ConfigError(f"--model {HUGGING_FACE}{name} is a file: give the folder it is in, or a .gguf file")
    if path.is_absolute() or len(path.parts) > 2 or name.startswith((".", "~")):
        raise ConfigError(
            f"--model {HUGGING_FACE}{name}: there is no folder {path}: give one that save_pretrained wrote"
        )
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, LocalEntryNotFoundError, HFValidationError, ValueError) as error:
        local = Path(name).name
        raise ConfigError(
            f"--model {HUGGING_FACE}{name}: there is no folder {name}, and it cannot be fetched from the hub "
            f"({_line(error)}): where there is a network type `hf download {name} --local-dir {local}`, and give "
            f"{HUGGING_FACE}{local}"
        ) from error


def _values(where: Path, name: str) -> dict[str, Any]:
    """Return what config.json of a folder says, or what a GGUF file says in its place."""
    if where.suffix == ".gguf" and where.is_file():
        return _of_gguf(where)
    file = where / "config.json"
    if not file.is_file():
        raise ConfigError(
            f"--model {HUGGING_FACE}{name}: {where} has no config.json: give a folder that save_pretrained wrote, "
            "or the name of a model of the hub"
        )
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read ({_line(error)}): give a folder that save_pretrained wrote") from None
    return values


def _of_gguf(file: Path) -> dict[str, Any]:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise ConfigError(f"{file} is a GGUF file, and reading it takes the package gguf: type `pip install gguf`")
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(file.parent, gguf_file=file.name).to_dict()
    except Exception as error:  # of a reader of damaged files, which may be any
        raise ConfigError(f"{file} cannot be read ({_line(error)}): give a GGUF file that transformers reads") from None


def _known(values: Mapping[str, Any], where: Path) -> "PreTrainedConfig":
    """Return the configuration as transformers understands it. Raises: ConfigError."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = values.get("model_type")
    if "auto_map" in values:
        own = f"take auto_map out of config.json to train it as the {kind} of transformers, or give another model"
        raise ConfigError(
            f"{where} brings Python of its own (auto_map in config.json), which is never run here: "
            + (own if kind in CONFIG_MAPPING else "give a model that transformers has itself")
        )
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        hint = did_you_mean(str(kind), CONFIG_MAPPING)
        raise ConfigError(
            f"{where}: model_type {kind!r} is unknown to transformers{hint}: give a model that it has, or a newer "
            "version of transformers"
        )
    try:
        return with_dropout(values)
    except Exception as error:  # of values that may be anything
        raise _not_of(kind, where, error) from None


def _not_of(kind: str, where: Path, error: Exception) -> ConfigError:
    if isinstance(error, AttributeError) and "Config' object has no attribute" in str(error):  # no fault of the folder
        import transformers

        return ConfigError(
            f"{where}: transformers {transformers.__version__} cannot make its own {kind} ({_line(error)}): give "
            "another model, or install another version of transformers"
        )
    return ConfigError(
        f"{where}: config.json is not that of a {kind} ({_line(error)}): give it as save_pretrained wrote it"
    )


def _check_can_be_made(config: CausalLMConfig, where: Path) -> None:
    """Make a model on the meta device, which takes no memory, of what config.json says.

    Raises: ConfigError where transformers cannot, where it would fail in the first step, or where its experts are not
    trained here.
    """
    import torch

    theirs = config.theirs
    try:
        for name in ("num_hidden_layers", "vocab_size"):
            if (got := getattr(theirs, name)) < 1:
                raise ValueError(f"{name} is {got}, 1 or more are needed")
        heads, shared = (getattr(theirs, name, None) for name in ("num_attention_heads", "num_key_value_heads"))
        if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
            raise ValueError(f"num_key_value_heads is {shared}, which does not divide the {heads} num_attention_heads")
        with torch.device("meta"), WithoutInit():
            model = new_model(config)
    except Exception as error:  # of modules of transformers, which may be any
        raise _not_of(theirs.model_type, where, error) from None
    if reason := mixture.problem(model):
        raise ConfigError(
            f"{where} is a {theirs.model_type} with experts ({mixture.described(model)}), and {reason}: give its "
            "module to paralab.parallelize with a loss of yours (docs/hugging-face.md)"
        )


def _causal(theirs: "PreTrainedConfig", values: Mapping[str, Any], where: Path) -> str:
    """Return the name of the class of a decoder-only language model. Raises: ConfigError for any other model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind, architectures = theirs.model_type, values.get("architectures")
    named = str((architectures or [""])[0])
    needed = "give a decoder-only language model, such as a Llama, Qwen, Gemma, Mistral, OLMo or GPT-2"
    if getattr(theirs, "is_encoder_decoder", False):
        raise ConfigError(f"{where} is a {kind}, an encoder with a decoder: {needed}")
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if architecture is None or not architecture.endswith(_CLASSES):
        raise ConfigError(f"{where} is a {kind}, which is not a language model alone: {needed}")
    if (part := theirs.get_text_config()) is not theirs:
        raise ConfigError(
            f"{where} is a {kind}, of which a {part.model_type} is the language model: give a folder whose config.json "
            "is that part alone"
        )
    sees_all = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(theirs, "is_decoder", False)
    if sees_all or not getattr(theirs, "is_causal", True):
        raise ConfigError(f"{where} is a {kind}, an encoder: {needed}")
    if named and named.endswith(_TASKS):
        raise ConfigError(f"{where} is a {named}, and what is trained here is a {architecture}: {needed}")
    if getattr(theirs, "quantization_config", None):
        raise ConfigError(
            f"{where} is quantized (quantization_config in config.json), and training starts from whole weights: "
            "give the model that it was made from"
        )
    return architecture


_OF_THE_FILE = ("transformers_version", "_name_or_path")  # no property of the model
_TASKS = ("Classification", "ForMaskedLM", "QuestionAnswering", "ConditionalGeneration", "EncoderModel")


def _tokenizer(where: Path, vocab_size: int) -> str:
    """Return the encoding that texts are read with: that of the folder, else a built-in one that the vocabulary holds.

    Where it holds none, the smallest is returned, and opening a text refuses it.
    """
    file = (where if where.is_dir() else where.parent) / "tokenizer.json"
    if file.is_file():
        return str(file)
    return "gpt2" if vocab_size >= _GPT2 else "bytes"


def _line(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:200].rstrip(".")
