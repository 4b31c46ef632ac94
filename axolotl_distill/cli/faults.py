"""What an exception that is not ours means to the person at the terminal, and what to do.

Exceptions of libraries are known by name: to know them by class their libraries would have to be
imported, which takes longer than most mistakes need to show.
"""

import errno
import json

from axolotl_distill.show import foreign

TOO_BIG = "Free some memory, or ask for less at once: a smaller `batch_tokens` or `batch_size`."
BY_ERRNO = {
    errno.ENOSPC: ("the disk is full", "Free some space, or write to another disk."),
    errno.EDQUOT: ("your quota of the disk is used up", "Free some space, or write elsewhere."),
    errno.EROFS: ("it is on a file system that is read-only", "Name a folder that can be written."),
    errno.EACCES: ("permission denied", "Change its permissions, or name another path."),
    errno.EPERM: ("the system does not permit it", "Change its permissions, or name another path."),
    errno.EMFILE: ("too many files are open", "Raise the limit: `ulimit -n 65536`."),
    errno.ENFILE: ("too many files are open on this machine", "Close other programs."),
    errno.ENOENT: ("no such file or folder", "Check the path."),
    errno.EISDIR: ("it is a folder, and a file is needed", "Name a file."),
    errno.ENOTDIR: ("a part of the path is a file, and no folder", "Check the path."),
    errno.EEXIST: ("it is there already", "Move it away, or name another path."),
    errno.ENAMETOOLONG: ("the name is too long", "Name a shorter path."),
    errno.ELOOP: ("its links lead round in a circle", "Check the path."),
    errno.EFBIG: ("the file is larger than the file system allows", "Write to another disk."),
    errno.EIO: ("the disk could not read or write it", "Check the disk; write to another one."),
    errno.ESTALE: ("the network file system lost it", "Mount it again."),
    errno.ENOMEM: ("the memory is used up", TOO_BIG),
    errno.EAGAIN: ("no more processes or threads may be started", "Raise the limit: `ulimit -u`."),
    errno.EADDRINUSE: ("the address is in use", "Stop the program that uses it."),
}
# Names of classes, with the package they are defined in; the first that fits an exception's
# ancestors, nearest first.
BY_NAME = {
    "torch.OutOfMemoryError": ("the GPU's memory is used up", TOO_BIG),
    "torch.AcceleratorError": ("the GPU reports a fault", "Look for other programs on it."),
    "builtins.MemoryError": ("the memory is used up", TOO_BIG),
    "builtins.RecursionError": ("something is nested too deeply to be read", "Check the input."),
    "builtins.ModuleNotFoundError": ("a package is missing", "Install it with pip."),
    "yaml.YAMLError": ("a file is no YAML", "Mend the line that is named."),
    "pyarrow.ArrowException": (
        "a Parquet or Arrow file cannot be read or written",
        "It may be damaged, cut off, or another kind of file than its name says.",
    ),
    "safetensors_rust.SafetensorError": (
        "a safetensors file cannot be read",
        "It may be damaged or cut off; copy or download it again.",
    ),
    "jinja2.TemplateError": (
        "the chat template cannot render a conversation",
        "Check `chat_template`, and that the rows have the roles it knows.",
    ),
    "zlib.error": ("a compressed file cannot be read", "It may be damaged; copy it again."),
    "builtins.EOFError": ("a file ends too early", "It may be cut off; copy it again."),
    "datasets.DatasetsError": ("a dataset cannot be read", "Check its files, `path` and `split`."),
    "datasets.DatasetGenerationError": ("a dataset cannot be read", "Check its files."),
    "huggingface_hub.HfHubHTTPError": (
        "the Hugging Face hub refused",
        "Check the name and your access, or name a local folder.",
    ),
    "pydantic_core.ValidationError": ("Axolotl does not accept the config", "Mend these keys."),
    "openai.OpenAIError": ("the client of the server gave up", "Check `server`."),
    "httpx.HTTPError": ("the connection to a server failed", "Is it up, and the address right?"),
    "httpx.InvalidURL": ("an address of a server is none", "Check `base_url`."),
}


def known_fault(error: BaseException) -> str | None:
    """One line: what happened, where, and what to do; None for an exception that nobody expected.

    Quoted text is redacted and printable.
    """
    if isinstance(error, OSError):
        return _of_system(error)
    if isinstance(error, UnicodeDecodeError):
        before = ascii(error.object[max(0, error.start - 20) : error.start])
        return (
            f"text is not {error.encoding}: the byte 0x{error.object[error.start]:02x} after "
            f"{foreign(before)}. Save the file as UTF-8."
        )
    if isinstance(error, json.JSONDecodeError):
        return f"a file is no JSON: {foreign(error)}. It may be cut off; mend it or make it again."
    for ancestor in type(error).__mro__:
        name = f"{ancestor.__module__.partition('.')[0]}.{ancestor.__name__}"
        if name in BY_NAME:
            what, remedy = BY_NAME[name]
            said = foreign(error)
            return f"{what}: {said.rstrip('.')}. {remedy}" if said else f"{what}. {remedy}"
    return None


def _of_system(error: OSError) -> str:
    files = [foreign(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' and '.join(files)}: " if files else ""
    if error.errno in BY_ERRNO:
        what, remedy = BY_ERRNO[error.errno]
        return f"{where}{what}. {remedy}"
    what = foreign(error.strerror if error.errno is not None and error.strerror else error)
    what = what.rstrip(".") or type(error).__name__
    if isinstance(error, ConnectionError | TimeoutError):
        return f"{where}{what}. Is the server up, and the address right?"
    return f"{where}{what}. Check the path or name."
