"""Files of weights, looked at before they are read: whole, of tensors, and of numbers that a model has."""

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open

from paralab.console.inputs import LONGEST_FORM, other_form
from paralab.errors import DataError

_FLOATS = ("F", "BF")  # how safetensors begins the dtype of a floating-point tensor


def check(file: Path, *, floats: Collection[str] = ()) -> None:
    """Read the header of a file of weights; none of its tensors. Of a pickle only its beginning is looked at.

    floats: names of tensors that the model has as floating-point numbers. Others may be whole ones: masks, positions.
    Raises: DataError where it is missing, a pointer that Git left in its place, damaged, or has one of `floats` in
    whole numbers, as quantized weights are: as they stand they are not the values of the model.
    """
    try:
        with file.open("rb") as opened:
            beginning = opened.read(LONGEST_FORM)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror}): copy the folder again, with all its files"
        ) from None
    if what := other_form(beginning):
        raise DataError(f"{file} {what} in {file.parent}")
    if file.suffix == ".safetensors":
        _check_header(file, floats)


def _check_header(file: Path, floats: Collection[str]) -> None:
    try:
        with safe_open(file, framework="pt") as tensors:
            dtypes = {name: tensors.get_slice(name).get_dtype() for name in tensors.keys()}
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} is damaged, it cannot be read ({error}): copy or write it again") from None
    for name, dtype in dtypes.items():
        if name in floats and not dtype.startswith(_FLOATS):
            raise DataError(
                f"{file}: {name} holds {dtype}, and weights are floating-point numbers: give a folder whose weights "
                "are not quantized"
            )
