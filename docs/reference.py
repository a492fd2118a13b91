"""Builds the API reference from docstrings: `python docs/reference.py [FOLDER]`, by default into build/docs.

One page a module of the package, with search; pdoc does the work.
"""

import sys
import warnings
from pathlib import Path

import pdoc

import pan_hf

ROOT = Path(__file__).resolve().parent.parent
CURATED = {"pan_hf": "pan_hf", "modeling": "pan_hf.modeling", "tokenization": "pan_hf.tokenization"}
CURATED |= {"pan_hf/data/importing": "pan_hf.data.importing"}
FOUND = ["agents", "data", "envs", "evaluation", "features", "publishing", "reporting", "training"]


def modules() -> list[str]:
    """What pdoc is asked for: a package, whose modules it finds by itself, and those with an `__all__`, beside which
    it finds none."""
    top = [package for package in CURATED.values() if package.count(".") < 2]  # one within another is found with it
    names = [*(f"pan_hf.{name}" for name in FOUND), *top]
    for folder, package in CURATED.items():
        names += [f"{package}.{path.stem}" for path in sorted((ROOT / folder).glob("[!_]*.py"))]
    return names


def build(folder: Path, names: list[str] | None = None) -> None:
    """Writes `index.html` and a page a module into `folder`; names: of modules, all by default."""
    for name in pan_hf.__all__:  # what is imported when first asked for belongs to the page
        setattr(pan_hf, name, getattr(pan_hf, name))
    pdoc.render.configure(docformat="google", footer_text=f"pan_hf {pan_hf.__version__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error parsing type annotation")  # of Transformers' own base classes
        pdoc.pdoc(*(names or modules()), output_directory=folder)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "docs"
    build(target)
    print(f"Done. Open {target / 'index.html'}")
