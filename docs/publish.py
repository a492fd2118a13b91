"""Publishes runs: result files into docs/results, and from those alone every table of a page, and the cards.

python docs/publish.py                                            all tables and cards anew
python docs/publish.py runs/quickstart runs/dynamic_obstacles
python docs/publish.py runs/dynamic_obstacles/stages/4-latent_head=dynamic_obstacles_before_joint
"""

import json
import shutil
import sys
from pathlib import Path

from film import median_strip, strip_picture, write_film
from measured import update_page

from pan_hf.files import write_file
from pan_hf.publishing.card import FACTS, checkpoint_facts, write_card
from pan_hf.reporting.figures import load_strip

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = (
    ROOT / "README.md",
    RESULTS / "README.md",
    *sorted((ROOT / "docs" / "guide").glob("*.md")),
    ROOT / "docs" / "kills.md",
)


def publish(run: Path, name: str) -> None:
    """Copies what a run, or a folder of results, measured; draws its strip of median error, and a film of it."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("evaluation.json", "planning.json", "futures.json", "timing.json", "horizon.png"):
        if (run / file).exists():
            shutil.copy(run / file, folder / file)
    if (run / "report" / "strips").exists():
        strip = load_strip(median_strip(run))
        strip_picture(strip, folder / "strip.png", cell=64)
        write_film(strip, folder / "dream.webp")
    if (run / "checkpoint").exists():
        facts = checkpoint_facts(run, model_id=f"pan-{name}") | {"name": name, "results": f"../docs/results/{name}"}
        write_file(folder / FACTS, json.dumps(facts, indent=1) + "\n")


def card_of(folder: Path) -> Path:
    """Where the card of a folder of results stands."""
    return ROOT / "model_cards" / f"pan-{folder.name.replace('_', '-')}.md"


if __name__ == "__main__":
    for given in sys.argv[1:]:
        run, _, name = given.partition("=")
        publish(Path(run), name or Path(run).name)
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    for page in PAGES:
        update_page(page, folders)
    for measured in folders:
        if (measured / FACTS).exists():
            write_card(measured, card_of(measured))
