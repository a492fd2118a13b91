"""The common tests of the installed Transformers, taken from the source distribution of exactly that version.

They are fetched when they are run and never kept in this repository. The distribution holds the files directly below
`tests/` (the mixins for configurations, models, processors, tokenizers and training), not its sub-folders: of what the
mixins import from those, `STAND_INS` gives the least that lets them load. So the tests of `generate`
(`tests/generation/test_utils.py`) and of exporters are not here; they are in the repository's archive of a release
alone. What they would say of `generate` is in `tests/test_backbones.py` and `tests/test_language.py`.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = importlib.metadata.version("transformers")
CACHE = Path(__file__).resolve().parent.parent / "build" / "upstream"  # ignored by git

STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": "config_common_kwargs = {}\n",  # not used of nested configurations
    "tests/fixtures/sample_text.txt": "The keeper lit the lamp.\n\nThe fog came in, and the ships lay still.\n",
    "utils/fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n",
}


def tests_folder() -> Path:
    """The folder whose package `tests` holds the mixins of the installed version; fetched where it is not there yet.

    Raises:
        RuntimeError: the source distribution cannot be had, or holds no tests.
    """
    folder = CACHE / f"transformers-{VERSION}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            unpacked = _unpack(_download(Path(temporary)), Path(temporary))
            for name, text in STAND_INS.items():
                path = unpacked / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(text, encoding="utf-8")
            shutil.move(unpacked, folder)
    return folder


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    command += ["--no-build-isolation", "--dest", str(folder), f"transformers=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or len(archives) != 1:
        raise RuntimeError(f"No source distribution of transformers {VERSION}: {done.stderr[-1000:]}")
    return archives[0]


def _unpack(archive: Path, folder: Path) -> Path:
    name = f"transformers-{VERSION}"
    with tarfile.open(archive) as source:
        members = [member for member in source if member.isfile() and member.name.startswith(f"{name}/tests/")]
        if not members:
            raise RuntimeError(f"The source distribution of transformers {VERSION} holds no tests.")
        for member in members:  # `extractall` takes `filter` from Python 3.11.4 on, and warns without it from 3.12 on
            path, content = folder / member.name, source.extractfile(member)
            if content is None or ".." in path.parts:
                raise RuntimeError(f"The source distribution of transformers {VERSION} holds {member.name!r}.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
    return folder / name
