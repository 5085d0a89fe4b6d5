"""The config of the model of a run: that of its size, with the options of the run and what its data asks for."""

from dataclasses import fields, replace

from paralab.data import count_classes
from paralab.errors import ConfigError
from paralab.models.configs import C
from paralab.models.sizes import config_of_size
from paralab.models.spec import ModelSpec
from paralab.options.config import RunConfig
from paralab.planning.vocabulary import with_tokenizer

# options of a run that a model's config takes in place of its own
MODEL_OPTIONS = ("seq_len", "n_classes", "norm", "residual", "channels_last")


def config_of(run: RunConfig, spec: ModelSpec[C], size: str) -> C:
    """Return the config of the model, with the vocabulary and the classes of its data. Raises: UsageError."""
    config = _with_classes(with_tokenizer(_model_config(run, spec, size), run.tokenizer, spec, size), run, spec)
    if run.cast_on_device and config.task not in ("text", "classify"):
        raise ConfigError(
            f"--cast-on-device with {spec.name} {size}: its inputs are drawn at random before the copy, leave it out"
        )
    return config


def _model_config(run: RunConfig, spec: ModelSpec[C], size: str) -> C:
    """Return the config of a preset, or of a size of the user's own, with the overrides of the run."""
    config = config_of_size(spec, size)
    known = {field.name for field in fields(config)}
    given = {name: getattr(run, name) for name in MODEL_OPTIONS}
    wanted = {name: None if value is False else value for name, value in given.items()}
    for name, value in wanted.items():
        if value is not None and name not in known:
            raise ConfigError(f"--{name.replace('_', '-')} does not apply to {spec.name} {size}: leave it out")
    return replace(config, **{name: value for name, value in wanted.items() if value is not None})


def _with_classes(config: C, run: RunConfig, spec: ModelSpec[C]) -> C:
    """Give a model of images as many classes as its data has, unless a number was requested.

    Raises: DataError for data that cannot be read; ConfigError for a class of what has none.
    """
    if run.held_out_class is not None and not hasattr(config, "n_classes"):
        raise ConfigError(f"--held-out-class does not apply to {spec.name}, which has no classes: leave it out")
    if run.n_classes is not None or not hasattr(config, "n_classes"):
        return config
    return replace(config, n_classes=count_classes(run.data or spec.data(config)))
