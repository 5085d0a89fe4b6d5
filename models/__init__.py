"""Models, each one file that knows architecture only."""

from collections.abc import Iterator, MutableMapping
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from paralab.models.spec import ModelSpec

Norm = Literal["batch", "syncbatch", "group"]  # the normalisation layers of an image model
NAMES = ("gpt2", "llama", "resnet", "diffusion")  # the only list of models: modules of this package, each with a SPEC


class _Specs(MutableMapping[str, "ModelSpec"]):
    """The specs by name. A module, and torch with it, is imported when its spec is first requested."""

    def __init__(self) -> None:
        self._held: dict[str, ModelSpec | None] = dict.fromkeys(NAMES)

    def __getitem__(self, name: str) -> "ModelSpec":
        found = self._held[name]
        if found is None:
            found = self._held[name] = import_module(f"paralab.models.{name}").SPEC
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __setitem__(self, name: str, spec: "ModelSpec") -> None:
        self._held[name] = spec

    def __delitem__(self, name: str) -> None:
        del self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


SPECS = _Specs()
