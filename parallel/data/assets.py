"""The data files that come with the package. Every read is checked against the published sha256."""

import hashlib
from pathlib import Path

from paralab.errors import DataError

FOLDER = Path(__file__).parent / "assets"
# Origin and licence of each: assets/README.md.
SHA256 = {
    "alice.txt": "502852fbc4554f16a4ddce92d6262702894976a2b3a8c5504b02af93b55a067e",
    "gpt2.tiktoken": "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    "mnist10k.npz": "f1a23f2fb1a1c97bb00a811807ddd50a888dbcdcdead94147993273c22ee3f37",
}


def read_asset(name: str) -> bytes:
    """Return the bytes of a built-in file.

    Raises: DataError when the file is missing or its sha256 is not the published one.
    """
    path = FOLDER / name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"built-in data {path} cannot be read ({error.strerror}): {_REINSTALL}") from error
    got = hashlib.sha256(content).hexdigest()
    if got != SHA256[name]:
        raise DataError(f"built-in data {path} is damaged: sha256 {got}, expected {SHA256[name]}: {_REINSTALL}")
    return content


_REINSTALL = "reinstall with `pip install --force-reinstall --no-deps paralab` (in a checkout: `git checkout` the file)"
