"""Pictures of densities over rounds: what is drawn are the numbers, files can be read, and bad input is refused."""

import itertools

import matplotlib as mpl
import matplotlib.animation
import matplotlib.colors
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image

import plural_jax as pj
from plural_jax.experiments import EXPERIMENTS, SWEEP, execute, movies, sweep
from plural_jax.figures import animations, densities
from plural_jax.figures.base import panels
from plural_jax.report import folders, parts

LINE = pj.Grid.uniform(-3.0, 3.0, 25)
PLANE = pj.Grid.uniform([-2.0, -1.0], [2.0, 1.5], [9, 6])


def log_masses(seed, rounds, n):
    """Random log-masses of each round, [rounds, n], and of the start, [n]."""
    p = np.random.default_rng(seed).dirichlet(np.ones(n), rounds + 1)
    return np.log(p[1:]), np.log(p[0])


def ridges(ax, count):
    """Heights of the lines above their baselines, as drawn, from the first round on."""
    gaps = np.asarray(ax.get_yticks())
    lines = [line for line in ax.lines if len(line.get_xdata()) == LINE.num_cells]
    assert len(lines) == count
    return np.stack([line.get_ydata() - gap for line, gap in zip(lines, gaps, strict=True)])


def test_ridgelines_are_the_densities():
    log_p, start = log_masses(0, 7, LINE.num_cells)
    figure = pj.figures.ridgelines(
        LINE, log_p, steps=2 * np.arange(1, 8), start=start, show=[14, 0, 6], optima=[-1.0, 1.5], caption="K = 3"
    )
    ax = figure.axes[0]
    drawn = ridges(ax, 3)
    spacing = 6 / 24
    np.testing.assert_allclose(drawn, np.exp(np.stack([start, log_p[2], log_p[6]])) / spacing, atol=1e-12)
    np.testing.assert_allclose(drawn.sum(axis=1) * spacing, 1)  # mass per cell would sum to 1 / spacing less
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "6", "14"]
    assert (np.diff(ax.get_yticks()) < 0).all()  # time goes down
    marked = {line.get_xdata()[0]: mpl.colors.to_hex(line.get_color()) for line in ax.lines if line.get_ls() == "--"}
    assert marked == {-1.0: pj.figures.PREFERENCE_COLORS[0].lower(), 1.5: pj.figures.PREFERENCE_COLORS[1].lower()}
    assert figure._supxlabel.get_text() == "K = 3"
    # The bar has the height that its label says.
    (label,) = [text.get_text() for text in ax.texts]
    bar = next(line for line in ax.lines if list(line.get_xdata()) == [1.02, 1.02])
    np.testing.assert_allclose(np.ptp(bar.get_ydata()), float(label.removeprefix("density ")))


def test_ridgelines_draw_where_they_are_told_and_leave_the_settings_alone():
    log_p, _ = log_masses(1, 3, LINE.num_cells)
    before = dict(mpl.rcParams)
    figure, axes = panels(2)
    assert pj.figures.ridgelines(LINE, log_p, ax=axes[0, 1]) is figure
    assert not axes[0, 0].lines and len(ridges(axes[0, 1], 3)) == 3 and not figure.legends
    assert dict(mpl.rcParams) == before
    assert isinstance(pj.figures.ridgelines(LINE, log_p), Figure)


@pytest.mark.parametrize(("rounds", "most"), [(1, 1), (5, 5), (50, 9), (3000, 9)])
def test_the_rounds_that_are_chosen(rounds, most):
    steps = np.arange(rounds)
    places = densities._places(steps, None)
    assert places[0] == 0 and places[-1] == rounds - 1 and len(places) <= most
    assert (np.diff(places) > 0).all()


def test_only_what_can_be_seen_is_in_the_frame():
    x = np.asarray(LINE.axes[0])
    mass = np.where(np.abs(x) < 0.6, 1.0, 1e-9)
    found = densities.checked(LINE, np.log(mass / mass.sum())[None], None, None, [2.0], (1,))
    assert -0.85 < found.limits[0, 0] < -0.5 and 2.0 < found.limits[0, 1] < 2.4


@pytest.mark.parametrize("grid", [LINE, PLANE], ids=["line", "plane"])
def test_a_gif_has_a_frame_for_each_round_and_a_rest(grid, tmp_path):
    log_p, start = log_masses(2, 4, grid.num_cells)
    optima = [[-1.0, 0.5][: grid.num_dims], [1.0, 0.0][: grid.num_dims]]
    path = pj.figures.animate(
        grid, log_p, tmp_path / "all.gif", start=start, optima=optima, caption="K = 3", frames_per_second=4.0
    )
    assert list(tmp_path.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.n_frames == 5 and image.info["loop"] == 0
        frames, durations = [], []
        for i in range(5):
            image.seek(i)
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")).astype(int))
    assert durations == [250] * 4 + [1250]
    for one, other in itertools.pairwise(frames):
        assert (one != other).any(axis=-1).sum() > 100
    for frame in frames:  # on white, and nothing is cut off
        assert all((edge == 255).all() for edge in (frame[0], frame[-1], frame[:, 0], frame[:, -1]))
    for color in pj.figures.PREFERENCE_COLORS[:2]:
        distance = np.abs(frames[0] - 255 * np.asarray(mpl.colors.to_rgb(color))).max(axis=-1)
        assert (distance < 30).sum() > 20


def test_frames_show_the_density_and_share_one_scale():
    log_p, start = log_masses(3, 3, PLANE.num_cells)
    rounds = densities.checked(PLANE, log_p, None, start, [[0.0, 0.0]], (2,))
    area = (4 / 8) * (2.5 / 5)
    np.testing.assert_allclose(rounds.density.sum(axis=(1, 2)) * area, 1)
    figure, moving, show = animations._plane(rounds, "")
    image, ax = moving[0], figure.axes[0]
    for i in range(4):
        show(i)
        drawn = np.asarray(image.get_array())
        np.testing.assert_allclose(drawn.T.ravel() * area, np.exp([start, *log_p][i]), rtol=1e-12)
        assert ax.get_title(loc="left") == f"round {i} of 3"
        np.testing.assert_allclose(image.get_clim(), (0, rounds.density.max()))
    assert image.get_extent() == [-2.25, 2.25, -1.25, 1.75]  # cells are around their points
    assert figure.axes[1].get_ylabel() == "density" and len(figure.axes[1].get_yticks()) >= 4
    figure, (area, line, _), show = animations._line(
        densities.checked(LINE, *log_masses(4, 2, LINE.num_cells)[:1], None, None, None, (1,)), ""
    )
    show(1)
    np.testing.assert_allclose(np.sum(line.get_ydata()) * 6 / 24, 1)
    assert area.get_paths()[0].vertices[:, 1].max() == line.get_ydata().max()


def test_an_mp4_where_ffmpeg_is(tmp_path, monkeypatch):
    log_p, _ = log_masses(5, 3, PLANE.num_cells)
    if animations.can_write_mp4():
        path = pj.figures.animate(PLANE, log_p, tmp_path / "all.mp4")
        assert path.read_bytes()[4:8] == b"ftyp" and list(tmp_path.iterdir()) == [path]
    monkeypatch.setattr(animations, "can_write_mp4", lambda: False)
    with pytest.raises(ValueError, match=r"all\.mp4' needs ffmpeg, which is not installed"):
        pj.figures.animate(PLANE, log_p, tmp_path / "all.mp4")


def test_what_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    log_p, _ = log_masses(6, 3, LINE.num_cells)

    def stop(self, **kwargs):
        self._frames.append(Image.new("RGB", (2, 2)))
        raise KeyboardInterrupt

    monkeypatch.setattr(matplotlib.animation.PillowWriter, "grab_frame", stop)
    (tmp_path / "all.gif").write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        pj.figures.animate(LINE, log_p, tmp_path / "all.gif")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


GOOD = np.log(np.full((3, 25), 1 / 25))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": 3}, r"grid must be a plural_jax\.Grid, got int"),
        ({"grid": PLANE}, r"grid must have 1 dimension with at least 2 points along each, got shape \(9, 6\)"),
        ({"grid": pj.Grid.uniform(0.0, 1.0, 1)}, r"at least 2 points along each, got shape \(1,\)"),
        ({"log_p": GOOD[0]}, r"log_p must have shape \[rounds, n\] with n = 25 cells.*got shape \(25,\)"),
        ({"log_p": GOOD[:, 1:]}, r"got shape \(3, 24\)"),
        ({"log_p": np.exp(GOOD)}, r"log_p must hold log-masses that sum to one in each round, but.*round 1 sum to 26"),
        ({"log_p": np.where(np.arange(3)[:, None] == 2, np.nan, GOOD)}, "round 3 sum to nan"),
        ({"log_p": "densities"}, "log_p must be an array of real numbers, got '?densities"),
        ({"steps": [1, 2]}, r"steps must hold one whole number for each of the 3 rows.*got \[1, 2\]"),
        ({"steps": [1, 1, 2]}, r"increasing, got \[1, 1, 2\]"),
        ({"steps": [0.5, 1, 2]}, "steps must hold one whole number"),
        ({"start": GOOD[0], "steps": [0, 1, 2]}, r"steps must begin after 0, .* got \[0, 1, 2\]"),
        ({"start": GOOD}, r"start must have one log-mass for each of the 25 atoms, got shape \(3, 25\)"),
        ({"show": [1, 5]}, r"show must name rounds among those of log_p, \[1, 2, 3\], got \[1, 5\]"),
        ({"show": []}, "show must name rounds"),
        ({"optima": [0.0, np.inf]}, r"optima must be finite, got inf at index \(1,\)"),
        ({"optima": [[0.0, 1.0]]}, r"optima must hold one point of 1 coordinate .* got shape \(1, 2\)"),
    ],
)
def test_ridgelines_refuse(change, message):
    with pytest.raises(ValueError, match=message):
        pj.figures.ridgelines(**{"grid": LINE, "log_p": GOOD, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": pj.Grid.uniform(0.0, 1.0, [2, 2, 2])}, r"grid must have 1 or 2 dimensions .* got shape \(2, 2, 2\)"),
        ({"file": "all.png"}, r"file must end in \.gif or \.mp4, got 'all\.png'"),
        ({"file": "nowhere/all.gif"}, r"file='nowhere/all\.gif' is in a folder that does not exist"),
        ({"frames_per_second": 0.0}, r"frames_per_second must be positive, got 0\.0"),
    ],
)
def test_animate_refuses(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        pj.figures.animate(**{"grid": LINE, "log_p": GOOD, "file": "all.gif", **change})
    assert not list(tmp_path.iterdir())


def test_a_run_is_animated_when_asked_and_the_report_shows_it(tmp_path):
    log_p, _ = log_masses(7, 4, LINE.num_cells)
    movie = movies.Movie(LINE, log_p, np.array([0, 1, 2, 4]), [-1.0, 1.0], "K = 2")

    def save(config, store, progress, **more):
        dataset = xr.Dataset({"x": 1.0}, attrs={"config": "{}"})
        dataset.to_zarr(store, consolidated=False)
        return dataset

    picture = {"none": panels(1)[0]}
    moves = SWEEP._replace(run=save, tables=lambda ds: {}, plot=lambda ds: picture, movie=lambda ds: movie)
    done = execute(moves, sweep.Config(), tmp_path / "run", animate=True)
    names = ["none.png", "none.pdf", "animation.gif", *(["animation.mp4"] if animations.can_write_mp4() else [])]
    assert [path.name for path in done.figures] == names
    with Image.open(done.folder / "animation.gif") as image:
        assert image.n_frames == 4
        width, height = image.size
    run = folders.read_folder(done.folder)
    page = dict(parts.of_run("run-1", run, audit=False))
    assert f'width="{width}" height="{height}"' in page["Figures"] and "data:image/gif;base64," in page["Figures"]
    assert "animation.gif" in page["Figures"] and "animation.pdf" not in page["Figures"]
    assert "plural-jax sweep --animate" in page["How to reproduce it"]


def test_an_experiment_without_densities_cannot_be_animated(tmp_path):
    with pytest.raises(ValueError, match="animate=True needs densities on a grid, which experiment 'e1' does not have"):
        execute(EXPERIMENTS["e1"], EXPERIMENTS["e1"].config(), tmp_path / "other", animate=True)
    assert not (tmp_path / "other").exists()
    assert {name for name, found in EXPERIMENTS.items() if found.movie} == {"c9", "e2", "e5", "e6"}


def test_a_long_run_has_few_frames_that_lie_on_its_way():
    land = pj.Landscape.on(LINE, pj.rewards.bump([-1.0, 1.0], height=1.0, width=1.0))
    process = pj.density.large_pool(land, phi=[0.4, 0.6])
    log_p, steps = movies.follow(process, process.init(), 103)
    assert list(steps[:3]) == [0, 3, 6] and list(steps[-2:]) == [102, 103] and len(steps) == len(log_p) <= 52
    _, trace = pj.run(process, process.init(), 103, save="density")
    np.testing.assert_allclose(log_p[1:], np.asarray(trace.log_p)[steps[1:] - 1], rtol=1e-8)
