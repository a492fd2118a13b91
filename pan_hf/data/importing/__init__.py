"""Other people's data as a recording of ours: `pan import`, and one function a source.

    import_minari     a Minari data set, by id or folder
    import_lerobot    a LeRobot v3 data set, in its folder
    import_dataset    a Hugging Face data set: an object, a folder, a file or a name on the Hub
    import_videos     a folder of videos with a CSV of actions

What they write is what `pan record` writes (see `pan_hf.data.episodes`), so training and evaluation do not know the
difference. Planning in the real environment needs one that gymnasium can make: only Minari data sets name theirs. The
output folder appears when the import is finished, whole or not at all; an interrupted import goes on.
"""

from pan_hf.data.importing.hf_dataset import import_dataset
from pan_hf.data.importing.lerobot import import_lerobot
from pan_hf.data.importing.minari import import_minari
from pan_hf.data.importing.videos import import_videos

__all__ = ["import_dataset", "import_lerobot", "import_minari", "import_videos"]
