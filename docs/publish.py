"""Publishes runs: their result files into docs/results, the README's tables from them, and a model card each.

python docs/publish.py runs/quickstart runs/dynamic_obstacles
python docs/publish.py runs/dynamic_obstacles/stages/4-latent_head=dynamic_obstacles_before_joint
"""

import shutil
import sys
from pathlib import Path

from pan_hf.card import write_card
from pan_hf.figures import load_strip, strip_picture
from pan_hf.readme import update_readme

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"


def publish(run: Path, name: str) -> None:
    """Copies what a run, or a folder of results, measured, and pictures of its first strip of median error."""
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("evaluation.json", "planning.json", "futures.json", "timing.json", "horizon.png"):
        if (run / file).exists():
            shutil.copy(run / file, folder / file)
    strips = sorted((run / "report" / "strips").glob("*DoorKey*median.npz")) or sorted(
        (run / "report" / "strips").glob("*median.npz")
    )
    if strips:
        strip_picture(load_strip(strips[0]), folder / "strip.png", cell=64)
    if (run / "checkpoint").exists():
        write_card(run, ROOT / "model_cards" / f"pan-{name.replace('_', '-')}.md", model_id=f"pan-{name}")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        run, _, name = given.partition("=")
        publish(Path(run), name or Path(run).name)
    update_readme(ROOT / "README.md", sorted(path for path in RESULTS.iterdir() if path.is_dir()))
