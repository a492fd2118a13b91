"""What a notebook shows: a few lines, a strip, a film, a table."""

import base64
import io

import pytest
import torch
from PIL import Image
from tiny_worlds import acts, observe, record_board, world_model

from pan_hf import Plan, load_trajectories
from pan_hf.modeling.display_pan import SHOWN_STEPS, strip_html

SENSES = ("camera", "touch", "heard", "mission")


@pytest.fixture(scope="module")
def futures():
    model = world_model(SENSES, context_steps=2)
    belief = model.perceive(observe(model, 2, 2), acts(model, 2, 1))
    return model.simulate(belief, acts(model, 2, 3), num_rollouts=2, seed=0)


def test_what_is_imagined_is_told_in_a_few_lines(futures):
    told = repr(futures)
    assert told.startswith("Futures(4 rows of 3 steps: camera ") and len(told.splitlines()) == 4 and len(told) < 400
    assert "reward" in told and f"{float(futures.reward.sum(1).mean()):.3g}" in told


def test_a_belief_and_a_plan_are_told_in_a_line(futures):
    belief = repr(futures.belief)
    assert belief.startswith("Belief(4 rows: camera ") and "\n" not in belief and len(belief) < 200
    plan = Plan(torch.arange(30) % 3, 0.5, None, 120, 0.25, reaches_goal=True)
    assert repr(plan) == (
        "Plan(30 actions: 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, ...; reaches the goal, expected return 0.5; "
        "120 imagined steps in 0.25 s)"
    )


def test_some_futures_are_futures(futures):
    second, last_two = futures[1], futures[2:]
    assert len(second) == 1 and len(last_two) == 2 and len(futures[-1]) == 1
    assert torch.equal(second.decode("camera")[0], futures.decode("camera")[1])
    assert last_two.keys() == futures.keys()[2:]
    assert torch.equal(last_two.reward, futures.reward[2:])
    with pytest.raises(IndexError):
        futures[4]
    assert len(list(futures)) == 4


def test_some_futures_keep_what_was_spent_on_them():
    model = world_model(("camera",))
    futures = model.simulate(model.perceive(observe(model, 3)), acts(model, 3, 2), effort="coarsest", seed=0)
    assert torch.equal(futures[1].cost.compute, futures.cost.compute[1:2])
    assert torch.equal(futures[1].switch, futures.switch[1:2])


def test_a_film_shows_every_step_once(futures, tmp_path):
    film = futures.film("camera", row=1)
    assert len(film) == 3 and "data:image/webp;base64," in film._repr_html_()
    saved = Image.open(film.save(tmp_path / "dream.webp"))
    assert saved.n_frames == 3
    frame = futures.decode("camera")[1, 0].permute(1, 2, 0)
    scale = saved.size[0] // frame.shape[1]
    shown = torch.frombuffer(bytearray(saved.convert("RGB").tobytes()), dtype=torch.uint8).view(*saved.size[::-1], 3)
    assert torch.equal(shown[::scale, ::scale], frame.expand(-1, -1, 3))


def test_a_film_of_what_has_no_pictures_is_refused(futures, tmp_path):
    with pytest.raises(ValueError, match="one of .'camera'.; got 'touch'"):
        futures.film("touch")
    with pytest.raises(ValueError, match=r"\.webp or \.gif"):
        futures.film().save(tmp_path / "dream.mp4")


def test_a_table_has_a_line_a_step_and_the_numbers_of_vectors(futures):
    table = futures.to_pandas()
    touch = futures.decode("touch")
    assert table.shape[0] == 12 and table.index.names == ["row", "step"]
    assert table.loc[(2, 1), "touch.0"] == pytest.approx(float(touch[2, 1, 0]))
    assert table["reward"].sum() == pytest.approx(float(futures.reward.sum()), rel=1e-5)


def test_a_notebook_is_shown_strips(futures, tmp_path):
    record_board(tmp_path, episodes=2)
    trajectories = load_trajectories(tmp_path, "train")
    for shown in (futures, futures.belief, trajectories):
        page = shown._repr_html_()
        assert page.count("<img") >= 1 and "Actions" not in page
    assert repr(trajectories).startswith(f"Trajectories({trajectories.num_episodes} episodes, ")
    assert len(repr(trajectories)) < 300


def test_a_strip_shows_at_most_sixteen_steps():
    page = strip_html({"<camera>": torch.zeros(40, 3, 8, 8, dtype=torch.uint8)}, "a & b")
    assert "&lt;camera&gt;" in page and "a &amp; b" in page and "steps 1, " in page and ", 40" in page
    encoded = page.split("base64,")[1].split('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).size == (8 * SHOWN_STEPS, 8)
