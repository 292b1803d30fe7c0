"""What kind of file somebody gave as a checkpoint, told by its first bytes, not by its name."""

import codecs
import zipfile
from pathlib import Path

from trainers.files import GIT_LFS

SAFETENSORS, TORCH_ZIP, TORCH_STREAM = "safetensors", "torch zip", "torch stream"
"""The kinds that hold weights by name; every other kind is a description for the user."""

_HEAD_BYTES = 4096
_MAGIC_OF_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""torch's magic number as a pickle: how files of torch before 1.6 begin."""
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (GIT_LFS, "a Git LFS pointer"),
    (b"\x89CODEDM\n", "a coded file of ours"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PAR1", "a Parquet file"),
    (b"GGUF", "a GGUF file"),
    (b"RIFF", "a WebP image or another RIFF file"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3", "an SQLite database"),
)
_REMEDIES = {
    "a Git LFS pointer": "the file itself was not fetched: `git lfs pull`",
    "a TorchScript program": (
        "save its weights: torch.save(torch.jit.load(FILE).state_dict(), OUT)"
    ),
    "a program of torch.export": (
        "save its weights: torch.save(torch.export.load(FILE).state_dict, OUT)"
    ),
    "a coded file of ours": "`sweeps unpack FILE OUT.safetensors` gives its weights",
    "empty (0 bytes)": "an interrupted download or copy leaves such a file: fetch it again",
}
_ARCHIVES = ("gzip", "bzip2", "xz", "7-Zip", "Zstandard", "tar", "ZIP")


def kind_of_file(path: Path) -> str:
    """`SAFETENSORS`, `TORCH_ZIP`, `TORCH_STREAM`, or what else the file is.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        size = path.stat().st_size
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path}: cannot be read ({reason})") from error
    if not head:
        return "empty (0 bytes)"
    if head.startswith(_MAGIC_OF_TORCH):
        return TORCH_STREAM
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(size, 10**8):
        return SAFETENSORS
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    return _kind_of_rest(path, head)


def what_it_is(path: Path, kind: str) -> str:
    """The end of a message that refuses a file of this kind."""
    if kind in _REMEDIES:
        remedy = _REMEDIES[kind].replace("FILE", path.name)
    elif any(name in kind for name in _ARCHIVES):
        remedy = "unpack it and name the file with the weights"
    else:
        remedy = "give a file of safetensors or of torch.save(model.state_dict(), FILE)"
    verb = "this file is" if not kind.startswith("cut off") else "the file is"
    return f"{verb} {kind}, and no checkpoint; {remedy}"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return "cut off or damaged (its end is missing)"
    leaves = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in leaves:
        return "a TorchScript program"
    if "archive_format" in leaves or "serialized_exported_program.json" in leaves:
        return "a program of torch.export"
    if any(name.endswith("/data.pkl") for name in names):
        return TORCH_ZIP
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz), as JAX programs write it"
    return f"a ZIP archive of other files ({', '.join(names[:3]) or 'none'})"


def _kind_of_rest(path: Path, head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "full of zeros, as an interrupted download leaves it"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "a plain pickle, not written by torch.save"
    if path.suffix.lower() == ".onnx":
        return "an ONNX model"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head).lstrip("\ufeff \n")
    except UnicodeDecodeError:
        return f"of an unknown kind (it begins with {head[:8].hex(' ')})"
    if any(ord(letter) < 9 for letter in text):
        return f"of an unknown kind (it begins with {head[:8].hex(' ')})"
    if text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page, as a download that needs a login or another address gives"
    named = {"<": "an XML file", "{": "a JSON file", "[": "a JSON file"}
    if path.suffix.lower() in (".yaml", ".yml"):
        return "a YAML file"
    return named.get(text[:1], "a text file")
